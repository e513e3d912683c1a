"""A closed round's updates become its adapter: from what is stored alone, so that a crash has it done again."""

import secrets
from collections.abc import Iterator

import torch
from torch import Tensor

from fl_server.reception import stated_update
from fl_server.round_state import Round, RoundState
from fl_server.server import Server
from scaleot_core.errors import StoreError, UpdateRejectedError
from scaleot_core.federation.averaging import FederationState, RoundOutcome, advance
from scaleot_core.federation.behaviour import flags_of, sketch_of
from scaleot_core.federation.validation import AdapterUpdate, BoundUpdate, validate_update
from scaleot_core.privacy.client_level import advance_with_noise
from scaleot_core.privacy.private_rounds import advance_by_scalars
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.shapes import TensorDict


class Aggregation:
    """The aggregation of one round; of each update only a sketch stays in memory, unless the rule holds them all."""

    def __init__(self, server: Server, current: Round) -> None:
        self._server, self._round = server, current
        self._base = server.adapter(current.base_sha256)
        self._seed = secrets.randbits(53)  # nobody can aim at what the sketches do not see
        self._sketches: dict[str, Tensor] = {}

    def outcome(self) -> RoundOutcome:
        """Returns what the accepted updates come to: the same bytes for the same updates, but for the server's noise.

        Noise drawn anew after a crash is no second release: nobody was shown what the first made.

        Raises:
            RoundFailedError: there are fewer than the rule needs.
            StoreError: a stored update is damaged.
        """
        settings, state = self._server.settings, FederationState(self._round.number - 1, self._base)
        asked = settings.asked_training
        if asked is not None and self._server.sends_scalars:
            return advance_by_scalars(state, self._updates(), asked)
        if settings.client_level is not None:
            return advance_with_noise(state, self._updates(), settings.client_level, SecretSource())
        return advance(state, self._updates(), settings.rule)

    def flags(self) -> dict[str, tuple[str, ...]]:
        """Returns what is odd about the updates beside one another; to be asked after ``outcome``.

        Nothing where the server's noise hides a client: one client's update may change what is said of another's.
        """
        if self._server.settings.client_level is not None:
            return {}
        flags = flags_of(self._sketches, self._last_step())
        return {client: tuple(flag.value for flag in found) for client, found in flags.items()}

    def _updates(self) -> Iterator[AdapterUpdate]:
        for client, answer in self._round.accepted.items():
            blob = self._server.store.blobs.get(answer.update_sha256 or "")
            assignment = self._round.assignment(client, answer.attempt)
            instructions = self._server.instructions(
                self._round, client, attempt=assignment.attempt, nonce=assignment.nonce
            )
            try:
                expected = self._server.expected(instructions, self._base)
                update = validate_update(BoundUpdate(stated_update(answer.envelope), blob), expected)
            except UpdateRejectedError as error:  # it was accepted once: something else has changed
                raise StoreError(f"the update of {client} in round {self._round.number}", str(error)) from error
            start = None if self._server.sends_scalars else self._base
            self._sketches[client] = sketch_of(update.state, start, seed=self._seed)
            yield update

    def _last_step(self) -> Tensor | None:
        before = self._server.store.round(self._round.number - 1)
        if self._server.sends_scalars or before is None or before.state is not RoundState.COMMITTED:
            return None
        return sketch_of(self._base, self._server.adapter(before.base_sha256), seed=self._seed)


def is_finite(adapter: TensorDict) -> bool:
    """Whether an adapter holds numbers only."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in adapter.values())
