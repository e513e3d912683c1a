"""The owner's canary: public text that every new adapter is tried on, inside the emulator, before anybody gets it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_server.owner import CanarySettings
from fl_server.sealed_versions import open_as_owner
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.bundle import load_data_key
from scaleot_core.compression.emulator import read_emulator
from scaleot_core.evaluation import evaluate
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import Record, read_records, write_records

CANARY_FILE = "canary.jsonl"


@dataclass(frozen=True)
class Canary:
    """What an adapter is measured by, and how much worse it may be than the one before."""

    measure: Callable[[TensorDict], float]
    """The loss of an adapter."""
    tolerance: float

    def fault(self, loss: float, base_loss: float) -> str | None:
        """Says why an adapter of this loss may not follow one of ``base_loss``, or nothing."""
        if loss <= (1 + self.tolerance) * base_loss:
            return None
        return (
            f"the loss on the canary rose from {base_loss:.4g} to {loss:.4g}, by more than the tolerance of "
            f"{self.tolerance:g}: look at the round's updates"
        )


def write_canary(
    records: Sequence[Record],
    directory: Path,
    *,
    tolerance: float,
    bundle: Path,
    data_key: Path,
    owner_public_key: Path,
) -> CanarySettings:
    """Writes the canary's records into a run's directory and returns the run's settings for it.

    The paths of bundle and keys are absolute or start at that directory.
    """
    write_records(directory / CANARY_FILE, records)
    return CanarySettings(
        bundle=bundle,
        data_key=data_key,
        owner_public_key=owner_public_key,
        text=Path(CANARY_FILE),
        tolerance=tolerance,
    )


@contextmanager
def emulator_canary(settings: CanarySettings, spec: AdapterSpec, directory: Path) -> Iterator[Canary]:
    """Lends the canary of a run's settings, whose paths start at ``directory``; the emulator is in memory meanwhile.

    Raises:
        InputError: text or a key cannot be read.
        VerificationError: the sealed emulator is not what was sealed, or out of date.
    """
    import torch

    records, data_key = read_records(directory / settings.text), load_data_key(directory / settings.data_key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_as_owner(directory / settings.bundle, data_key, directory / settings.owner_public_key) as opened:
        emulator = read_emulator(opened.files, device=device)

    def measure(adapter: TensorDict) -> float:
        with plugged_in(emulator.model, emulator.layout, spec, adapter):
            return evaluate(emulator.model, emulator.tokenizer, records, reporter=SilentReporter()).loss

    yield Canary(measure, settings.tolerance)
