"""The one-run audit: its bound is right, right noise passes, and what is wrong with a build shows."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.audit import AuditReport, audit_mechanism, count_right, repeated_noise
from scaleot_core.privacy.audit_bound import chance_of_guesses, lower_bound
from scaleot_core.privacy.canaries import CANARY_NORM, canary_task, canary_vectors, check_can_be_audited
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.units import RECORD_UNIT, scope_of
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import SilentReporter
from scaleot_core.training.local import LocalTraining
from tests.support.audits import audited_dp_sgd, audited_dpzero, run_audit

DELTA = 1e-5


def exact_chance(epsilon: float, guesses: int, right: int) -> float:
    """The binomial tail by whole numbers and one power each."""
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    return math.fsum(
        math.comb(guesses, number) * chance**number * (1 - chance) ** (guesses - number)
        for number in range(right, guesses + 1)
    )


@pytest.mark.parametrize(("epsilon", "guesses", "right"), [(0.0, 10, 8), (1.0, 20, 17), (2.0, 50, 40), (0.5, 7, 0)])
def test_without_delta_the_chance_is_a_binomial_tail(epsilon: float, guesses: int, right: int) -> None:
    chance = chance_of_guesses(epsilon, 0.0, canaries=100, guesses=guesses, right=right)
    assert chance == pytest.approx(exact_chance(epsilon, guesses, right), rel=1e-12)


def test_the_chance_worked_out_by_hand() -> None:
    """Two guesses at epsilon 0: f(0) = 1, f(1) = 3/4, f(2) = 1/4; the quotients are 1/2 and 3/8, and the factor 2 m."""
    assert chance_of_guesses(0.0, 0.0, canaries=3, guesses=2, right=2) == pytest.approx(1 / 4)
    assert chance_of_guesses(0.0, 0.01, canaries=3, guesses=2, right=2) == pytest.approx(1 / 4 + 2 * 3 * 0.01 / 2)
    assert chance_of_guesses(0.0, 0.01, canaries=3, guesses=2, right=1) == pytest.approx(3 / 4 + 2 * 3 * 0.01 / 4)


def test_the_correction_for_delta_is_the_worst_quotient_over_all_canaries() -> None:
    canaries, guesses, right, epsilon = 60, 40, 33, 0.7
    tail = [exact_chance(epsilon, guesses, max(number, 0)) for number in range(right, right - canaries - 1, -1)]
    worst = max((tail[step] - tail[0]) / step for step in range(1, canaries + 1))
    expected = tail[0] + 2 * canaries * 1e-3 * worst
    chance = chance_of_guesses(epsilon, 1e-3, canaries=canaries, guesses=guesses, right=right)
    assert chance == pytest.approx(expected, rel=1e-10)


def test_all_guesses_right_give_the_bound_that_a_logarithm_gives() -> None:
    """Without delta: the chance q has q**r = 1 - confidence, and epsilon is log(q / (1 - q))."""
    chance = 0.05 ** (1 / 200)
    bound = lower_bound(0.0, 0.95, canaries=1000, guesses=200, right=200)
    assert bound == pytest.approx(math.log(chance / (1 - chance)), rel=1e-9)


def test_the_bound_grows_with_right_guesses_and_falls_with_confidence_and_delta() -> None:
    def bound(right: int, *, confidence: float = 0.95, delta: float = DELTA) -> float:
        return lower_bound(delta, confidence, canaries=1000, guesses=200, right=right)

    bounds = [bound(right) for right in range(0, 201, 4)]
    assert bounds[0] == bounds[25] == 0.0 and bounds[-1] == max(bounds)
    assert all(one <= other for one, other in pairwise(bounds)) and bounds[30] < bounds[40] < bounds[50]
    assert bound(180, confidence=0.999) < bound(180) < bound(180, delta=0.0)


def test_the_bound_itself_is_refuted_and_a_little_more_is_not() -> None:
    bound = lower_bound(DELTA, 0.95, canaries=1000, guesses=200, right=170)
    counts = {"canaries": 1000, "guesses": 200, "right": 170}
    assert chance_of_guesses(bound, DELTA, **counts) <= 0.05 < chance_of_guesses(bound + 1e-6, DELTA, **counts)


def test_of_randomised_response_the_bound_exceeds_the_true_epsilon_as_seldom_as_promised() -> None:
    generator = np.random.default_rng(3)
    epsilon, guesses, trials = 1.0, 100, 4000
    right = generator.binomial(guesses, math.exp(epsilon) / (1 + math.exp(epsilon)), size=trials).tolist()
    bounds = {number: lower_bound(0.0, 0.9, canaries=guesses, guesses=guesses, right=number) for number in set(right)}
    too_high = sum(bounds[number] > epsilon for number in right)
    assert stats.binom.sf(too_high - 1, trials, 0.1) > 1e-4  # not more often than one in ten
    assert too_high > 0.03 * trials  # and no idle bound either
    assert np.mean([bounds[number] for number in right]) > 0.5 * epsilon


@pytest.mark.parametrize(
    "changes", [{"right": 6}, {"guesses": 11, "right": 0}, {"guesses": 0, "right": 0}, {"right": -1}]
)
def test_impossible_counts_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="right <= guesses <= canaries"):
        chance_of_guesses(1.0, 0.0, **{"canaries": 10, "guesses": 5, "right": 5, **changes})


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match="confidence"):
        lower_bound(0.0, confidence, canaries=10, guesses=5, right=5)


def test_guesses_say_in_of_the_highest_scores_and_out_of_the_lowest() -> None:
    scores = np.array([5.0, -3.0, 0.1, 4.0, -2.0, 0.0])
    coins = np.array([True, False, False, False, False, True])
    assert count_right(scores, coins, 4) == 3


def report(**changes: float) -> AuditReport:
    values = {"canaries": 1000, "guesses": 200, "right": 120, "noise_repeats": False, "lower_bound": 0.3}
    fixed = {"confidence": 0.95, "claimed_epsilon": 1.0, "delta": DELTA, "scope": scope_of(RECORD_UNIT, [1.0])}
    return AuditReport(mechanism="dpzero", **{**values, **fixed, **changes})  # type: ignore[arg-type]


def test_a_bound_below_the_claim_proves_nothing_and_one_above_refutes_it() -> None:
    assert not report().refutes_the_claim and "proves nothing" in report().sentence()
    refuted = report(lower_bound=2.0, right=180)
    assert refuted.refutes_the_claim and "That refutes the claim." in refuted.sentence()
    assert json.loads(json.dumps(refuted.to_json()))["refutes_the_claim"] is True


def test_a_claim_that_no_such_audit_could_refute_is_told_so() -> None:
    assert 4.0 < report().most < 4.2
    assert "No such audit could refute it" in report(claimed_epsilon=8.0).sentence()
    assert "No such audit" not in report().sentence()


def test_canaries_add_vectors_of_the_full_norm_in_many_directions() -> None:
    mechanism = audited_dp_sgd(100)
    vectors = canary_vectors(mechanism, canary_task(mechanism, 100))(0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.full(100, CANARY_NORM))
    cosines = (vectors @ vectors.T)[np.triu_indices(100, 1)]
    assert abs(cosines.mean()) < 0.05 and cosines.std() < 0.2


def test_right_noise_passes_at_epsilon_1_with_a_thousand_canaries() -> None:
    found = run_audit(audited_dp_sgd(1000), 1000, SecretSource)
    assert found.claimed_epsilon == pytest.approx(1.0, rel=1e-3) and found.guesses == 200
    assert not found.noise_repeats and not found.refutes_the_claim


def test_noise_a_tenth_of_what_is_claimed_is_found_without_any_seed() -> None:
    """No repeated noise here: the attack alone sees through it."""
    weak = DPSGD(**{**vars(audited_dp_sgd(1000)), "noise_multiplier": audited_dp_sgd(1000).noise_multiplier / 10})
    found = audit_mechanism(
        weak, canary_task(weak, 1000), claimed_epsilon=1.0, delta=DELTA, confidence=0.95, reporter=SilentReporter()
    )
    assert not found.noise_repeats and found.refutes_the_claim
    assert found.lower_bound <= epsilon_of((weak.event(),), DELTA)


def test_secret_noise_does_not_repeat_and_the_audit_of_dpzero_passes() -> None:
    mechanism = audited_dpzero(250)
    assert repeated_noise(mechanism, canary_task(mechanism, 250), SecretSource) is None
    assert not run_audit(mechanism, 250, SecretSource).refutes_the_claim


def test_a_poisson_sample_hides_the_rest_and_the_audit_passes() -> None:
    assert not run_audit(audited_dp_sgd(400, sample_rate=0.5), 400, SecretSource).refutes_the_claim


def test_a_mechanism_whose_unit_is_a_whole_data_set_is_refused() -> None:
    mechanism = UpdateGaussian(LocalTraining(1, 1, 0.1, "sgd"), seed=0, max_update_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(InputError, match="whole data set"):
        check_can_be_audited(mechanism)


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(InputError, match="10 canaries or more"):
        run_audit(audited_dp_sgd(9), 9, SecretSource)


@pytest.mark.slow
def test_right_noise_of_dpzero_passes_at_epsilon_1_with_a_thousand_canaries() -> None:
    found = run_audit(audited_dpzero(1000), 1000, SecretSource)
    assert not found.noise_repeats and not found.refutes_the_claim
