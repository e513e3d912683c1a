"""The rounds of a federation without its wires: the same seeds, order and arithmetic, on one emulator in memory.

A run with the same run file through server, seal and clients gives the same adapter to the last digit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fl_server.workspace import organisation
from scaleot_core.adapters.adapter import AdapterSpec, AttachedAdapter, attach_adapter
from scaleot_core.compression.emulator import Emulator
from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.averaging import FederatedMean
from scaleot_core.federation.cohort import select_cohort
from scaleot_core.progress import Reporter, SilentReporter
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import derive_seed
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample, Record, encode_for_training
from scaleot_core.training.local import LocalTraining, has_diverged, train_adapter


@dataclass(frozen=True)
class TunedRound:
    """The adapter after a round."""

    number: int
    adapter: TensorDict
    train_loss: float
    """The clients' mean loss, weighted by their examples."""


def tune_in_rounds(
    emulator: Emulator, spec: AdapterSpec, run: RunFile, partitions: Sequence[Sequence[Record]], reporter: Reporter
) -> Iterator[TunedRound]:
    """Yields the averaged adapter after every round, with it in the emulator, which comes back as it was.

    Raises:
        RoundFailedError: every client's training diverged in a round.
    """
    federation = run.federation
    seed = derive_seed(run.seed, "federation")
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    local = _LocalSteps(attached, emulator.tokenizer.pad_token_id, run)
    clients = {
        organisation(number): encode_for_training(records, emulator.tokenizer, max_tokens=federation.max_tokens)
        for number, records in enumerate(partitions)
    }
    try:
        adapter = attached.state()
        with reporter.stage("rounds", steps=federation.rounds * federation.clients_per_round) as stage:
            for number in range(1, federation.rounds + 1):
                mean, accepted = FederatedMean(adapter), 0
                for client in select_cohort(clients, size=federation.clients_per_round, seed=seed, round_number=number):
                    attached.load(adapter)
                    accepted += local.add_to(mean, clients[client], derive_seed(seed, "local", number, client))
                    stage.advance()
                if not accepted:
                    raise RoundFailedError(f"training diverged at every client in round {number}")
                adapter, train_loss = mean.read()
                attached.load(adapter)
                stage.advance(0, loss=train_loss)
                yield TunedRound(number, adapter, train_loss)
    finally:
        attached.detach()


@dataclass(frozen=True)
class _LocalSteps:
    """What every client does with the adapter that it finds in the emulator."""

    attached: AttachedAdapter
    pad_token_id: int
    run: RunFile

    def add_to(self, mean: FederatedMean, examples: Sequence[EncodedExample], seed: int) -> bool:
        """Tunes the adapter and adds it to the mean, unless training diverged."""
        asked = self.run.federation
        result = train_adapter(
            self.attached,
            examples,
            LocalTraining(
                asked.local_steps,
                asked.batch_size,
                asked.learning_rate,
                asked.optimizer,
                gradient_checkpointing=asked.gradient_checkpointing,
            ),
            pad_token_id=self.pad_token_id,
            seed=seed,
            reporter=SilentReporter(),
        )
        state = self.attached.state()
        if has_diverged(result, state):
            return False
        mean.add(state, num_examples=result.num_examples, train_loss=result.mean_loss)
        return True
