"""The rounds of a federation without its wires: the same seeds, order and arithmetic, on one emulator in memory.

A run with the same run file through server, seal and clients gives the same adapter to the last digit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_server.privacy import asked_training, budget_of, server_noise
from fl_server.workspace import organisation
from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.spec import AdapterSpec
from scaleot_core.compression.emulator import Emulator
from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.averaging import Aggregator, aggregator_for
from scaleot_core.federation.cohort import select_cohort
from scaleot_core.federation.rules import Aggregation, AggregationRule
from scaleot_core.privacy.client_level import NoisedMean
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.private_examples import private_examples
from scaleot_core.privacy.private_rounds import AskedTraining, mechanism_for_round, moved_by_mean, round_event
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter, SilentReporter, Stage
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import batches_seed, derive_seed
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample, Record
from scaleot_core.training.local import LocalTraining, has_diverged, train_adapter
from scaleot_core.training.readable import readable_examples


@dataclass(frozen=True)
class TunedRound:
    """The adapter after a round."""

    number: int
    adapter: TensorDict
    train_loss: float | None
    """The clients' mean loss, weighted by their examples; none under a mechanism of privacy."""


def tune_in_rounds(
    emulator: Emulator, spec: AdapterSpec, run: RunFile, partitions: Sequence[Sequence[Record]], reporter: Reporter
) -> Iterator[TunedRound]:
    """Yields the averaged adapter after every round, with it in the emulator, which comes back as it was.

    Raises:
        RoundFailedError: training diverged in a round at so many clients that the quorum is not there, or that the
            rule has too few.
    """
    federation = run.federation
    seed = derive_seed(run.seed, "federation")
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    asked, pad_token_id = asked_training(run), emulator.tokenizer.pad_token_id

    def encoded(records: Sequence[Record]) -> Sequence[EncodedExample]:
        if asked is None:
            return readable_examples(emulator, records, max_tokens=federation.max_tokens)
        return private_examples(records, emulator, max_tokens=federation.max_tokens)

    clients = {organisation(number): encoded(records) for number, records in enumerate(partitions)}
    rounds = (
        _PlainRounds(attached, clients, pad_token_id, run)
        if asked is None
        else _PrivateRounds(attached, clients, pad_token_id, run, asked, reporter)
    )
    try:
        adapter = attached.state()
        with reporter.stage("rounds", steps=federation.rounds * federation.clients_per_round) as stage:
            for number in range(1, federation.rounds + 1):
                cohort = select_cohort(clients, size=federation.clients_per_round, seed=seed, round_number=number)
                adapter, train_loss = rounds.after(adapter, cohort, number, stage)
                attached.load(adapter)
                stage.advance(0, loss=train_loss)
                yield TunedRound(number, adapter, train_loss)
    finally:
        attached.detach()


@dataclass(frozen=True)
class _PlainRounds:
    """Rounds whose updates are taken as they are."""

    attached: AttachedAdapter
    clients: Mapping[str, Sequence[EncodedExample]]
    pad_token_id: int
    run: RunFile

    def after(
        self, adapter: TensorDict, cohort: Sequence[str], number: int, stage: Stage
    ) -> tuple[TensorDict, float | None]:
        """Returns the aggregate of the cohort's adapters, each tuned from ``adapter``, and the mean of their losses."""
        aggregator, accepted = _aggregator(self.run, adapter), 0
        for client in cohort:
            self.attached.load(adapter)
            accepted += self._add_to(aggregator, client, number)
            stage.advance()
        quorum = self.run.federation.quorum
        if accepted < quorum:
            raise RoundFailedError(
                f"training diverged at {len(cohort) - accepted} of {len(cohort)} clients in round {number}: the quorum "
                f"of {quorum} is not there"
            )
        whole = aggregator.read()
        return whole.adapter, whole.train_loss

    def _add_to(self, aggregator: Aggregator, client: str, number: int) -> bool:
        """Tunes the adapter and hands it to the aggregator, unless training diverged."""
        asked = self.run.federation
        result = train_adapter(
            self.attached,
            self.clients[client],
            LocalTraining(
                asked.local_steps,
                asked.batch_size,
                asked.learning_rate,
                asked.optimizer,
                gradient_checkpointing=asked.gradient_checkpointing,
            ),
            pad_token_id=self.pad_token_id,
            seed=batches_seed(derive_seed(self.run.seed, "federation"), number, client),
            reporter=SilentReporter(),
        )
        state = self.attached.state()
        if has_diverged(result, state):
            return False
        aggregator.add(client, state, num_examples=result.num_examples, train_loss=result.mean_loss)
        return True


@dataclass
class _PrivateRounds:
    """Rounds whose updates come through a mechanism. Nothing leaves this process, so there is no ledger to charge."""

    attached: AttachedAdapter
    clients: Mapping[str, Sequence[EncodedExample]]
    pad_token_id: int
    run: RunFile
    asked: AskedTraining
    reporter: Reporter
    way: ExampleWay | None = None
    """To the examples' gradients or losses: public settings alone decide it, for all clients and rounds."""

    def after(self, adapter: TensorDict, cohort: Sequence[str], number: int, stage: Stage) -> tuple[TensorDict, None]:
        """Returns the aggregate of the cohort's releases, or the adapter moved by the mean of their scalars."""
        released, weights = [], []
        for client in cohort:
            self.attached.load(adapter)
            released.append(self._release(client, number))
            weights.append(len(self.clients[client]))
            stage.advance()
        if self.asked.privacy.sends_scalars:
            return moved_by_mean(adapter, released, weights, self.asked, number), None
        aggregator = aggregator_for(_rule(self.run), adapter)
        for client, state, weight in zip(cohort, released, weights, strict=True):
            aggregator.add(client, state, num_examples=weight, train_loss=None)
        return aggregator.read().adapter, None

    def _release(self, client: str, number: int) -> TensorDict:
        examples = self.clients[client]
        mechanism = mechanism_for_round(
            self.asked,
            round_event(self.asked, len(examples), budget_of(self.run)),
            round_number=number,
            batch_seed=batches_seed(derive_seed(self.run.seed, "federation"), number, client),
            recomputes_activations=self.run.federation.gradient_checkpointing,
        )
        if self.way is None:
            self.way = mechanism.choose_way(self.attached, pad_token_id=self.pad_token_id)
            self.reporter.note(f"{self.asked.privacy.mechanism}: {self.way.reason}")
        task = LocalTask(self.attached, examples, self.pad_token_id, self.way)
        return mechanism.release(task, secret=SecretSource(), charge=lambda _: None, reporter=SilentReporter()).tensors


def _aggregator(run: RunFile, base: TensorDict) -> Aggregator:
    noise = server_noise(run)
    return aggregator_for(_rule(run), base) if noise is None else NoisedMean(base, noise, SecretSource())


def _rule(run: RunFile) -> AggregationRule:
    asked = run.federation
    return AggregationRule(Aggregation(asked.aggregation), asked.trimmed_share, asked.assumed_attackers)
