"""The step that each organisation says its training is at: for people to look at, and nothing is decided by it."""

import json
import threading
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from scaleot_core.bundle.distribution import TrainingRequest
from scaleot_core.bundle.files import replace_file

TRAINING_FILE = "training.json"
_STEPS: TypeAdapter[dict[str, TrainingRequest]] = TypeAdapter(dict[str, TrainingRequest])


class TrainingSteps:
    """Holds what each organisation said last; a service that starts anew begins with nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._steps: dict[str, TrainingRequest] = {}

    def on_training(self, organisation: str, told: TrainingRequest) -> None:
        """Takes down what an organisation says."""
        with self._lock:
            self._steps[organisation] = told

    def write(self) -> None:
        """Writes all of it for ``scaleot status``; a full disk costs no more."""
        with self._lock:
            steps = {name: told.model_dump() for name, told in self._steps.items()}
        with suppress(OSError):
            replace_file(self._path, json.dumps(steps).encode(), mode=0o600)


def read_training_steps(path: Path) -> dict[str, TrainingRequest]:
    """Returns what each organisation said last; empty where nothing was written yet."""
    try:
        return _STEPS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
