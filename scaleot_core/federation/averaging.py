"""The server's arithmetic: accepted updates become the next round's adapter."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from scaleot_core.errors import RoundFailedError
from scaleot_core.federation.product import product_mean
from scaleot_core.federation.robust import geometric_median, median, multi_krum, trimmed_mean
from scaleot_core.federation.rules import MEAN, Aggregation, AggregationRule
from scaleot_core.federation.validation import AdapterUpdate
from scaleot_core.shapes import TensorDict


@dataclass(frozen=True)
class FederationState:
    """What the server holds between two rounds."""

    rounds_done: int
    adapter: TensorDict


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates became."""

    adapter: TensorDict
    """Float32."""
    train_loss: float | None
    """The example-weighted mean over the clients; none where no loss may leave them."""
    client_shares: dict[str, float] = field(default_factory=dict)
    """What each client counts for in the adapter, of ``multi_krum`` and ``geometric_median`` alone."""
    residual_share: float | None = None
    """What the rank had no room for, of the Frobenius norm of the mean of products; of ``product`` alone."""


@dataclass(frozen=True)
class RoundOutcome:
    """What a round gave."""

    state: FederationState
    clients: tuple[str, ...]
    """Those whose updates were taken, in the order of arrival."""
    train_loss: float | None
    """The example-weighted mean over the clients; none where no loss may leave them."""
    client_shares: dict[str, float] = field(default_factory=dict)
    """As ``Aggregate`` has it."""
    residual_share: float | None = None
    """As ``Aggregate`` has it."""


@runtime_checkable
class Aggregator(Protocol):
    """Takes the updates of a round one by one."""

    def add(self, client: str, state: TensorDict, *, num_examples: int, train_loss: float | None) -> None:
        """Counts one client's adapter, on the CPU, and its loss; without one client's loss there is no mean of it."""
        ...

    def read(self) -> Aggregate:
        """Returns what was added, at least one client's, as one adapter.

        Raises:
            RoundFailedError: the rule needs more clients.
        """
        ...


def aggregator_for(rule: AggregationRule, base: TensorDict) -> Aggregator:
    """Returns what makes one adapter of the updates to ``base``, the round's global adapter."""
    return FederatedMean(base) if rule.aggregation.is_mean else HeldUpdates(rule, base)


def advance(state: FederationState, updates: Iterable[AdapterUpdate], rule: AggregationRule = MEAN) -> RoundOutcome:
    """Returns the next state: by default the mean of the updates, each weighted by its number of examples.

    The same updates in the same order give the same result to the last digit. A mean takes them one by one and drops
    them at once, so that memory does not grow with their number; every other rule holds all of them, and no order
    changes its result.

    Raises:
        RoundFailedError: there is no update, or fewer than the rule needs.
    """
    aggregator = aggregator_for(rule, state.adapter)
    clients: list[str] = []
    for update in updates:
        aggregator.add(update.client, update.state, num_examples=update.num_examples, train_loss=update.train_loss)
        clients.append(update.client)
    if not clients:
        raise RoundFailedError(f"round {state.rounds_done + 1} has no accepted update")
    try:
        whole = aggregator.read()
    except RoundFailedError as error:
        raise RoundFailedError(f"round {state.rounds_done + 1}: {error}") from error
    following = FederationState(state.rounds_done + 1, whole.adapter)
    return RoundOutcome(following, tuple(clients), whole.train_loss, whole.client_shares, whole.residual_share)


class FederatedMean:
    """The example-weighted mean of adapters and losses, in float64, each dropped as soon as it is added."""

    def __init__(self, base: TensorDict) -> None:
        self._sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in base.items()}
        self._examples = 0
        self._loss = _MeanLoss()

    def add(self, client: str, state: TensorDict, *, num_examples: int, train_loss: float | None) -> None:
        """Adds one client's adapter and loss; its name makes no difference."""
        for name, total in self._sums.items():
            total.add_(state[name].double(), alpha=num_examples)
        self._examples += num_examples
        self._loss.add(num_examples, train_loss)

    def read(self) -> Aggregate:
        """Returns the means of what was added."""
        mean = {name: (total / self._examples).float() for name, total in self._sums.items()}
        return Aggregate(mean, self._loss.read())


class HeldUpdates:
    """Adapters that are held until all are there, once and as they came, in float32; sorted by client at the end."""

    def __init__(self, rule: AggregationRule, base: TensorDict) -> None:
        self._rule, self._base = rule, base
        self._states: dict[str, TensorDict] = {}
        self._examples: dict[str, int] = {}
        self._losses: dict[str, float | None] = {}

    def add(self, client: str, state: TensorDict, *, num_examples: int, train_loss: float | None) -> None:
        """Holds one client's adapter."""
        self._states[client], self._examples[client], self._losses[client] = state, num_examples, train_loss

    def read(self) -> Aggregate:
        """Returns what the rule makes of all of them."""
        clients = sorted(self._states)
        loss = _MeanLoss()
        for client in clients:
            loss.add(self._examples[client], self._losses[client])
        states, examples = [self._states[one] for one in clients], [self._examples[one] for one in clients]
        match self._rule.aggregation:
            case Aggregation.MEDIAN:
                return Aggregate(median(states), loss.read())
            case Aggregation.TRIMMED_MEAN:
                return Aggregate(trimmed_mean(states, self._rule.trimmed_share), loss.read())
            case Aggregation.MULTI_KRUM:
                adapter, shares = multi_krum(states, self._base, self._rule.assumed_attackers)
                return Aggregate(adapter, loss.read(), dict(zip(clients, shares, strict=True)))
            case Aggregation.GEOMETRIC_MEDIAN:
                adapter, shares = geometric_median(states, self._base)
                return Aggregate(adapter, loss.read(), dict(zip(clients, shares, strict=True)))
            case Aggregation.PRODUCT:
                adapter, residual_share = product_mean(states, examples, self._base)
                return Aggregate(adapter, loss.read(), residual_share=residual_share)
            case Aggregation.FEDAVG | Aggregation.FFA:
                raise ValueError(f"{self._rule.aggregation} is a mean: FederatedMean makes it without holding")


class _MeanLoss:
    """The example-weighted mean of losses; none as soon as one is missing."""

    def __init__(self) -> None:
        self._examples = 0
        self._sum: float | None = 0.0

    def add(self, num_examples: int, loss: float | None) -> None:
        self._examples += num_examples
        self._sum = None if loss is None or self._sum is None else self._sum + num_examples * loss

    def read(self) -> float | None:
        return None if self._sum is None else self._sum / self._examples
