import pytest

from scaleot_core.compression.layer_groups import layer_groups


@pytest.mark.parametrize(
    ("num_layers", "group_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (5, 2, [2, 3]),
        (3, 2, [3]),
        (3, 4, [3]),
        (2, 4, [2]),
        (1, 4, [1]),
    ],
)
def test_the_last_group_holds_what_is_left_and_one_alone_joins_the_group_before(
    num_layers: int, group_size: int, sizes: list[int]
) -> None:
    groups = layer_groups(num_layers, group_size)
    assert [len(group) for group in groups] == sizes
    assert [position for group in groups for position in group] == list(range(num_layers))
