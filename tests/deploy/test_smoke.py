"""The smoke script, with a model of a few thousand parameters; with SmolLM2: ``deploy/scripts/smoke``."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_smoke_script_reaches_between_processes_what_one_process_does(tmp_path: Path) -> None:
    command = [ROOT / "deploy/scripts/smoke", "--tiny", "--work", tmp_path / "work"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["is_same"]
    assert [record["round"] for record in found["rounds"]] == [1, 2, 3]
    assert all(0 < epsilon <= 8 for epsilon in found["spent_epsilon"])
    attacked = found["model_privacy"]  # by the plug-in, whose machine has no private text
    assert [(point["steps"], point["tuned"]) for point in attacked["healing"]] == [(0, None), (2, None)]
    assert attacked["not_measured"] == {"strong_emulator": "there is no private text at hand"}
    assert (found["unattacked"]["healing"], found["unattacked"]["not_measured"]) == (None, {})
