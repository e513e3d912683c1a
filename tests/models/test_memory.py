import json
import re
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from scaleot_core.errors import ModelError
from scaleot_core.models import memory
from scaleot_core.models.loading import load_model
from scaleot_core.models.memory import check_memory, free_in_control_groups
from tests.support.tiny_models import save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    save_file({"a": torch.zeros(100, 20), "b": torch.zeros(7)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(3, 3, 3)}, tmp_path / "two.safetensors", metadata={"format": "pt"})
    return [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]


def free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    machine = namedtuple("machine", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine(size_bytes))
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", Path("no container"))


def limit_container(monkeypatch: pytest.MonkeyPatch, directory: Path, *, bound: int, used: int, cached: int) -> None:
    (directory / "memory.max").write_text(f"{bound}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"inactive_file {cached}\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", directory)


def claim(path: Path, **shapes: tuple[int, ...]) -> None:
    """Writes the header of a safetensors file with tensors of these shapes, and no byte of them."""
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_estimate_counts_every_number_of_every_file_at_the_type_it_is_loaded_in(
    weights: list[Path], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bytes_each: int
) -> None:
    needed = (100 * 20 + 7 + 27) * bytes_each
    free(monkeypatch, needed)
    check_memory(weights, dtype=dtype, devices=[CPU])
    free(monkeypatch, needed - 1)
    with pytest.raises(ModelError):
        check_memory(weights, dtype=dtype, devices=[CPU])


@pytest.mark.parametrize(
    ("dtype", "needed"),
    [  # 50 000 * 20 000 and 2 * 25 000 * 10 000 and 100 000 000 are 1.6 * 10^9 numbers
        (torch.float32, "needs 6.4 GB as float32"),  # of 4 bytes each
        (torch.bfloat16, "needs 3.2 GB as bfloat16"),  # of 2
    ],
)
def test_a_model_too_large_is_refused_before_loading_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, needed: str
) -> None:
    save_tiny_model(tmp_path / "model")
    claim(tmp_path / "model" / "model.safetensors", a=(50_000, 20_000), b=(2, 25_000, 10_000), c=(100_000_000,))
    free(monkeypatch, 2_940_000_000)
    with pytest.raises(ModelError, match=re.escape(needed)) as caught:
        load_model(tmp_path / "model", dtype=dtype, device=CPU)
    assert "2.9 GB are free on cpu" in str(caught.value) and "smaller model" in str(caught.value)


@pytest.mark.parametrize(
    ("used", "cached", "left"),
    [(6_000_000_000, 1_200_000_000, "3.2 GB"), (9_000_000_000, 400_000_000, "0.0 GB")],
)
def test_in_a_container_its_limit_is_what_the_refusal_calls_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, cached: int, left: str
) -> None:
    claim(tmp_path / "model.safetensors", a=(50_000, 20_000))
    free(monkeypatch, 64_000_000_000)
    check_memory([tmp_path / "model.safetensors"], dtype=torch.float32, devices=[CPU])
    limit_container(monkeypatch, tmp_path, bound=8_000_000_000, used=used, cached=cached)
    with pytest.raises(ModelError, match=rf"needs 4\.0 GB as float32 .* {re.escape(left)} are free on cpu"):
        check_memory([tmp_path / "model.safetensors"], dtype=torch.float32, devices=[CPU])


@pytest.mark.parametrize(
    ("files", "free_bytes"),
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 200\n"}, 500),
        ({"memory.max": "max\n", "memory.current": "700\n", "memory.stat": "inactive_file 200\n"}, None),
        ({"memory.max": "1000\n", "memory.current": "1400\n", "memory.stat": "inactive_file 0\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
            },
            150,
        ),
        ({}, None),
    ],
)
def test_a_containers_limit_bounds_what_is_free(tmp_path: Path, files: dict[str, str], free_bytes: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_in_control_groups(tmp_path, []) == free_bytes


@pytest.mark.parametrize(
    ("of_slice", "of_service", "free_bytes"),
    [("max", "900", 500), ("1000", "max", 600), ("1000", "900", 500), ("850", "900", 450), ("max", "max", None)],
)
def test_the_narrowest_limit_of_a_services_own_control_groups_bounds_what_is_free(
    tmp_path: Path, of_slice: str, of_service: str, free_bytes: int | None
) -> None:
    """As on a host whose root group has no limit: systemd's ``MemoryMax`` stands in the service's own group."""
    service = tmp_path / "system.slice" / "scaleot-plug-in.service"
    service.mkdir(parents=True)
    for group, bound in ((service.parent, of_slice), (service, of_service)):
        (group / "memory.max").write_text(bound)
        (group / "memory.current").write_text("400")
        (group / "memory.stat").write_text("inactive_file 0")
    assert free_in_control_groups(tmp_path, [Path("system.slice/scaleot-plug-in.service")]) == free_bytes


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 30, b"\x02\0\0\0\0\0\0\0{}"[:9]])
def test_a_file_without_a_readable_header_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="no readable safetensors file"):
        check_memory([tmp_path / "model.safetensors"], dtype=torch.float32, devices=[CPU])
