from collections import Counter

from scaleot_core.federation.cohort import select_cohort

NAMES = ("d", "a", "c", "b", "e")


def test_the_cohort_depends_on_seed_round_and_names_and_not_on_their_order() -> None:
    cohort = select_cohort(NAMES, size=3, seed=1, round_number=2)
    assert cohort == select_cohort(sorted(NAMES), size=3, seed=1, round_number=2)
    assert cohort == tuple(sorted(cohort))
    assert len({select_cohort(NAMES, size=3, seed=1, round_number=i) for i in range(20)}) > 3


def test_a_cohort_is_no_larger_than_the_clients_there_are() -> None:
    assert select_cohort(NAMES, size=9, seed=0, round_number=1) == tuple(sorted(NAMES))
    assert select_cohort((), size=9, seed=0, round_number=1) == ()


def test_every_client_is_drawn_about_equally_often() -> None:
    drawn = Counter(name for i in range(2_000) for name in select_cohort(NAMES, size=2, seed=0, round_number=i))
    assert all(700 < drawn[name] < 900 for name in NAMES)
