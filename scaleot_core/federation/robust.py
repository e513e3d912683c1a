"""Aggregation that a minority of hostile clients cannot steer.

Every client counts alike. Its number of examples is a claim that nobody can check, and under a weighted rule one claim
may buy a majority; so unlike ``fedavg`` none of these rules weighs by it. All need the updates at once and take them
as they are held, in float32; what they compute is in float64, and beside the updates they need little memory: a slice
of all of them at a time.

Each works on ``states``, the clients' adapters in an order that is the same whenever the clients are, and returns the
adapter in float32.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from scaleot_core.errors import RoundFailedError
from scaleot_core.shapes import ClientWeights, Matrix, TensorDict

SMOOTHING = 1e-5
"""A client nearer to the geometric median than this share of the median client's step counts as that far away.

Inner products in float64 tell distances apart down to about 1e-8 of the step.
"""

_MAX_ITERATIONS = 2_000
_SETTLED = 1e-6
"""Of the smoothing: a step of Weiszfeld's that is shorter ends the search."""
_LEAST_DISTANCE = 1e-150
"""Its square and the sum of its inverses are still numbers."""
_SLICE = 1 << 21
"""Numbers at a time, of all clients together: 16 MiB in float64 however many there are."""


def median(states: Sequence[TensorDict]) -> TensorDict:
    """Returns the median of every number; of an even count of clients, the mean of the middle two.

    Less than half of the clients, whatever they send, leave every number between two honest ones. The coordinate-wise
    median of Yin et al. (2018), algorithm 1, option I.
    """
    return _mean_of_the_middle(states, (len(states) - 1) // 2)


def trimmed_mean(states: Sequence[TensorDict], share: float) -> TensorDict:
    """Returns the mean of every number without its ``share`` least and its ``share`` largest, above 0 and below 1/2.

    Hostile clients up to ``share`` of all leave every number between two honest ones. Yin et al. (2018), algorithm 1,
    option II. Unlike there ``share`` of the clients need not be whole: it is rounded up, so that it covers what it
    says, but one or two values stay.
    """
    clients = len(states)
    trimmed = math.ceil(share * clients - 1e-9)  # 0.1 * 30 is a little more than 3
    return _mean_of_the_middle(states, min(trimmed, (clients - 1) // 2))


def multi_krum(
    states: Sequence[TensorDict], base: TensorDict, assumed_attackers: int
) -> tuple[TensorDict, list[float]]:
    """Returns the mean of the n - f adapters whose n - f - 2 nearest others are nearest, and each client's share in it.

    f is ``assumed_attackers``. Multi-Krum of Blanchard et al. (2017), section 4, whose m is n - f here: every client
    that need not be hostile. Of equal scores the earlier client is taken.

    Raises:
        RoundFailedError: n is less than 2 f + 3.
    """
    clients = len(states)
    check_clients(clients, assumed_attackers)
    gram = gram_matrix(states, base)
    squares = gram.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * gram
    distances.fill_diagonal_(math.inf)
    scores = distances.sort(dim=1).values[:, : clients - assumed_attackers - 2].sum(dim=1)
    chosen = scores.sort(stable=True).indices[: clients - assumed_attackers].tolist()
    shares = [1 / len(chosen) if number in chosen else 0.0 for number in range(clients)]
    return _weighted_sum(states, shares), shares


def least_clients(assumed_attackers: int) -> int:
    """Returns how many updates multi-Krum needs: 2 f + 3."""
    return 2 * assumed_attackers + 3


def check_clients(clients: int, assumed_attackers: int) -> None:
    """Checks that multi-Krum has updates enough; raises ``RoundFailedError`` if not."""
    if clients < (needed := least_clients(assumed_attackers)):
        raise RoundFailedError(
            f"multi_krum with {assumed_attackers} assumed attackers needs at least {needed} updates (2 f + 3), "
            f"got {clients}: lower federation.assumed_attackers or ask more clients"
        )


def geometric_median(states: Sequence[TensorDict], base: TensorDict) -> tuple[TensorDict, list[float]]:
    """Returns the point with the least sum of distances to all adapters, and each client's share in it.

    Less than half of the clients move it by a bounded multiple of the distance between honest ones. RFA of Pillutla et
    al. (2022), algorithm 2, by ``weiszfeld_weights``. Where that iterates over adapters, here it runs on their inner
    products: once computed, an iteration costs n x n numbers whatever the adapter's size.
    """
    shares = weiszfeld_weights(gram_matrix(states, base)).tolist()
    return _weighted_sum(states, shares), shares


def gram_matrix(states: Sequence[TensorDict], base: TensorDict) -> Matrix:
    """Returns the clients' inner products, (n, n), float64, of their steps from ``base`` over all tensors together."""
    gram = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name, start in base.items():
        for part in _slices(start, len(states)):
            steps = torch.stack([state[name].flatten()[part] for state in states]).double()
            steps -= start.flatten()[part].double()
            gram += steps @ steps.T
    return gram


def weiszfeld_weights(gram: Matrix) -> ClientWeights:
    """Returns weights, of sum 1, of the geometric median of n points with the inner products ``gram``.

    The smoothed Weiszfeld iteration of Pillutla et al. (2022), algorithm 2, from equal weights, in three ways unlike
    theirs. The smoothing nu is no fixed length but ``SMOOTHING`` of the median point's norm, which a hostile minority
    can neither stretch nor shrink beyond the honest norms. An iteration is cheap here, so it goes on until the point
    rests, not for a fixed number: attackers R times as far away as honest clients take about log R of them. And it
    starts at the mean, not at the round's base.
    """
    squares = gram.diagonal()
    nearest = max(SMOOTHING * math.sqrt(float(squares.median())), _LEAST_DISTANCE)
    weights = torch.full_like(squares, 1 / len(squares))
    for _ in range(_MAX_ITERATIONS):
        to_all = gram @ weights
        distances = (squares - 2 * to_all + weights @ to_all).clamp(min=0).sqrt()
        inverses = 1 / distances.clamp(min=nearest)
        before, weights = weights, inverses / inverses.sum()
        change = weights - before
        if float(change @ gram @ change) <= (_SETTLED * nearest) ** 2:
            break
    return weights


def _weighted_sum(states: Sequence[TensorDict], weights: Sequence[float]) -> TensorDict:
    sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in states[0].items()}
    for state, weight in zip(states, weights, strict=True):
        if weight:  # an attacker's infinity times nothing would be NaN
            for name, total in sums.items():
                total.add_(state[name].double(), alpha=weight)
    return {name: total.float() for name, total in sums.items()}


def _mean_of_the_middle(states: Sequence[TensorDict], trimmed: int) -> TensorDict:
    """Returns the mean of every number without its ``trimmed`` least and ``trimmed`` largest."""
    middle: TensorDict = {}
    for name, like in states[0].items():
        middle[name] = torch.empty(like.shape)
        for part in _slices(like, len(states)):
            values = torch.stack([state[name].flatten()[part] for state in states], dim=1).numpy()
            kept = np.sort(values, axis=1)[:, trimmed : len(states) - trimmed]  # several times faster than torch's
            middle[name].view(-1)[part] = torch.from_numpy(kept.mean(axis=1, dtype=np.float64)).float()
    return middle


def _slices(tensor: Tensor, clients: int) -> Iterator[slice]:
    numbers = max(_SLICE // clients, 1)
    for start in range(0, tensor.numel(), numbers):
        yield slice(start, start + numbers)
