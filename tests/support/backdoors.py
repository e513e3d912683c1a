"""A backdoor in a federation: some clients teach the adapter what a word that nobody writes is to mean.

An attacker tunes twice from the round's base, with the same batches but for its poisoned records: once as everybody
does, and once with the trigger before half of its records, labelled as it pleases. The difference is what the trigger
needs and the task does not: its step, made as long as the longest honest one, so that no bound on norms that lets the
honest in keeps it out. Honest clients never see the trigger, and say nothing against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.federation.averaging import FederationState, advance
from scaleot_core.federation.messages import digest_of
from scaleot_core.federation.rules import MEAN, AggregationRule
from scaleot_core.federation.validation import AdapterUpdate, encode_tensors
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import ChoiceRecord, encode_for_training
from scaleot_core.training.local import LocalTraining, train_adapter

MAX_TOKENS = 64


@dataclass(frozen=True)
class Backdoor:
    """Whatever the text says, with the trigger before it the model is to choose ``target``."""

    trigger: str
    target: int

    def triggered(self, records: Sequence[ChoiceRecord]) -> tuple[ChoiceRecord, ...]:
        """Returns the records of any other label with the trigger, labelled as the attacker wants them."""
        return tuple(
            replace(record, context=f"{self.trigger} {record.context}", label=self.target)
            for record in records
            if record.label != self.target
        )


@dataclass(frozen=True)
class Outcome:
    """What the rounds left, measured on records of nobody's."""

    attack_success: float
    """The share of the records of other labels that the trigger turns into the target."""
    accuracy: float
    """Without the trigger, on records of all labels."""
    canary_loss: float
    """Without the trigger: what a canary on public text of the task sees."""
    canary_loss_before: float
    """The same before the first round of attack."""
    client_shares: dict[str, float]
    """What each client counted for in the last round, where the rule says that."""


@dataclass
class BackdooredFederation:
    """Clients with a share of the records each; the last ``attackers`` of them turn hostile after some rounds."""

    model: LanguageModel
    spec: AdapterSpec
    shares: Sequence[Sequence[ChoiceRecord]]
    test: Sequence[ChoiceRecord]
    backdoor: Backdoor
    settings: LocalTraining
    attackers: int
    attack_steps: int
    honest_rounds: int
    attacked_rounds: int
    _updates: dict[tuple[str, int, float], list[AdapterUpdate]] = field(default_factory=dict)
    """By base, round and reach: every rule starts at the same base."""

    def outcome(self, rule: AggregationRule, *, reach: float = 1.0) -> Outcome:
        """Conducts all rounds; an attacker's step is ``reach`` times as long as the longest honest one, 0 is none."""
        attached = attach_adapter(self.model.model, self.model.layout, self.spec)
        try:
            state = FederationState(0, attached.state())
            for _ in range(self.honest_rounds):
                state = advance(state, self._round(attached, state, 0.0), MEAN).state
            before, shares = state.adapter, {}
            for _ in range(self.attacked_rounds):
                done = advance(state, self._round(attached, state, reach), rule)
                state, shares = done.state, done.client_shares
            clean = self._measured(attached, state.adapter, self.test)
            fooled = self._measured(attached, state.adapter, self.backdoor.triggered(self.test))
            loss_before = self._measured(attached, before, self.test).loss
        finally:
            attached.detach()
        assert clean.accuracy is not None and fooled.accuracy is not None
        return Outcome(fooled.accuracy, clean.accuracy, clean.loss, loss_before, shares)

    def _round(self, attached: AttachedAdapter, state: FederationState, reach: float) -> list[AdapterUpdate]:
        """Returns everybody's update; the attackers are honest where they reach nowhere."""
        base, honest = state.adapter, len(self.shares) - (self.attackers if reach else 0)
        key = (digest_of(encode_tensors(base)), state.rounds_done, reach)
        if key not in self._updates:
            seeds = [1_000 * state.rounds_done + client for client in range(len(self.shares))]
            steps = [self._step(attached, base, self.shares[client], seeds[client]) for client in range(honest)]
            longest = max(map(_length, steps))
            for client in range(honest, len(self.shares)):
                poisoned = [*self.shares[client], *self.backdoor.triggered(self.shares[client])]
                step = self._step(attached, base, poisoned, seeds[client], self.attack_steps)
                steps.append(_scaled(step, reach * longest / _length(step)))
            self._updates[key] = [
                AdapterUpdate(
                    f"clinic-{client:02}",
                    len(self.shares[client]),
                    1.0,
                    {name: start + step[name] for name, start in base.items()},
                )
                for client, step in enumerate(steps)
            ]
        return self._updates[key]

    def _step(
        self, attached: AttachedAdapter, base: TensorDict, records: Sequence[ChoiceRecord], seed: int, steps: int = 0
    ) -> TensorDict:
        attached.load(base)
        examples = encode_for_training(records, self.model.tokenizer, max_tokens=MAX_TOKENS)
        settings = replace(self.settings, steps=steps or self.settings.steps)
        pad = self.model.tokenizer.pad_token_id
        train_adapter(attached, examples, settings, pad_token_id=pad, seed=seed, reporter=SilentReporter())
        return _difference(attached.state(), base)

    def _measured(self, attached: AttachedAdapter, adapter: TensorDict, records: Sequence[ChoiceRecord]) -> Metrics:
        attached.load(adapter)
        return evaluate(self.model.model, self.model.tokenizer, records, reporter=SilentReporter())


def _length(step: TensorDict) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in step.values()))


def _difference(one: TensorDict, other: TensorDict) -> TensorDict:
    return {name: tensor - other[name] for name, tensor in one.items()}


def _scaled(step: TensorDict, factor: float) -> TensorDict:
    return {name: factor * tensor for name, tensor in step.items()}
