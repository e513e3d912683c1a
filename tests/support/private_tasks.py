"""Tiny tasks for the mechanisms of privacy: real models of every family, an adapter off its start, random examples."""

import torch
from numpy.typing import NDArray

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.privacy.calibration import NoiseBudget, calibrate
from scaleot_core.privacy.directions import direction_key
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder
from scaleot_core.training.data import EncodedExample
from tests.support.tiny_models import tiny_language_model

LOOP = ExampleWay(1, uses_hooks=False, reason="asked for")
HOOKS = ExampleWay(4, uses_hooks=True, reason="asked for")
FORWARD = ExampleWay(4, uses_hooks=False, reason="asked for")

ADAPTERS = {
    "lora": AdapterSpec(AdapterKind.LORA, (1,), rank=3, seed=5),
    "ffa-lora": AdapterSpec(AdapterKind.LORA, (1,), rank=3, seed=5, freezes_down=True),
    "bottleneck": AdapterSpec(AdapterKind.BOTTLENECK, (1,), rank=3, seed=5),
    "layers": AdapterSpec(AdapterKind.LAYERS, (1,), rank=3, seed=5),
}


def random_examples(count: int, *, seed: int = 0, lengths: tuple[int, int] = (4, 30)) -> list[EncodedExample]:
    """Returns examples of random tokens, lengths and targets."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length in torch.randint(*lengths, (count,), generator=generator).tolist():
        start = int(torch.randint(1, length, (1,), generator=generator))
        examples.append(EncodedExample(tuple(torch.randint(3, 300, (length,), generator=generator).tolist()), start))
    return examples


def attached_adapter(
    model_type: str = "llama", adapter: str = "lora", *, dtype: torch.dtype = torch.float32
) -> AttachedAdapter:
    """Returns an adapter in a model of two layers, moved off its start so that every gradient is there."""
    full = tiny_language_model(model_type, layers=2, tied=False)
    full.model.to(dtype)
    attached = attach_adapter(full.model, full.layout, ADAPTERS[adapter])
    generator = torch.Generator().manual_seed(1)
    state = attached.state()
    attached.load({name: state[name] + 0.05 * torch.randn(state[name].shape, generator=generator) for name in state})
    return attached


def private_task(attached: AttachedAdapter, examples: list[EncodedExample], way: ExampleWay = FORWARD) -> LocalTask:
    """Returns a task with an explicit way."""
    return LocalTask(attached, examples, pad_token_id=0, way=way)


def zeroth_order(**changes: float) -> ZerothOrder:
    """Returns settings of zeroth-order steps."""
    values = {
        "steps": 3,
        "sample_rate": 0.5,
        "expected_batch_size": 8.0,
        "max_grad_norm": 2.0,
        "learning_rate": 0.01,
        "direction_key": direction_key("tests", 7),
        "num_directions": 4,
        "rows": 4,
    }
    return ZerothOrder(**{**values, **changes})  # type: ignore[arg-type]


def noise_multiplier_for(
    epsilon: float, delta: float, *, sample_rate: float, count: int, noise: str = "gaussian"
) -> float:
    """Returns the least standard deviation, relative to the terms' bound, with which a law keeps a budget."""
    return calibrate(noise, NoiseBudget(epsilon, delta, sample_rate, count)).law().stddev()


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns tensors as one float64 vector, by sorted name."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


class RecordingSource(SecretSource):
    """The real source, which notes in ``log`` when something is drawn from it."""

    __slots__ = ("log",)

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def words(self, count: int) -> NDArray:  # type: ignore[type-arg]
        self.log.append("drawn")
        return super().words(count)

    def integer_below(self, bound: int) -> int:
        self.log.append("drawn")
        return super().integer_below(bound)
