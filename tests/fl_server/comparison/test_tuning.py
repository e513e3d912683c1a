from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from fl_server.comparison import tuning
from fl_server.privacy import asked_training
from fl_server.reference import adapter_spec
from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.compression.builders.uniform import plan_uniform
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.config import read_run_file
from scaleot_core.federation.validation import SCALARS
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.private_rounds import AskedTraining, mechanism_for_round, moved_by_mean, scalar_steps
from scaleot_core.privacy.release import LocalTask, Release
from scaleot_core.privacy.replay import replay
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import RunFile
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import CompletionRecord
from tests.support.tiny_models import tiny_language_model

NUM_EXAMPLES = (2, 3, 7)
"""Of the clients: no two weigh the same."""
NUM_ROUNDS = 2
SETTINGS = {
    "federation.rounds": NUM_ROUNDS,
    "federation.clients": len(NUM_EXAMPLES),
    "federation.local_steps": 2,
    "federation.batch_size": 2,
    "privacy.epsilon": 1000,
    "privacy.delta": 0.01,
    "privacy.noise_multiplier": 1,
    "privacy.num_directions": 2,
}
equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@dataclass(frozen=True)
class Released:
    """What left one client in a round, and the adapter that it held before and afterwards."""

    num_examples: int
    before: TensorDict
    tensors: TensorDict
    after: TensorDict


@dataclass(frozen=True)
class RecordingMechanism:
    """The real mechanism, whose releases are noted."""

    mechanism: Mechanism
    releases: list[Released]

    def choose_way(self, attached: AttachedAdapter, *, pad_token_id: int) -> ExampleWay:
        return self.mechanism.choose_way(attached, pad_token_id=pad_token_id)

    def release(self, task: LocalTask, **how: Any) -> Release:
        before = task.attached.state()
        release = self.mechanism.release(task, **how)
        self.releases.append(Released(len(task.examples), before, release.tensors, task.attached.state()))
        return release


@dataclass(frozen=True)
class TunedRun:
    """The adapter before every round and after the last, and what left the clients."""

    run: RunFile
    adapters: list[TensorDict] = field(default_factory=list)
    releases: list[Released] = field(default_factory=list)

    @property
    def asked(self) -> AskedTraining:
        asked = asked_training(self.run)
        assert asked
        return asked

    def rounds(self) -> Iterator[tuple[int, TensorDict, Sequence[Released], TensorDict]]:
        """Yields every round's number, the adapter before it, what left its clients, and the adapter after it."""
        for number in range(1, NUM_ROUNDS + 1):
            released = self.releases[(number - 1) * len(NUM_EXAMPLES) : number * len(NUM_EXAMPLES)]
            assert tuple(one.num_examples for one in released) == NUM_EXAMPLES
            yield number, self.adapters[number - 1], released, self.adapters[number]


def tune(*settings: str) -> TunedRun:
    tuned = TunedRun(read_run_file(None, [*(f"{key}={value}" for key, value in SETTINGS.items()), *settings]))
    emulator = build_emulator(tiny_language_model("llama", layers=2), plan_uniform(2, {1}, 0.0), {}, harmonizer_rank=1)
    tuned.adapters.append(fresh_adapter(emulator, tuned.run))

    def recording(*public: Any, **named: Any) -> RecordingMechanism:
        return RecordingMechanism(mechanism_for_round(*public, **named), tuned.releases)

    partitions = [[CompletionRecord("the film is", " good")] * count for count in NUM_EXAMPLES]
    spec = adapter_spec(tuned.run, emulator.plan.adapter_layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "mechanism_for_round", recording)
        for one in tuning.tune_in_rounds(emulator, spec, tuned.run, partitions, SilentReporter()):
            tuned.adapters.append(one.adapter)
    return tuned


def fresh_adapter(emulator: Emulator, run: RunFile) -> TensorDict:
    attached = attach_adapter(emulator.model, emulator.layout, adapter_spec(run, emulator.plan.adapter_layers))
    state = attached.state()
    attached.detach()
    return state


@pytest.fixture(scope="module")
def by_scalars() -> TunedRun:
    return tune("privacy.mechanism=dpzero")


@pytest.fixture(scope="module")
def by_mean() -> TunedRun:
    return tune("privacy.mechanism=dp-sgd", "federation.aggregation=fedavg")


@pytest.fixture(scope="module")
def by_median() -> TunedRun:
    return tune("privacy.mechanism=dp-sgd", "federation.aggregation=median")


def test_every_client_of_a_private_round_starts_from_the_round_s_adapter(
    by_scalars: TunedRun, by_mean: TunedRun
) -> None:
    for tuned in (by_scalars, by_mean):
        for _, before, releases, _ in tuned.rounds():
            for released in releases:
                equal(released.before, before)
                assert any(not torch.equal(released.after[name], before[name]) for name in before), "it tunes"


def test_scalars_move_the_adapter_by_their_mean_weighted_by_examples(by_scalars: TunedRun) -> None:
    for number, before, releases, after in by_scalars.rounds():
        scalars = [released.tensors for released in releases]
        equal(after, moved_by_mean(before, scalars, NUM_EXAMPLES, by_scalars.asked, number))


def test_a_client_s_scalars_stand_for_its_steps_along_the_directions_of_the_round(by_scalars: TunedRun) -> None:
    for number, before, releases, _ in by_scalars.rounds():
        for released in releases:
            scalars = released.tensors[SCALARS].numpy()
            equal(released.after, replay(before, scalars, scalar_steps(by_scalars.asked, number)))


def test_released_adapters_are_averaged_by_examples(by_mean: TunedRun) -> None:
    for _, _, releases, after in by_mean.rounds():
        for name, mean in after.items():
            pairs = zip(NUM_EXAMPLES, releases, strict=True)
            total = sum(count * released.tensors[name].double() for count, released in pairs)
            equal(mean, (total / sum(NUM_EXAMPLES)).float())


def test_released_adapters_become_one_by_the_rule_that_the_run_file_names(by_median: TunedRun) -> None:
    for _, _, releases, after in by_median.rounds():
        for name, median in after.items():
            equal(median, torch.stack([released.tensors[name] for released in releases]).median(dim=0).values)
