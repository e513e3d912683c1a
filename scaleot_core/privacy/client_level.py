"""Privacy of whole clients by a server that they trust: it clips every update, adds them, and noises the sum.

Whoever sees the adapters learns little of any one client's part, however many records it has; the server sees every
update as it is. The noise is divided by the size of a cohort, so it takes many clients. No amplification by sampling is
claimed: who is in a cohort follows from the run's public seed, so a client is charged for every round that it is in.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.averaging import Aggregate, FederationState, RoundOutcome
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.privacy.calibration import NoiseBudget, calibrate, check_rounds_fit
from scaleot_core.privacy.clipping import clip_tensors
from scaleot_core.privacy.dp_sgd import add_gaussian
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.shapes import TensorDict

NAME = "client-level"
CLIENT_UNIT = ("one client with all its records, towards whoever sees the adapters but the trusted server", "zero-out")
"""Whose part is hidden, and a neighbouring federation: one client's updates are zero in every round."""


@dataclass(frozen=True)
class ClientLevelNoise:
    """What the server does to the updates of every round; all of it is public."""

    max_update_norm: float
    """The bound of one client's update, over all its tensors together."""
    noise_multiplier: float
    """The noise's standard deviation over that bound."""
    cohort_size: int
    """Clients asked in a round, the divisor: how many answer is not looked at."""

    def event(self, rounds: int) -> PrivacyEvent:
        """Returns what taking part in so many rounds costs a client."""
        return PrivacyEvent("gaussian", {"noise_multiplier": self.noise_multiplier}, 1.0, rounds)


class NoisedMean:
    """The clipped updates of a round, all of one weight, in float64, each dropped as soon as it is added."""

    def __init__(self, base: TensorDict, noise: ClientLevelNoise, secret: SecretSource) -> None:
        self._base, self._noise, self._secret = base, noise, secret
        self._sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in base.items()}
        self._clients: set[str] = set()

    def add(self, client: str, state: TensorDict, *, num_examples: int, train_loss: float | None) -> None:
        """Adds one client's clipped update; its examples and its loss are not looked at, they would be releases.

        Raises:
            ValueError: the client was added before, which would double its bound.
        """
        if client in self._clients:
            raise ValueError(f"{client} has an update in this round already")
        self._clients.add(client)
        update = {name: state[name].double() - base.double() for name, base in self._base.items()}
        for name, clipped in clip_tensors(update, self._noise.max_update_norm).items():
            self._sums[name] += clipped

    def read(self) -> Aggregate:
        """Returns the base moved by the noisy sum over the cohort's size; every call would draw new noise."""
        stddev = self._noise.noise_multiplier * self._noise.max_update_norm
        noisy = add_gaussian(self._sums, stddev, self._secret)
        moved = {name: (self._base[name].double() + noisy[name] / self._noise.cohort_size).float() for name in noisy}
        return Aggregate(moved, train_loss=None)


@lru_cache(maxsize=8)
def client_level_noise(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float | None,
    rounds: int,
    max_update_norm: float,
    cohort_size: int,
) -> ClientLevelNoise:
    """Returns the least noise with which a client that is in all ``rounds`` keeps the budget, or checks the one given.

    Raises:
        BudgetExhaustedError: with the noise given the rounds pass the budget; it says how many fit.
        InputError: no noise keeps the budget, or a number is out of range.
    """
    if noise_multiplier is None:
        whole_run = calibrate("gaussian", NoiseBudget(epsilon, delta, 1.0, rounds, unit=CLIENT_UNIT))
        return ClientLevelNoise(max_update_norm, whole_run.parameters["noise_multiplier"], cohort_size)
    noise = ClientLevelNoise(max_update_norm, noise_multiplier, cohort_size)
    check_rounds_fit((noise.event(1),), rounds, epsilon, delta, unit=CLIENT_UNIT)
    return noise


def advance_with_noise(
    state: FederationState, updates: Iterable[AdapterUpdate], noise: ClientLevelNoise, secret: SecretSource
) -> RoundOutcome:
    """Returns the next state: the base moved by the noisy mean of the clients' clipped updates.

    Raises:
        RoundFailedError: there is no update; then nothing is released.
    """
    mean = NoisedMean(state.adapter, noise, secret)
    clients: list[str] = []
    for update in updates:
        mean.add(update.client, update.state, num_examples=update.num_examples, train_loss=None)
        clients.append(update.client)
    if not clients:
        raise RoundFailedError(f"round {state.rounds_done + 1} has no accepted update")
    return RoundOutcome(FederationState(state.rounds_done + 1, mean.read().adapter), tuple(clients), None)
