"""The one-run audit: canaries by secret coins, the real mechanism, and what its releases tell of the coins.

A proof says that epsilon is at most so much; an audit says that it is at least so much, with a confidence, because an
attack got that far. It cannot prove a claim. It can refute one: noise that anybody can repeat, noise too small, a sum
that is not clipped.

What is audited is the mechanism's own ``step``: sampling, clipping, lattice and noise, every step of a round at one
adapter, since moving it is public arithmetic on what was released. What ``release`` adds to that, and the run's own
sample rate and rounds, are not. The auditor knows all that is public: canaries, model, settings, the law of the noise.
And it tries whether the noise repeats: it runs the mechanism on no record, twice, from one public state of the
generators of PyTorch, NumPy and Python. Noise that comes out twice alike is no secret, and is subtracted.

From the paper the attack differs in its scores. The paper's is the inner product of the release with each canary's
vector; here the other canaries' part in it is taken out by least squares, which is the same where vectors are
orthogonal and stronger where they are not. Any score will do for the bound: a better one only finds more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleot_core.errors import InputError
from scaleot_core.figures import no_less, no_more
from scaleot_core.privacy.audit_bound import check_confidence, lower_bound
from scaleot_core.privacy.canaries import AuditedMechanism, Vectors, canary_vectors, max_grad_norm, released_vector
from scaleot_core.privacy.public_generators import public_generators
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.secret_random import Coins, SecretSource
from scaleot_core.privacy.units import PrivacyScope, scope_of, unit_of
from scaleot_core.progress import Reporter

GUESSED_SHARE = 0.2
"""Of the canaries; the least certain ones are abstained from. Fixed beforehand, as the bound needs it."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found, beside what was claimed."""

    mechanism: str
    canaries: int
    guesses: int
    right: int
    """Guesses that were."""
    noise_repeats: bool
    """Whether the same noise came out of two runs."""
    lower_bound: float
    """Epsilon is at least so much, with the confidence."""
    confidence: float
    claimed_epsilon: float
    delta: float
    scope: PrivacyScope
    """What both epsilons are about."""

    @property
    def refutes_the_claim(self) -> bool:
        """Whether the mechanism is not as private as claimed; wrongly so in at most 1 - confidence of audits.

        Noise that repeats follows from what is public, and hides nothing, whatever this attack made of it.
        """
        return self.noise_repeats or self.lower_bound > self.claimed_epsilon

    @property
    def most(self) -> float:
        """The lower bound of an audit whose every guess is right: a claim above it cannot be refuted."""
        return self._bound(self.guesses)

    def sentence(self) -> str:
        """Returns the finding in words, for people."""
        found = (
            f"{self.right} of {self.guesses} guesses about {self.canaries} canaries were right: with confidence "
            f"{self.confidence:g}, epsilon of {self.mechanism} is at least {no_more(self.lower_bound, digits=3)} "
            f"{self.scope.at_delta(self.delta)}; claimed is {no_less(self.claimed_epsilon)}."
        )
        if self.noise_repeats:
            found += " Its noise came out the same twice: it is no secret."
        if self.refutes_the_claim:
            return f"{found} That refutes the claim."
        found += " That does not refute the claim, and proves nothing: another attack may find more."
        if self.most <= self.claimed_epsilon:
            most = no_more(self.most, digits=3)
            found += f" No such audit could refute it: {self.guesses} right guesses would give {most}."
        return found

    def to_json(self) -> Mapping[str, Any]:
        """Returns the report as JSON values."""
        figures = {name: value for name, value in vars(self).items() if name != "scope"}
        return {**figures, **self.scope.to_json(), "most": self.most, "refutes_the_claim": self.refutes_the_claim}

    def _bound(self, right: int) -> float:
        return lower_bound(self.delta, self.confidence, canaries=self.canaries, guesses=self.guesses, right=right)


def audit_mechanism(
    mechanism: AuditedMechanism,
    task: LocalTask,
    *,
    claimed_epsilon: float,
    delta: float,
    confidence: float,
    reporter: Reporter,
    make_secret: Callable[[], SecretSource] = SecretSource,
) -> AuditReport:
    """Audits a round of a mechanism on a task's examples, all of them canaries (``canaries.canary_task``).

    ``make_secret`` makes the source that a build draws its sample and its noise from, once for each run.

    Raises:
        InputError: there are fewer than 10 canaries, or a number is out of range.
    """
    check_confidence(confidence)
    count = len(task.examples)
    guesses = 2 * int(count * GUESSED_SHARE / 2)
    if guesses < 2:
        raise InputError(f"an audit: expected 10 canaries or more, and a thousand to find much; got {count}")
    vectors = canary_vectors(mechanism, task)
    coins = SecretSource().coins(0.5, count)
    included = [canary for canary, is_in in zip(task.examples, coins.tolist(), strict=True) if is_in]
    released = _releases(mechanism, replace(task, examples=included), make_secret)
    noise = repeated_noise(mechanism, task, make_secret)
    scores = _scores(mechanism, vectors, released, noise, reporter)
    right = count_right(scores, coins, guesses)
    return AuditReport(
        mechanism=mechanism.name,
        canaries=count,
        guesses=guesses,
        right=right,
        noise_repeats=noise is not None,
        lower_bound=lower_bound(delta, confidence, canaries=count, guesses=guesses, right=right),
        confidence=confidence,
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        scope=scope_of(unit_of(mechanism.name), [mechanism.event().sample_rate]),
    )


def count_right(scores: Vectors, coins: Coins, guesses: int) -> int:
    """Returns how many are right if half of the guesses say "in" of the highest scores and half "out" of the lowest."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())


def repeated_noise(
    mechanism: AuditedMechanism, task: LocalTask, make_secret: Callable[[], SecretSource]
) -> list[Vectors] | None:
    """Returns the noise of every step if the mechanism, run twice on no record, releases the same; else ``None``."""
    once, again = (_releases(mechanism, replace(task, examples=()), make_secret) for _ in range(2))
    return once if all(np.array_equal(one, other) for one, other in zip(once, again, strict=True)) else None


def _releases(mechanism: AuditedMechanism, task: LocalTask, make_secret: Callable[[], SecretSource]) -> list[Vectors]:
    with public_generators():
        secret = make_secret()
        steps = range(mechanism.event().count)
        return [released_vector(mechanism, mechanism.step(task, index, secret)) for index in steps]


def _scores(
    mechanism: AuditedMechanism,
    vectors: Callable[[int], Vectors],
    released: list[Vectors],
    noise: list[Vectors] | None,
    reporter: Reporter,
) -> Vectors:
    """Returns the best linear estimate of the coins from all steps, up to a factor and a shift.

    With vectors v_i, coins b_i of mean 1/2 and variance 1/4, a step releases sum_i b_i v_i + noise. Over all steps the
    estimate that errs least is b = 1/2 + (G + ridge)^-1 (y - G 1/2), with the inner products G_ij = v_i v_j and
    y_i = v_i release, and a ridge of 4 noise variances. A Poisson sample adds its own variance to the noise's.
    """
    event, bound, count = mechanism.event(), max_grad_norm(mechanism), len(vectors(0))
    rate = event.sample_rate
    products, inner = np.zeros((count, count)), np.zeros(count)
    with reporter.stage("canaries", steps=len(released)) as stage:
        for index, release in enumerate(released):
            step = vectors(index)
            products += step @ step.T
            inner += step @ (release if noise is None else release - noise[index])
            stage.advance()
    variance = 0.0 if noise is not None else (event.law().stddev() * bound) ** 2
    sampling = rate * (1 - rate) / 2 * count * bound**2 / released[0].size
    ridge = 4 * (variance + sampling) / rate**2 + _least_ridge(products)
    estimate: Vectors = np.linalg.solve(products + ridge * np.eye(count), inner / rate - products.sum(axis=1) / 2)
    return estimate


def _least_ridge(products: NDArray[np.float64]) -> float:
    """Returns what keeps the system solvable where the steps have fewer coordinates than there are canaries."""
    return 1e-6 * float(np.trace(products)) / len(products)
