from scaleot_core.compression.builders.uniform import plan_uniform, uniform_positions
from scaleot_core.compression.plan import LayerRole


def test_uniform_keeps_the_published_layers_of_opt_1_3b() -> None:
    """Offsite-tuning's 2-8-2 of 24 layers, by the middle's own indices: the published list."""
    got = plan_uniform(24, {0, 1, 22, 23}, 12 / 20)
    assert got.adapter_layers == (0, 1, 22, 23)
    assert got.indices(LayerRole.KEPT) == (2, 5, 7, 10, 13, 16, 18, 21)


def test_uniform_positions_hold_both_ends() -> None:
    assert uniform_positions(20, 8)[0] == 0
    assert uniform_positions(20, 8)[-1] == 19
    assert uniform_positions(5, 1) == [0]
    assert uniform_positions(5, 0) == []
    assert uniform_positions(5, 5) == [0, 1, 2, 3, 4]
