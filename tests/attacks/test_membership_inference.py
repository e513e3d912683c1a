"""Membership inference from one client's update, by a server that knows all but the records.

Without privacy it tells nearly every member from a record that was never there. Under a mechanism the bound is a
theorem: if each candidate is in the data set by a coin of its own, the number of right guesses from one
``epsilon``-private release is no larger, in distribution, than that of as many coins which come up right with
probability ``exp(epsilon) / (1 + exp(epsilon))`` (Steinke, Nasr and Jagielski 2023; delta is so small here
that it does not count). So an advantage, true less false positive rate, is at most ``tanh(epsilon / 2)``, and the
tests allow the sampling error of one run in a million more.

So they tell noise that is missing or far too weak, and nothing finer: epsilon allows 62 % of right guesses here, 69 %
of a thousand with the sampling error, where normal noise leaves even the best attacker 52 % at so small a delta. Tried
with less and less noise, they fail when it is about 14 times too weak (``dp-sgd``), 20 times (``dpzero``), 120 times
(``update-gaussian``, whose bound is far more than one record's part of the update). Noise half as strong passes, as it
would with any number of guesses. That noise is as strong as it says is shown by its law, in ``tests/privacy``:
``test_dp_sgd``, ``test_noise``, ``test_dpzero``, ``test_update_noise``.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binom

from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.secret_random import Coins, SecretSource
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import SilentReporter
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.attacks import (
    Scores,
    area_under_curve,
    differences_at,
    forgotten_noise,
    gradient_scores,
    gradients_at,
    loss_drop_scores,
    scalar_scores,
)
from tests.support.private_tasks import (
    attached_adapter,
    noise_multiplier_for,
    private_task,
    random_examples,
    zeroth_order,
)

CANDIDATES = random_examples(20, seed=1, lengths=(5, 9))
NON_MEMBERS = random_examples(20, seed=2, lengths=(5, 9))
"""The attacker's own: they calibrate its threshold."""
FALSE_POSITIVE_RATE = 0.2
EPSILON, DELTA = 0.5, 1e-10
BOUND = 0.3
"""Below the norms of the gradients, so that every record moves a sum as far as it may."""


@pytest.mark.parametrize("adapter", ["lora", "layers"])
def test_both_attacks_tell_members_of_an_overtrained_plain_update(adapter: str) -> None:
    attached = attached_adapter(adapter=adapter)
    base = attached.state()
    members = CANDIDATES[:10]
    settings = LocalTraining(steps=60, batch_size=5, learning_rate=0.01)
    train_adapter(attached, members, settings, pad_token_id=0, seed=3, reporter=SilentReporter())
    update = attached.state()
    by_loss = loss_drop_scores(attached, base, update, CANDIDATES)
    by_gradient = gradient_scores(gradients_at(attached, base, CANDIDATES), base, update)
    for scores in (by_loss, by_gradient):
        assert area_under_curve(scores[: len(members)], scores[len(members) :]) > 0.9


def dp_sgd() -> DPSGD:
    return DPSGD(
        steps=2,
        sample_rate=1.0,
        expected_batch_size=10.0,
        max_grad_norm=BOUND,
        noise_multiplier=noise_multiplier_for(EPSILON, DELTA, sample_rate=1.0, count=2),
        learning_rate=0.1,
        optimizer="sgd",
    )


def dpzero() -> DPZero:
    settings = zeroth_order(
        steps=1, sample_rate=1.0, expected_batch_size=10.0, max_grad_norm=BOUND, num_directions=96, rows=20
    )
    noise = DPZero.calibrated_noise
    return DPZero(settings, noise_multiplier_for(EPSILON, DELTA, sample_rate=1.0, count=1, noise=noise))


def update_gaussian() -> UpdateGaussian:
    """With twice the noise: with and without a candidate are two data sets, whose updates lie two bounds apart."""
    training = LocalTraining(steps=4, batch_size=5, learning_rate=0.1, optimizer="sgd")
    noise_multiplier = noise_multiplier_for(EPSILON, DELTA, sample_rate=1.0, count=1)
    return UpdateGaussian(training, seed=0, max_update_norm=0.01, noise_multiplier=2 * noise_multiplier)


def shares_right(mechanism: Mechanism, secret: SecretSource, runs: int) -> dict[str, float]:
    """Plays releases and returns, of ``runs`` times the candidates, the share that each attack guesses right."""
    attached = attached_adapter(adapter="ffa-lora")
    base = attached.state()
    everyone = [*CANDIDATES, *NON_MEMBERS]
    if isinstance(mechanism, DPZero):
        by_gradient = partial(scalar_scores, differences_at(attached, base, mechanism.zeroth_order, everyone))
    else:
        by_gradient = partial(gradient_scores, gradients_at(attached, base, everyone), base)
    way = mechanism.choose_way(attached, pad_token_id=0)
    right = {"loss": 0, "gradient": 0}
    for run in range(runs):
        coins = torch.randint(2, (len(CANDIDATES),), generator=torch.Generator().manual_seed(run)).bool().tolist()
        members = [candidate for candidate, is_in in zip(CANDIDATES, coins, strict=True) if is_in]
        attached.load(base)
        task = private_task(attached, members, way)
        released = mechanism.release(task, secret=secret, charge=lambda _: None, reporter=SilentReporter()).tensors
        update = attached.state()  # for scalars too, since the server replays it
        by_loss = loss_drop_scores(attached, base, update, everyone)
        for attack, scores in (("loss", by_loss), ("gradient", by_gradient(released))):
            right[attack] += int(np.sum(calibrated_guesses(scores) == np.array(coins)))
    return {attack: count / (runs * len(CANDIDATES)) for attack, count in right.items()}


def calibrated_guesses(scores: Scores) -> Coins:
    """Returns whether each candidate scores above all but a few of the attacker's own records."""
    candidates, non_members = np.split(scores, [len(CANDIDATES)])
    guesses: Coins = candidates > np.quantile(non_members, 1 - FALSE_POSITIVE_RATE)
    return guesses


@pytest.mark.parametrize(("build", "runs"), [(dp_sgd, 50), (dpzero, 20), (update_gaussian, 50)])
def test_membership_is_guessed_no_better_than_epsilon_allows(build: Callable[[], Mechanism], runs: int) -> None:
    """And far better where the noise was forgotten, so that the bound would show it."""
    guesses = runs * len(CANDIDATES)
    most = binom.isf(1e-6, guesses, math.exp(EPSILON) / (1 + math.exp(EPSILON))) / guesses
    mechanism = build()
    with forgotten_noise() as secret:
        assert shares_right(mechanism, secret, runs=10)["gradient"] > most
    assert epsilon_of((mechanism.event(),), DELTA) <= EPSILON
    assert max(shares_right(mechanism, SecretSource(), runs).values()) <= most
