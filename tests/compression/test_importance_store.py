import dataclasses
import json
from pathlib import Path

import pytest

from scaleot_core.compression.importance import ImportanceReport, estimate_importance
from scaleot_core.compression.importance_store import (
    SCORES_FILE,
    SHIPPED_DIRECTORY,
    find_importance,
    save_importance,
)
from scaleot_core.progress import SilentReporter
from tests.compression.test_importance import SETTINGS, random_blocks
from tests.support.tiny_models import tiny_language_model


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


def test_every_shipped_report_can_be_read() -> None:
    digests = [directory.name for directory in SHIPPED_DIRECTORY.iterdir()]
    assert digests
    assert all(find_importance(digest, [SHIPPED_DIRECTORY]) for digest in digests)
