"""Importance reports on disk: computed once for a model, text and settings, and found again by their digest.

A report is a directory with ``importance.json`` (scores, settings, losses, history) and ``harmonizers.safetensors``.
The first holds the SHA-256 of all of it; a report that was damaged is computed again.
Reports of the embedded model ship with the package; others are cached.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scaleot_core.compression.finiteness import check_finite
from scaleot_core.compression.importance import ImportanceReport, ImportanceSettings, ScoreUpdate
from scaleot_core.digested import with_digest, without_digest
from scaleot_core.errors import InputError, OutputError
from scaleot_core.shapes import TokenBlocks

ALGORITHM = 2
"""Counts the changes of Dynamic LayerReplace that gave another report for the same settings: part of every digest.

2: a layer that is left over joins the group before it.
"""
SCORES_FILE, HARMONIZERS_FILE = "importance.json", "harmonizers.safetensors"
_MOST_TRIES = 1000
SHIPPED_DIRECTORY = Path(__file__).parent / "shipped"
"""Reports that come with the package; ``scaleot estimate --out scaleot_core/compression/shipped`` makes them."""


def importance_digest(model_digest: str, blocks: TokenBlocks, settings: ImportanceSettings) -> str:
    """Returns SHA-256, in hex, over the model's digest, the public text as token ids, every setting and ``ALGORITHM``.

    Type and device of the estimate are left out on purpose, so that one shipped report serves every ``model.dtype``.
    """
    digest = hashlib.sha256(f"scaleot.importance/{ALGORITHM} {model_digest} ".encode())
    digest.update(json.dumps(asdict(settings), sort_keys=True).encode())
    digest.update(str(tuple(blocks.shape)).encode() + blocks.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def find_importance(digest: str, folders: Sequence[Path]) -> ImportanceReport | None:
    """Returns the report with this digest from the first folder that has it whole; ``None`` if none has."""
    for folder in folders:
        report = _read(folder / digest)
        if report is not None:
            return report
    return None


def save_importance(report: ImportanceReport, directory: Path) -> ImportanceReport:
    """Writes a report to ``directory``, whole or not at all, and returns it as it will be found there.

    The harmonizers are kept in half precision. What is there already is replaced; several processes may do so at once.

    Raises:
        ModelError: a harmonizer's weight is beyond half precision.
        OutputError: the directory cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            harmonizers = {name: tensor.half().contiguous() for name, tensor in report.harmonizers.items()}
            greatest = (float(tensor.abs().amax()) for tensor in harmonizers.values())
            check_finite(greatest, "a harmonizer's weight", "in half precision, in which it is saved")
            save_file(harmonizers, building / HARMONIZERS_FILE)
            values = report.to_json()
            values["harmonizers_sha256"] = _sha256(building / HARMONIZERS_FILE)
            (building / SCORES_FILE).write_bytes(with_digest(json.dumps(values).encode()))
            building.chmod(0o755)
            _put_in_place(building, directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return replace(report, harmonizers={name: tensor.float() for name, tensor in harmonizers.items()})
    except OSError as error:
        raise OutputError(f"the importance report {directory} cannot be written: {error}") from error


def _put_in_place(building: Path, directory: Path) -> None:
    for _ in range(_MOST_TRIES):
        try:
            building.rename(directory)
        except OSError:  # something is there: of another process perhaps, and again after it was removed
            shutil.rmtree(directory, ignore_errors=True)
        else:
            return
    building.rename(directory)


def _read(directory: Path) -> ImportanceReport | None:
    try:
        values = json.loads(without_digest((directory / SCORES_FILE).read_bytes(), directory / SCORES_FILE))
        if values.get("harmonizers_sha256") not in (None, _sha256(directory / HARMONIZERS_FILE)):  # older ones: None
            return None
        harmonizers = {name: tensor.float() for name, tensor in load_file(directory / HARMONIZERS_FILE).items()}
        return ImportanceReport(
            scores=tuple(values["scores"]),
            harmonizers=harmonizers,
            settings=ImportanceSettings(**values["settings"]),
            training_losses=tuple(values["training_losses"]),
            history=tuple(_update(update) for update in values["history"]),
            seconds=values.get("seconds"),  # older reports have none
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, InputError):
        return None  # not there, damaged, or an older format: it is computed again


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _update(values: dict[str, object]) -> ScoreUpdate:
    kept = tuple(tuple(layers) for layers in values["kept"])  # type: ignore[attr-defined]
    return ScoreUpdate(values["step"], tuple(values["losses"]), tuple(values["rewards"]), kept)  # type: ignore[arg-type]
