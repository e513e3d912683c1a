"""What the rounds of a run need at hand, and nothing of what happens in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load

from fl_server.blob_store import Quarantine
from fl_server.canary import Canary
from fl_server.exchange import Exchange
from fl_server.membership import Membership
from fl_server.owner import OwnerRunSettings
from fl_server.reception import member_key
from fl_server.roster import Roster
from fl_server.round_state import Answer, Round
from fl_server.round_store import RoundStore
from fl_server.run_key import RunVoice
from scaleot_core.errors import MalformedStatementError, Reason, UpdateRejectedError
from scaleot_core.federation.messages import (
    Instructions,
    PrivateRelease,
    UpdateStatement,
    decode_statement,
    digest_of,
    encode_statement,
)
from scaleot_core.federation.signing import claimed
from scaleot_core.federation.validation import AdapterSchema, ExpectedUpdate, decode_tensors
from scaleot_core.privacy.private_rounds import expected_scalars
from scaleot_core.progress import Stage
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class Server:
    """The server of one run."""

    directory: Path
    settings: OwnerRunSettings
    exchange: Exchange
    roster: Roster
    membership: Membership
    voice: RunVoice
    store: RoundStore
    quarantine: Quarantine
    schema: AdapterSchema
    """Of the run's adapter."""
    canary: Canary | None
    """``None`` measures nothing."""
    stage: Stage

    @property
    def sends_scalars(self) -> bool:
        """Whether updates are scalars for public directions, and no adapters."""
        return self.settings.privacy is not None and self.settings.privacy.sends_scalars

    def adapter(self, sha256: str) -> TensorDict:
        """Returns a stored adapter; raises ``StoreError`` if it is missing or damaged."""
        return decode_tensors(self.store.blobs.get(sha256), self.schema)

    def adapter_as_it_is(self, sha256: str) -> TensorDict:
        """Returns a stored adapter of our own making, whose numbers nobody has looked at yet."""
        return load(self.store.blobs.get(sha256))

    def instructions(self, current: Round, client: str, *, attempt: int, nonce: str) -> Instructions:
        """Returns what one organisation is asked in a round: the same for the same attempt, after a crash too."""
        settings = self.settings
        return Instructions(
            run=settings.run,
            round=current.number,
            attempt=attempt,
            nonce=nonce,
            client=client,
            base_sha256=current.base_sha256,
            bundle_digest=settings.bundle_digest,
            adapter=settings.adapter,
            local_steps=settings.local_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            optimizer=settings.optimizer,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            privacy=settings.privacy,
            ledger_head=self._ledger_head(current, client, attempt=attempt),
        )

    def _ledger_head(self, current: Round, client: str, *, attempt: int) -> str | None:
        """Returns the last head of an organisation's ledger that it signed before this attempt.

        Whatever became of the update: its noise has left. The head of one that was refused for its ledger is left out,
        as it may be of the very copy that was put back.
        """
        earlier = [answer for answer in current.answers if answer.client == client and answer.attempt < attempt]
        heads = [*self._ledger_heads(client, before=current.number), *_signed_heads(earlier)]
        return heads[-1] if heads else None

    def check_ledger_went_on(self, client: str, release: PrivateRelease, *, round_number: int) -> None:
        """Checks that an organisation's ledger has another head than it signed in any earlier round of the run.

        Every round is charged, so each has a head of its own: one that was seen before is of a ledger that was put
        back, or that this round was not charged to. A head says nothing of where it stands, so that a ledger that was
        put back and written on is noticed by the organisation itself alone, which gets its last head back.

        Raises:
            UpdateRejectedError: it has not (LEDGER).
        """
        if release.ledger_head in self._ledger_heads(client, before=round_number):
            raise UpdateRejectedError(
                Reason.LEDGER, client=client, expected="a ledger with a line for this round", got="a head seen before"
            )

    def _ledger_heads(self, client: str, *, before: int) -> list[str]:
        if self.settings.privacy is None:  # nobody has a ledger
            return []
        return _signed_heads(self.store.answers_of(client, before=before))

    def expected(self, instructions: Instructions, base: TensorDict) -> ExpectedUpdate:
        """Returns what an update must be.

        Raises:
            UpdateRejectedError: nobody has approved the organisation, or it is revoked.
        """
        signer = member_key(self.membership, instructions.client, instructions.round)
        settings, asked, scalars = self.settings, self.settings.asked_training, None
        if asked is not None and self.sends_scalars:
            adapter_size = sum(tensor.numel() for tensor in base.values())
            scalars = expected_scalars(asked, instructions.round, adapter_size)
        return ExpectedUpdate(
            run=settings.run,
            round_number=instructions.round,
            attempt=instructions.attempt,
            nonce=instructions.nonce,
            client=instructions.client,
            signer=signer,
            instructions_sha256=digest_of(encode_statement(instructions)),
            base=base,
            base_sha256=instructions.base_sha256,
            bundle_digest=settings.bundle_digest,
            max_examples=min(settings.max_examples, self.membership.max_examples(instructions.client)),
            max_update_norm=settings.max_update_norm,
            is_private=asked is not None,
            scalars=scalars,
        )


def _signed_heads(answers: Iterable[Answer]) -> list[str]:
    """Returns the heads in an organisation's signed updates, without those that were refused for their ledger."""
    envelopes = [one.envelope for one in answers if one.envelope and one.code is not Reason.LEDGER]
    releases = [update.privacy for update in map(_update_in, envelopes) if update is not None]
    return [release.ledger_head for release in releases if release is not None]


def _update_in(envelope: bytes) -> UpdateStatement | None:
    """Returns what a signed statement says, if it is an update and no refusal; it was verified when it came."""
    try:
        return decode_statement(claimed(envelope), UpdateStatement)
    except MalformedStatementError:
        return None
