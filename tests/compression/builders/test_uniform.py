import pytest

from scaleot_core.compression.builders.uniform import plan_uniform, uniform_positions
from scaleot_core.compression.plan import LayerRole


@pytest.mark.parametrize(
    ("num_layers", "adapter", "dropped_share", "kept", "dropped"),
    [
        (  # OPT-1.3B, 2-8-2: 8 of 20 at a stride of 19 / 7, worked out by hand
            24,
            (0, 1, 22, 23),
            0.6,
            (2, 5, 7, 10, 13, 16, 18, 21),
            (3, 4, 6, 8, 9, 11, 12, 14, 15, 17, 19, 20),
        ),
        (  # OPT-6.7B, 2-18-2: 18 of 28 at a stride of 27 / 17, worked out by hand
            32,
            (0, 1, 30, 31),
            0.36,
            (2, 4, 5, 7, 8, 10, 12, 13, 15, 16, 18, 19, 21, 23, 24, 26, 27, 29),
            (3, 6, 9, 11, 14, 17, 20, 22, 25, 28),
        ),
        (  # GPT2-XL, 2-16-2: 16 of 44 at a stride of 43 / 15, worked out by hand
            48,
            (0, 1, 46, 47),
            0.64,
            (2, 5, 8, 11, 13, 16, 19, 22, 25, 28, 31, 34, 36, 39, 42, 45),
            (3, 4, 6, 7, 9, 10, 12, 14, 15, 17, 18, 20, 21, 23, 24, 26, 27, 29, 30, 32, 33, 35, 37, 38, 40, 41, 43, 44),
        ),
    ],
    ids=["OPT-1.3B", "OPT-6.7B", "GPT2-XL"],
)
def test_the_papers_models_keep_the_papers_layers(
    num_layers: int, adapter: tuple[int, ...], dropped_share: float, kept: tuple[int, ...], dropped: tuple[int, ...]
) -> None:
    """The sizes are those of the authors' scripts; of the middle, their code takes the layers ``round(i * stride)``."""
    plan = plan_uniform(num_layers, set(adapter), dropped_share)
    assert plan.adapter_layers == adapter
    assert plan.indices(LayerRole.KEPT) == kept
    assert plan.indices(LayerRole.DROPPED) == dropped


def test_uniform_positions_hold_both_ends() -> None:
    assert uniform_positions(20, 8)[0] == 0
    assert uniform_positions(20, 8)[-1] == 19
    assert uniform_positions(5, 1) == [0]
    assert uniform_positions(5, 0) == []
    assert uniform_positions(5, 5) == [0, 1, 2, 3, 4]
