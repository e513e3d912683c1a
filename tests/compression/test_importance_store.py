import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from scaleot_core.compression.importance import ImportanceReport, estimate_importance
from scaleot_core.compression.importance_store import (
    ALGORITHM,
    SCORES_FILE,
    SHIPPED_DIRECTORY,
    find_importance,
    save_importance,
)
from scaleot_core.errors import ModelError
from scaleot_core.progress import SilentReporter
from tests.compression.test_importance import SETTINGS, random_blocks
from tests.support.tiny_models import tiny_language_model

SCORES_OF_ALGORITHM_2 = (0.00051, 6e-05, 0.00129, 0.00138, -3e-05, -0.00165, -0.00071, -0.00083, -1e-05)


@pytest.fixture(scope="module")
def report() -> ImportanceReport:
    return estimate_importance(tiny_language_model("llama"), random_blocks(), SETTINGS, reporter=SilentReporter())


@pytest.mark.parametrize("seconds", [None, 12.5])
def test_a_saved_report_is_found_again_with_the_seconds_it_took(
    report: ImportanceReport, seconds: float | None, tmp_path: Path
) -> None:
    save_importance(dataclasses.replace(report, seconds=seconds), tmp_path / "digest")
    found = find_importance("digest", [tmp_path])
    assert found is not None
    assert (found.scores, found.settings, found.history) == (report.scores, report.settings, report.history)
    assert found.seconds == seconds


def test_a_report_from_before_seconds_were_kept_is_still_found(report: ImportanceReport, tmp_path: Path) -> None:
    save_importance(report, tmp_path / "digest")
    file = tmp_path / "digest" / SCORES_FILE
    values = json.loads(file.read_text())
    del values["seconds"], values["sha256"], values["harmonizers_sha256"]
    file.write_text(json.dumps(values))
    found = find_importance("digest", [tmp_path])
    assert found is not None
    assert found.seconds is None


def test_of_several_that_save_a_report_at_once_none_fails_and_one_is_there_whole(
    report: ImportanceReport, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        for saved in [pool.submit(save_importance, report, tmp_path / "digest") for _ in range(80)]:
            saved.result()
    assert find_importance("digest", [tmp_path]) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["digest"], "nothing half-built is left"


def test_what_saving_returns_is_what_will_be_found(report: ImportanceReport, tmp_path: Path) -> None:
    returned = save_importance(report, tmp_path / "digest")
    found = find_importance("digest", [tmp_path])
    assert found is not None and found.harmonizers.keys() == returned.harmonizers.keys()
    assert all(torch.equal(found.harmonizers[name], tensor) for name, tensor in returned.harmonizers.items())
    assert dataclasses.replace(found, harmonizers={}) == dataclasses.replace(returned, harmonizers={})


def test_a_damaged_report_is_replaced(report: ImportanceReport, tmp_path: Path) -> None:
    save_importance(report, tmp_path / "digest")
    (tmp_path / "digest" / SCORES_FILE).write_text("{}")
    assert find_importance("digest", [tmp_path]) is None
    save_importance(report, tmp_path / "digest")
    assert find_importance("digest", [tmp_path]) is not None


def test_a_weight_beyond_half_precision_is_refused_before_anything_is_written(
    report: ImportanceReport, tmp_path: Path
) -> None:
    name, tensor = next(iter(report.harmonizers.items()))
    wild = dataclasses.replace(report, harmonizers={**report.harmonizers, name: torch.full_like(tensor, 1e5)})
    with pytest.raises(ModelError, match="a harmonizer's weight is inf in half precision"):
        save_importance(wild, tmp_path / "digest")
    assert not list(tmp_path.iterdir())


def test_dynamic_layer_replace_gives_what_algorithm_two_gave() -> None:
    """Other scores than these are another algorithm: raise ``ALGORITHM``, by which no older report is found."""
    full = tiny_language_model("llama", layers=9)
    report = estimate_importance(full, random_blocks(), SETTINGS, reporter=SilentReporter())
    assert ALGORITHM == 2
    assert report.scores == pytest.approx(SCORES_OF_ALGORITHM_2, rel=5e-3, abs=1e-5)


def test_every_shipped_report_can_be_read() -> None:
    digests = [directory.name for directory in SHIPPED_DIRECTORY.iterdir()]
    assert digests
    assert all(find_importance(digest, [SHIPPED_DIRECTORY]) for digest in digests)
