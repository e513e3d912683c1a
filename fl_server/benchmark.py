"""A data owner's step in the emulator beside the same step in the full model: time and memory.

Each case runs in a process of its own, so that its peak memory is its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fl_server.compress import Workbench, load_full_model
from fl_server.memory import peak_memory_bytes
from scaleot_core.adapters.adapter import AdapterKind, AdapterSpec, attach_adapter
from scaleot_core.compression.emulator import Emulator, build_emulator, read_emulator, write_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.config import RunFile
from scaleot_core.progress import Reporter, SilentReporter
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter

EXAMPLE_TOKENS = 64
WARM_UP_STEPS = 1
BYTES_PER_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class StepCost:
    """What one case costs."""

    seconds_per_step: float
    """The median over the timed steps."""
    tokens_per_second: float
    peak_memory_mebibytes: float
    """Of the process, at its most, libraries and weights included."""
    training_memory_mebibytes: float
    """How much the training added to the process that had loaded the weights."""
    trained_parameters: int


def compare_client_steps(run: RunFile, steps: int, reporter: Reporter) -> dict[str, StepCost]:
    """Measures LoRA in the run file's emulator against LoRA in all layers of the full model.

    Both take ``steps`` steps on the same random tokens, in batches of the run file's size, ``EXAMPLE_TOKENS`` tokens
    an example.
    """
    full = load_full_model(run.model, reporter)
    emulator = Workbench(full, run, reporter).build(run.emulator)
    everything = LayerPlan(tuple(PlannedLayer(i, LayerRole.ADAPTER) for i in range(full.layout.num_layers)))
    with tempfile.TemporaryDirectory(prefix="scaleot-") as name:
        cases = {
            "emulator": _written(emulator, Path(name) / "emulator"),
            "full model": _written(build_emulator(full, everything, {}, harmonizer_rank=1), Path(name) / "full"),
        }
        del full, emulator
        return {case: _measure_apart(path, run, steps, reporter, case) for case, path in cases.items()}


def _written(emulator: Emulator, directory: Path) -> Path:
    directory.mkdir()
    write_emulator(emulator, directory)
    return directory


def _measure_apart(directory: Path, run: RunFile, steps: int, reporter: Reporter, case: str) -> StepCost:
    reporter.note(f"measuring: {case}")
    arguments = {"rank": run.adapter.rank, "batch_size": run.federation.batch_size, "steps": steps}
    command = [sys.executable, "-m", "fl_server.benchmark", str(directory), json.dumps(arguments)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own module
    return StepCost(**json.loads(finished.stdout))


def measure_steps(directory: Path, arguments: Mapping[str, int]) -> StepCost:
    """Trains LoRA in the adapter layers of the written emulator and measures this process."""
    files = {path.name: path for path in directory.iterdir()}
    emulator = read_emulator(files, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    spec = AdapterSpec(AdapterKind.LORA, emulator.plan.adapter_layers, arguments["rank"], seed=0)
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    vocabulary, batch_size = emulator.model.config.vocab_size, arguments["batch_size"]
    tokens = torch.randint(vocabulary, (batch_size, EXAMPLE_TOKENS), generator=torch.Generator().manual_seed(0))
    examples = [EncodedExample(tuple(row), EXAMPLE_TOKENS - 1) for row in tokens.tolist()]
    before, seconds = _peak_mebibytes(), []
    for step in range(WARM_UP_STEPS + arguments["steps"]):
        started = time.perf_counter()
        settings = LocalTraining(steps=1, batch_size=batch_size, learning_rate=1e-4)
        train_adapter(attached, examples, settings, pad_token_id=0, seed=step, reporter=SilentReporter())
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[WARM_UP_STEPS:])
    return StepCost(
        seconds_per_step=median,
        tokens_per_second=batch_size * EXAMPLE_TOKENS / median,
        peak_memory_mebibytes=_peak_mebibytes(),
        training_memory_mebibytes=_peak_mebibytes() - before,
        trained_parameters=sum(parameter.numel() for parameter in attached.trainable().values()),
    )


def _peak_mebibytes() -> float:
    size_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory_bytes()
    return size_bytes / BYTES_PER_MEBIBYTE


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure_steps(Path(sys.argv[1]), json.loads(sys.argv[2])))))
