"""The cases of the benchmark and how one of them is measured; run as a module, it measures one in this process."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fl_server.benchmark_measure import Workload, measure
from fl_server.compress import DTYPES, asset_or_path, importance_settings, load_full_model
from fl_server.privacy import asked_training, budget_of
from fl_server.reference import adapter_spec
from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.compression.emulator import Emulator, read_emulator
from scaleot_core.compression.importance import SwappableLayers, harmonizer_optimizer, sample_replaced, train_step
from scaleot_core.config import with_settings
from scaleot_core.federation.messages import MechanismName
from scaleot_core.federation.validation import SCALARS, encode_tensors
from scaleot_core.models.devices import chosen_devices
from scaleot_core.models.loading import LanguageModel, random_model
from scaleot_core.privacy.calibration import noisiest
from scaleot_core.privacy.private_rounds import AskedTraining, mechanism_for_round, noise_budget, round_event
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter, SilentReporter
from scaleot_core.run_file import MOST_LMO_DIRECTIONS, RunFile
from scaleot_core.scoring import BATCH_TOKENS, score_examples
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import TensorDict, TokenBlocks
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, take_steps


@dataclass(frozen=True)
class Setting:
    """What all cases share."""

    run: RunFile
    emulator_directory: Path
    adapter_layers: tuple[int, ...]
    steps: int
    example_tokens: tuple[int, int]
    """Shortest and longest private example."""
    has_random_weights: bool

    def to_text(self) -> str:
        """Returns the setting as JSON."""
        values = {**vars(self), "run": self.run.model_dump_json(), "emulator_directory": str(self.emulator_directory)}
        return json.dumps(values)

    @classmethod
    def from_text(cls, text: str) -> "Setting":
        """Reads what ``to_text`` wrote."""
        values = json.loads(text)
        run, directory = RunFile.model_validate_json(values.pop("run")), Path(values.pop("emulator_directory"))
        shortest, longest = values.pop("example_tokens")
        layers = tuple(values.pop("adapter_layers"))
        return cls(run, directory, layers, example_tokens=(shortest, longest), **values)


def load_benchmarked_model(run: RunFile, *, has_random_weights: bool, reporter: Reporter) -> LanguageModel:
    """Loads the run file's full model, or makes one of its shape with random weights."""
    if not has_random_weights:
        return load_full_model(run.model, reporter)
    device = _device(run)
    return random_model(asset_or_path(run.model.source, reporter), dtype=DTYPES[run.model.dtype], device=device)


def _stage_1(setting: Setting, _: ExitStack) -> Workload:
    """A training step of the harmonizers, half the layers replaced; comparing candidates comes on top in earnest."""
    full, section = _full_model(setting), setting.run.importance
    settings = importance_settings(section)
    swappable = SwappableLayers(full, settings, gradient_checkpointing=section.gradient_checkpointing)
    optimizer = harmonizer_optimizer(swappable.harmonizers, settings)
    policy = generator_for(settings.seed, "policy")
    replaced = sample_replaced(torch.zeros(full.layout.num_layers), settings.group_size, settings.regroup, policy)
    blocks = _random_tokens(full, section.batch_size, section.block_tokens)

    def step() -> float:
        with swappable:  # between steps every layer stands in its place, where it is found to be compiled
            return train_step(swappable, replaced, blocks, optimizer, settings.hidden_state_weight)

    return Workload(
        step,
        tokens_per_step=blocks.numel(),
        trained_parameters=sum(parameter.numel() for parameter in swappable.harmonizers.parameters()),
        model=full.model,
    )


def _client_step(held: LanguageModel | Emulator, layers: tuple[int, ...], setting: Setting) -> Workload:
    """A step of the run file's adapter in ``layers``, with loss on the last token of every example."""
    run = setting.run
    attached = attach_adapter(held.model, held.layout, adapter_spec(run, layers))
    examples = _random_examples(held, run.federation.batch_size, setting)
    federation, parameters = run.federation, list(attached.trainable().values())
    steps = take_steps(
        held.model,
        parameters,
        examples,
        LocalTraining(
            steps=setting.steps,
            batch_size=federation.batch_size,
            learning_rate=federation.learning_rate,
            optimizer=federation.optimizer,
            gradient_checkpointing=federation.gradient_checkpointing,
        ),
        pad_token_id=0,
        seed=0,
    )
    return Workload(
        lambda: next(steps),
        tokens_per_step=_num_tokens(examples),
        trained_parameters=sum(parameter.numel() for parameter in parameters),
        sent_bytes=len(encode_tensors(attached.state())) * federation.rounds,
        model=held.model,
    )


def _emulator_step(setting: Setting, _: ExitStack) -> Workload:
    emulator = _emulator(setting)
    return _client_step(emulator, emulator.plan.adapter_layers, setting)


def _emulator_inference(setting: Setting, _: ExitStack) -> Workload:
    """Scores the last tokens of one client's batch, without an adapter: the least that a step can take."""
    emulator = _emulator(setting)
    examples = _random_examples(emulator, setting.run.federation.batch_size, setting)
    batch_tokens = BATCH_TOKENS[emulator.model.device.type]
    return Workload(
        lambda: score_examples(emulator.model, examples, batch_tokens=batch_tokens, reporter=SilentReporter()),
        tokens_per_step=_num_tokens(examples),
        trained_parameters=0,
        model=emulator.model,
    )


def _private_step(mechanism: MechanismName) -> Callable[[Setting, ExitStack], Workload]:
    """Returns the case of a noisy step on the same examples, all of them in its sample.

    The adapter is that of a step without noise. Of dpzero and lmo-dp along all directions, of the latter as many as it
    takes at most; of update-gaussian a round of one step. What dp-sgd's optimizer does with the sum is left out.
    """

    def workload(setting: Setting, _: ExitStack) -> Workload:
        emulator = _emulator(setting)
        aggregation = setting.run.federation.aggregation
        settings: dict[str, object] = {"privacy.mechanism": mechanism, "federation.aggregation": aggregation}
        if mechanism == "lmo-dp":
            settings["privacy.num_directions"] = min(setting.run.privacy.num_directions, MOST_LMO_DIRECTIONS)
        if mechanism == "update-gaussian":
            settings["federation.local_steps"] = 1
        run = with_settings(setting.run, settings)
        attached = attach_adapter(emulator.model, emulator.layout, adapter_spec(run, emulator.plan.adapter_layers))
        examples = _random_examples(emulator, run.federation.batch_size, setting)
        asked = asked_training(run)
        if asked is None:
            raise AssertionError("a run with a mechanism asks for private training")
        if mechanism == "lmo-dp":  # its noise has no single multiplier; how much of it there is costs no time
            event = noisiest(asked.noise, noise_budget(asked, len(examples), budget_of(run)))
        else:
            event = round_event(asked, len(examples), replace(budget_of(run), epsilon=math.inf, noise_multiplier=1.0))
        private = mechanism_for_round(
            asked,
            event,
            round_number=1,
            batch_seed=0,
            recomputes_activations=run.federation.gradient_checkpointing,
        )
        way = private.choose_way(attached, pad_token_id=0)
        task, secret = LocalTask(attached, examples, 0, way), SecretSource()
        return Workload(
            lambda: private.step(task, 0, secret),
            tokens_per_step=_num_tokens(examples),
            trained_parameters=sum(parameter.numel() for parameter in attached.trainable().values()),
            sent_bytes=len(encode_tensors(_sent(asked, attached))) * asked.privacy.rounds,
            model=emulator.model,
        )

    return workload


def _sent(asked: AskedTraining, attached: AttachedAdapter) -> TensorDict:
    """Returns tensors of the shapes that a round's update has."""
    if asked.privacy.sends_scalars:
        return {SCALARS: torch.zeros(asked.local_steps, asked.privacy.num_directions, dtype=torch.int32)}
    return attached.state()


def _full_model_step(setting: Setting, _: ExitStack) -> Workload:
    full = _full_model(setting)
    return _client_step(full, tuple(range(full.layout.num_layers)), setting)


def _plug_in_evaluation(setting: Setting, stack: ExitStack) -> Workload:
    """Scores the last tokens of one full batch of examples with the adapter plugged into the full model."""
    full, spec = _full_model(setting), adapter_spec(setting.run, setting.adapter_layers)
    attached = attach_adapter(full.model, full.layout, spec)
    state = attached.state()
    attached.detach()
    model = stack.enter_context(plugged_in(full.model, full.layout, spec, state))
    batch_tokens = BATCH_TOKENS[full.model.device.type]
    num_examples = max(batch_tokens // (setting.example_tokens[1] - 1), 1)  # the last token is scored, not read
    examples = _random_examples(full, num_examples, setting)
    return Workload(
        lambda: score_examples(model, examples, batch_tokens=batch_tokens, reporter=SilentReporter()),
        tokens_per_step=_num_tokens(examples) - num_examples,
        trained_parameters=0,
        model=full.model,
    )


CASES: dict[str, Callable[[Setting, ExitStack], Workload]] = {
    "stage 1": _stage_1,
    "inference, emulator": _emulator_inference,
    "client step, emulator": _emulator_step,
    "client step, dp-sgd": _private_step("dp-sgd"),
    "client step, dpzero": _private_step("dpzero"),
    "client step, lmo-dp": _private_step("lmo-dp"),
    "client step, update-gaussian": _private_step("update-gaussian"),
    "client step, full model": _full_model_step,
    "plug-in evaluation": _plug_in_evaluation,
}
"""The table of cases. The full model carries the adapter in all its layers, as the reference does."""

COMPILABLE = frozenset(
    {"stage 1", "inference, emulator", "client step, emulator", "client step, full model", "plug-in evaluation"}
)
"""The cases whose layers can be compiled: a mechanism of privacy hooks into their parts."""
COMPILED = ", compiled"
"""Ends the name of a case whose layers are."""


def _full_model(setting: Setting) -> LanguageModel:
    return load_benchmarked_model(setting.run, has_random_weights=setting.has_random_weights, reporter=SilentReporter())


def _emulator(setting: Setting) -> Emulator:
    files = {path.name: path for path in setting.emulator_directory.iterdir()}
    return read_emulator(files, device=_device(setting.run))


def _device(run: RunFile) -> torch.device:
    return chosen_devices(run.model.device, torch.cuda.device_count())[0]


def _random_tokens(held: LanguageModel | Emulator, count: int, length: int) -> TokenBlocks:
    return torch.randint(held.model.config.vocab_size, (count, length), generator=generator_for(0, "benchmark"))


def _random_examples(held: LanguageModel | Emulator, count: int, setting: Setting) -> list[EncodedExample]:
    """Returns examples of lengths that are evenly spread, in no order; the last token of each is its target."""
    shortest, longest = setting.example_tokens
    generator = generator_for(0, "example lengths")
    lengths = torch.linspace(shortest, longest, count).round().long()[torch.randperm(count, generator=generator)]
    rows = zip(_random_tokens(held, count, longest).tolist(), lengths.tolist(), strict=True)
    return [EncodedExample(tuple(row[:length]), length - 1) for row, length in rows]


def _num_tokens(examples: Sequence[EncodedExample]) -> int:
    return sum(len(example.token_ids) for example in examples)


def main() -> None:
    """Measures the case that the command line names, in the setting on standard input."""
    case, setting = sys.argv[1], Setting.from_text(sys.stdin.read())
    with ExitStack() as stack:
        workload = CASES[case.removesuffix(COMPILED)](setting, stack)
        cost = measure(workload, setting.steps, is_compiled=case.endswith(COMPILED))
    sys.stdout.write(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main()
