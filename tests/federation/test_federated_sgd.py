"""A round of federated averaging against training on all the data at once, on a real model with the real functions."""

import pytest
import torch

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.federation.averaging import FederationState, advance
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.federations import tiny_emulator

LEARNING_RATE = 0.5
SPECS = {
    "lora": AdapterSpec(AdapterKind.LORA, (0, 2), 2, seed=1),
    "ffa": AdapterSpec(AdapterKind.LORA, (0, 2), 2, seed=1, freezes_down=True),
    "layers": AdapterSpec(AdapterKind.LAYERS, (2,), 0, seed=1),
    "bottleneck": AdapterSpec(AdapterKind.BOTTLENECK, (0, 2), 4, seed=1),
}


def examples(count: int) -> list[EncodedExample]:
    """Examples of one length, so that the mean over tokens is the mean over examples."""
    tokens = torch.randint(3, 260, (count, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return [EncodedExample(tuple(row), 1) for row in tokens]


def sgd_step(spec: AdapterSpec, start: TensorDict, data: list[EncodedExample]) -> tuple[TensorDict, float]:
    """One step on one batch of all of ``data``."""
    emulator = tiny_emulator()
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    try:
        attached.load(start)
        settings = LocalTraining(1, len(data), LEARNING_RATE, "sgd")
        result = train_adapter(attached, data, settings, pad_token_id=0, seed=5, reporter=SilentReporter())
        return attached.state(), result.mean_loss
    finally:
        attached.detach()


def fresh(spec: AdapterSpec) -> TensorDict:
    emulator = tiny_emulator()
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    try:
        return {name: tensor + 0.05 for name, tensor in attached.state().items()}
    finally:
        attached.detach()


@pytest.mark.parametrize("kind", SPECS)
def test_one_step_rounds_on_full_batches_equal_centralised_sgd(kind: str) -> None:
    spec, data = SPECS[kind], examples(24)
    parts = [data[:4], data[4:12], data[12:]]
    federated, centralised = FederationState(0, fresh(spec)), fresh(spec)
    for _ in range(2):
        updates = []
        for number, part in enumerate(parts):
            state, loss = sgd_step(spec, federated.adapter, part)
            updates.append(AdapterUpdate(str(number), len(part), loss, state))
        outcome = advance(federated, updates)
        federated = outcome.state
        centralised, loss = sgd_step(spec, centralised, data)
        assert outcome.train_loss == pytest.approx(loss, abs=1e-5)
    start = fresh(spec)
    for name, tensor in centralised.items():
        assert torch.allclose(federated.adapter[name], tensor, rtol=0, atol=1e-5), name
    moved = max(float((centralised[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-3, "a step that moves nothing would prove nothing"


def test_an_unweighted_mean_would_not_equal_it() -> None:
    spec, data = SPECS["lora"], examples(24)
    start, parts = fresh(spec), [data[:2], data[2:]]
    wrong = advance(
        FederationState(0, start), [AdapterUpdate("c", 1, 1.0, sgd_step(spec, start, part)[0]) for part in parts]
    ).state.adapter
    right = sgd_step(spec, start, data)[0]
    assert max(float((wrong[name] - right[name]).abs().max()) for name in right) > 1e-4
