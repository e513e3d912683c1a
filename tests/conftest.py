"""Says to the libraries, before they are imported, what the command line says to them; lends a federation's homes."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaleot_core.cli import LIBRARY_ENVIRONMENT

if TYPE_CHECKING:
    from tests.support.deployments import Deployed

os.environ.update(LIBRARY_ENVIRONMENT)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # each worker has one core; threads of several would wait for one another

MOST_WORKERS = 4
"""Each takes a gigabyte."""


def pytest_xdist_auto_num_workers() -> int:
    """Says how many workers ``-n auto`` starts."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def _compute_in_one_thread() -> None:
    """A forked process has none of its parent's OpenMP threads, and would wait for them for ever."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_compute_in_one_thread)


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> "Deployed":
    """Homes that every test may read and none may change."""
    from tests.support.deployments import build_deployment

    return build_deployment(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def owner(deployed: "Deployed", tmp_path: Path) -> Path:
    """A model owner's home of one's own."""
    return shutil.copytree(deployed.owner_home, tmp_path / "owner")


@pytest.fixture
def data_owner(deployed: "Deployed", tmp_path: Path) -> Path:
    """A data owner's home of one's own."""
    return shutil.copytree(deployed.data_owner_homes[0], tmp_path / "data-owner")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds nothing of another test."""
    monkeypatch.setenv("SCALEOT_CACHE", str(tmp_path / "cache"))
