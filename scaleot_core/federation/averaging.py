"""The server's arithmetic: accepted updates become the next round's adapter."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch

from scaleot_core.adapters.adapter import AdapterSpec
from scaleot_core.errors import InputError, RoundFailedError
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.shapes import TensorDict


class Aggregation(StrEnum):
    """How updates become one adapter."""

    FEDAVG = "fedavg"
    """The example-weighted mean of every tensor (McMahan et al., 2017)."""
    FFA = "ffa"
    """The same mean where LoRA's A is frozen, so that the mean of the products B A is exact (Sun et al., 2024)."""


@dataclass(frozen=True)
class FederationState:
    """What the server holds between two rounds."""

    rounds_done: int
    adapter: TensorDict


@dataclass(frozen=True)
class RoundOutcome:
    """What a round gave."""

    state: FederationState
    clients: tuple[str, ...]
    """Those whose updates went in, in the order of aggregation."""
    train_loss: float | None
    """The example-weighted mean over the clients; none where no loss may leave them."""


def check_aggregation(aggregation: Aggregation, spec: AdapterSpec) -> None:
    """Checks that ``ffa`` stands with a frozen A, and ``fedavg`` with a trained one.

    Raises:
        InputError: they do not go together.
    """
    if (aggregation is Aggregation.FFA) != spec.freezes_down:
        wanted = "frozen" if aggregation is Aggregation.FFA else "trained"
        raise InputError(f"aggregation {aggregation.value!r} needs LoRA's A {wanted}; the adapter has it otherwise")


def advance(state: FederationState, updates: Iterable[AdapterUpdate]) -> RoundOutcome:
    """Returns the next state: the mean of the updates, each weighted by its number of examples.

    Updates are taken one by one and dropped at once, so that memory does not grow with their number. Sums are in
    float64 in the order given: the same updates in the same order give the same result to the last digit.

    Raises:
        RoundFailedError: there is no update.
    """
    mean = FederatedMean(state.adapter)
    clients: list[str] = []
    for update in updates:
        mean.add(update.state, num_examples=update.num_examples, train_loss=update.train_loss)
        clients.append(update.client)
    if not clients:
        raise RoundFailedError(f"round {state.rounds_done + 1} has no accepted update")
    adapter, train_loss = mean.read()
    return RoundOutcome(FederationState(state.rounds_done + 1, adapter), tuple(clients), train_loss)


class FederatedMean:
    """The example-weighted mean of adapters and losses, in float64, each dropped as soon as it is added."""

    def __init__(self, like: TensorDict) -> None:
        self._sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
        self._examples = 0
        self._loss: float | None = 0.0

    def add(self, state: TensorDict, *, num_examples: int, train_loss: float | None) -> None:
        """Counts one client's adapter, on the CPU, and its loss; without one client's loss there is no mean of it."""
        for name, total in self._sums.items():
            total.add_(state[name].double(), alpha=num_examples)
        self._examples += num_examples
        if train_loss is None or self._loss is None:
            self._loss = None
        else:
            self._loss += num_examples * train_loss

    def read(self) -> tuple[TensorDict, float | None]:
        """Returns the means of what was added, at least one client's; the adapter in float32."""
        mean = {name: (total / self._examples).float() for name, total in self._sums.items()}
        return mean, None if self._loss is None else self._loss / self._examples
