import pytest

from scaleot_core.compression.rank_correlation import ranks, spearman


def test_the_highest_score_has_rank_one_and_ties_share_the_mean_of_their_places() -> None:
    assert ranks([0.5, 2.0, -1.0]) == (2, 1, 3)
    assert ranks([3.0, 1.0, 3.0, 3.0]) == (2, 4, 2, 2)
    assert ranks([1.0, 1.0, 0.0]) == (1.5, 1.5, 3)


def test_equals_the_formula_without_ties() -> None:
    """Ranks 1..5 against 2, 1, 4, 3, 5: squared differences sum to 4, so rho = 1 - 6 * 4 / (5 * 24) = 0.8."""
    assert spearman([5.0, 4.0, 3.0, 2.0, 1.0], [40.0, 50.0, 20.0, 30.0, 10.0]) == pytest.approx(0.8)


def test_equals_a_hand_computed_value_with_ties() -> None:
    """Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 2.25 + 0 + 0 + 2.25 = 4.5, variances 4.5 and 5."""
    assert spearman([9.0, 5.0, 5.0, 1.0], [8.0, 6.0, 4.0, 2.0]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_runs_from_one_for_the_same_order_to_minus_one_for_the_reverse() -> None:
    assert spearman([1.0, 20.0, 300.0], [-3.0, -2.0, 0.0]) == pytest.approx(1)
    assert spearman([1.0, 20.0, 300.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)


def test_is_undefined_where_all_scores_are_equal() -> None:
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
