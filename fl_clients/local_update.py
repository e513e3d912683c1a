"""What a data owner's round comes to, and how it comes to it under a mechanism of privacy: through the ledger alone."""

from collections.abc import Sequence
from datetime import datetime

from fl_clients.own_ledger import check_has_ledger, ledger_terms, own_privacy
from fl_clients.policy import DataOwnerFile, OwnPrivacy, PermittedInstructions
from fl_clients.releases import LocalUpdate
from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.errors import InputError, InstructionsRefusedError
from scaleot_core.federation.messages import Instructions, PrivateRelease
from scaleot_core.federation.validation import encode_tensors
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger import Ledger, Reservation, open_ledger
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.private_rounds import (
    AskedTraining,
    PrivacyBudget,
    asks_for,
    mechanism_for_round,
    round_event,
)
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import Reporter
from scaleot_core.seeds import batches_seed
from scaleot_core.training.data import EncodedExample, Record


def private_update(
    attached: AttachedAdapter,
    examples: Sequence[EncodedExample],
    records: Sequence[Record],
    own: DataOwnerFile,
    permitted: PermittedInstructions,
    *,
    pad_token_id: int,
    now: datetime,
    reporter: Reporter,
) -> LocalUpdate:
    """Tunes the attached adapter under the mechanism that was asked for, and returns its release.

    ``examples`` are one of each record. What is said of their number, and sampled and weighed by, is what the data
    owner's file declares. A round that was released before is not tuned again: its bytes are returned as they left, or
    would have.

    Raises:
        InputError: the server asks for no mechanism, its settings do not go together, or the ledger was never made.
        InstructionsRefusedError: the round was released on another adapter, or the release holds NaN or infinity.
        BudgetExhaustedError: the planned rounds, or this one, pass the budget.
        LedgerError: the ledger cannot be believed or is of another data set.
        OutputError: the ledger cannot be written.
    """
    instructions, privacy = permitted.instructions, own_privacy(own)
    asked = _asked_training(instructions)
    check_has_ledger(privacy)
    terms = ledger_terms(privacy, records)
    with open_ledger(privacy.ledger, terms, epsilon_of=epsilon_of, now=now, mirror=privacy.ledger_mirror) as ledger:
        if instructions.ledger_head is not None:
            ledger.check_not_rolled_back(instructions.ledger_head)
        if ledger.chain.budget_epsilon != privacy.epsilon:
            ledger.change_budget(privacy.epsilon, now=now)
        blob = ledger.released(instructions.run, instructions.round)
        if blob is None:
            event = _event_of_run(ledger, instructions.run, asked, privacy)
            mechanism = mechanism_for_round(
                asked,
                event,
                round_number=instructions.round,
                batch_seed=batches_seed(asked.seed, instructions.round, own.organisation),
                recomputes_activations=own.gradient_checkpointing,
            )
            way = mechanism.choose_way(attached, pad_token_id=pad_token_id)
            reporter.note(f"round {instructions.round}, {asked.privacy.mechanism}: {way.reason}")
            task = LocalTask(attached, examples, pad_token_id, way)
            blob = _release(ledger, mechanism, task, instructions, now=now, reporter=reporter)
        event = _charged_event(ledger, instructions)
        head = ledger.head
    said = PrivateRelease(
        noise=event.noise,
        parameters=dict(event.parameters),
        sample_rate=event.sample_rate,
        count=event.count,
        ledger_head=head,
    )
    return LocalUpdate(blob, privacy.declared_records, privacy=said)


def _release(
    ledger: Ledger,
    mechanism: Mechanism,
    task: LocalTask,
    instructions: Instructions,
    *,
    now: datetime,
    reporter: Reporter,
) -> bytes:
    """Charges, tunes, stores, in this order; returns the bytes that may leave."""
    reservations: list[Reservation] = []

    def charge(event: PrivacyEvent) -> None:
        statement = _statement(instructions)
        reservations.append(ledger.reserve(instructions.run, instructions.round, (event,), statement, now=now))

    release = mechanism.release(task, secret=SecretSource(), charge=charge, reporter=reporter)
    if not all(bool(tensor.isfinite().all()) for tensor in release.tensors.values()):
        raise InstructionsRefusedError("training.diverged", expected="finite values", got="NaN or infinity")
    blob = encode_tensors(release.tensors)
    ledger.commit(reservations[0], blob, now=now)
    return blob


def _event_of_run(ledger: Ledger, run: str, asked: AskedTraining, privacy: OwnPrivacy) -> PrivacyEvent:
    """Returns what every round of a run costs: fixed by its first, whatever was released since.

    Privacy-loss distributions compose mechanisms that are fixed beforehand; a server that changed them by what it has
    seen would get more than the ledger says.

    Raises:
        InstructionsRefusedError: the round would be of another kind than the run's first.
    """
    num_records = privacy.declared_records
    charged = [reserved.events[0] for reserved in ledger.chain.reserved if reserved.run == run]
    if not charged:
        return round_event(asked, num_records, _budget(privacy), _spent_elsewhere(ledger, run))
    if not asks_for(asked, charged[0], num_records):
        raise InstructionsRefusedError(
            "privacy.changed",
            expected=f"{charged[0].count} releases a round at sample rate {charged[0].sample_rate:g}, as at first",
            got=f"{asked.privacy.mechanism} with {asked.releases_per_round} in batches of {asked.batch_size}",
        )
    return charged[0]


def _charged_event(ledger: Ledger, instructions: Instructions) -> PrivacyEvent:
    """Returns what the round's release was charged as.

    Raises:
        InstructionsRefusedError: it was released for another request, on another adapter for example.
    """
    key = (instructions.run, instructions.round)
    *_, reserved = (entry for entry in ledger.chain.reserved if (entry.run, entry.round) == key)
    if reserved.statement != _statement(instructions):
        raise InstructionsRefusedError(
            "privacy.released", expected="a round that was not released, or the same request", got="another request"
        )
    return reserved.events[0]


def _statement(instructions: Instructions) -> str:
    mechanism = "none" if instructions.privacy is None else instructions.privacy.mechanism
    return f"{mechanism} update of the adapter {instructions.base_sha256}"


def _spent_elsewhere(ledger: Ledger, run: str) -> tuple[PrivacyEvent, ...]:
    """Returns what other runs were charged: the same in every round of a run, as long as none runs beside it."""
    return tuple(event for reserved in ledger.chain.reserved if reserved.run != run for event in reserved.events)


def _asked_training(instructions: Instructions) -> AskedTraining:
    if instructions.privacy is None:
        raise InputError("a private update needs a mechanism in the instructions")
    return AskedTraining(
        instructions.privacy,
        instructions.local_steps,
        instructions.batch_size,
        instructions.learning_rate,
        instructions.optimizer,
        instructions.seed,
    )


def _budget(privacy: OwnPrivacy) -> PrivacyBudget:
    return PrivacyBudget(privacy.epsilon, privacy.delta, privacy.noise_multiplier)
