import json
from pathlib import Path

from fl_server.training_steps import TrainingSteps, read_training_steps
from scaleot_core.bundle.distribution import TrainingRequest


def told(step: int) -> TrainingRequest:
    return TrainingRequest(attempt=1, round=2, step=step, steps=40)


def test_the_last_word_of_each_organisation_is_written(tmp_path: Path) -> None:
    steps = TrainingSteps(tmp_path / "training.json")
    for name, step in (("clinic", 3), ("ward", 5), ("clinic", 7)):
        steps.on_training(name, told(step))
    steps.write()
    assert read_training_steps(tmp_path / "training.json") == {"clinic": told(7), "ward": told(5)}


def test_what_is_not_there_or_damaged_is_no_step(tmp_path: Path) -> None:
    assert read_training_steps(tmp_path / "none") == {}
    (tmp_path / "bad").write_text(json.dumps({"clinic": {"attempt": 1, "round": 1, "step": 9, "steps": 8}}))
    assert read_training_steps(tmp_path / "bad") == {}
