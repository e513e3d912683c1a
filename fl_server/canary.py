"""The owner's canary: public text that every new adapter is tried on, inside the emulator, before anybody gets it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_server.owner import CanarySettings
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.compression.emulator import read_emulator
from scaleot_core.evaluation import evaluate
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import read_records


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


@contextmanager
def emulator_canary(settings: CanarySettings, spec: AdapterSpec, directory: Path) -> Iterator[Canary]:
    """Lends the canary of a run's settings, whose paths start at ``directory``; the emulator is in memory meanwhile.

    Raises:
        InputError: emulator or text cannot be read.
    """
    import torch

    folder = directory / settings.emulator
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emulator, records = read_emulator(files, device=device), read_records(directory / settings.text)

    def measure(adapter: TensorDict) -> float:
        with plugged_in(emulator.model, emulator.layout, spec, adapter):
            return evaluate(emulator.model, emulator.tokenizer, records, reporter=SilentReporter()).loss

    yield Canary(measure, settings.tolerance)
