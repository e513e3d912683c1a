import pytest

from scaleot_core.errors import InputError
from scaleot_core.models.devices import chosen_devices


@pytest.mark.parametrize(
    ("choice", "num_gpus", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 1, ["cuda:0"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 3, ["cuda"]),
        ("cpu", 3, ["cpu"]),
    ],
)
def test_auto_takes_every_gpu_and_a_named_device_is_one(choice: str, num_gpus: int, expected: list[str]) -> None:
    assert [str(device) for device in chosen_devices(choice, num_gpus)] == expected


def test_a_gpu_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(InputError, match=r'device = "cuda", but PyTorch sees no GPU: .* take device = "cpu" or "auto"'):
        chosen_devices("cuda", 0)
