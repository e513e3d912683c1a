from pathlib import Path

import pytest
import torch

from fl_server import machine
from fl_server.machine import machine_name


def test_a_processor_is_named_with_the_threads_that_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n"
    )
    monkeypatch.setattr(machine, "_LINUX_PROCESSORS", listed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine_name(torch.device("cpu")) == "Some CPU @ 2 GHz, 2 threads"


def test_where_no_name_is_listed_the_platforms_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    monkeypatch.setattr(machine, "_LINUX_PROCESSORS", listed)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine_name(torch.device("cpu")).startswith("aarch64, ")
