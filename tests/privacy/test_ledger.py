import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from scaleot_core.errors import BudgetExhaustedError, InputError, LedgerError, OutputError
from scaleot_core.privacy.accountant import Accountant
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger import Reservation, open_ledger
from scaleot_core.privacy.ledger_file import create_ledger
from scaleot_core.privacy.ledger_lines import Committed, LedgerTerms, Reserved
from scaleot_core.privacy.ledger_summary import ReleaseStatus, summarise
from tests.support.ledgers import NOW, RUN, TERMS, gaussian, gaussian_epsilon, new_ledger, release


def test_a_restart_remembers_what_is_spent_and_sends_the_same_bytes_again(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        assert ledger.budget.spent == 0
        release(ledger, 1, b"first")
        release(ledger, 2, b"second", gaussian(7.0, 3), gaussian(30.0))
        spent, head = ledger.budget.spent, ledger.head
    assert spent == gaussian_epsilon([gaussian(), gaussian(7.0, 3), gaussian(30.0)], 1e-5)
    with place.open() as again:
        assert (again.budget.spent, again.head) == (spent, head)
        assert again.released(RUN, 1) == b"first"
        assert again.released(RUN, 2) == b"second"
        assert again.released(RUN, 3) is None
        assert again.released("run-2", 1) is None


def test_a_charge_is_on_the_disk_when_reserve_returns(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        reservation = ledger.reserve(RUN, 1, [gaussian(30.0, 25)], "adapter update", now=NOW)
        charged = place.read()  # another reader, while the writer has it open
        assert charged.events == (gaussian(30.0, 25),)
        assert charged.commit_of((RUN, 1)) is None
        ledger.commit(reservation, b"noised", now=NOW)
        assert isinstance(place.read().entries[-1], Committed)


def test_a_round_that_lost_its_noise_counts_and_is_reserved_anew(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        lost = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
    with place.open() as ledger:
        with pytest.raises(LedgerError, match="reserve the round anew"):
            ledger.commit(lost, b"noise of a process that is gone", now=NOW)
        release(ledger, 1, b"new noise")
        assert ledger.released(RUN, 1) == b"new noise"
        assert ledger.budget.spent == gaussian_epsilon([gaussian(count=2)], 1e-5)


def test_a_newer_reservation_of_a_round_ends_the_older_one(tmp_path: Path) -> None:
    with new_ledger(tmp_path).open() as ledger:
        older = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        newer = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        with pytest.raises(LedgerError, match="still stands"):
            ledger.commit(older, b"one noise", now=NOW)
        ledger.commit(newer, b"another noise", now=NOW)
        assert ledger.released(RUN, 1) == b"another noise"


def test_a_round_is_never_released_twice(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        reservation = ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        ledger.commit(reservation, b"noised", now=NOW)
        with pytest.raises(LedgerError, match="still stands"):
            ledger.commit(reservation, b"noised again", now=NOW)
    with place.open() as ledger:
        spent = ledger.budget.spent
        with pytest.raises(LedgerError, match="released already: no second noise"):
            ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        assert (ledger.released(RUN, 1), ledger.budget.spent) == (b"noised", spent)
        release(ledger, 1, b"of another run", run="run-2")


def test_a_reservation_that_nobody_made_is_refused(tmp_path: Path) -> None:
    with new_ledger(tmp_path).open() as ledger, pytest.raises(LedgerError, match="line 2"):
        ledger.commit(Reservation(RUN, 1, line=2), b"noised", now=NOW)


def test_s23_past_the_budget_nothing_is_charged_and_the_refusal_says_what_fits(tmp_path: Path) -> None:
    one = gaussian_epsilon([gaussian()], 1e-5)
    place = new_ledger(tmp_path, budget_epsilon=gaussian_epsilon([gaussian(count=5)], 1e-5))
    with place.open() as ledger:
        assert ledger.budget.rounds_that_fit([gaussian()]) == 5
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.budget.check([gaussian()], rounds=6)
        assert refused.value.rounds_that_fit == 5
        for round_number in range(1, 6):
            release(ledger, round_number, b"noised")
        lines = place.lines.read_bytes()
        for asked in (gaussian(), gaussian(0.5), gaussian(1e4)):
            with pytest.raises(BudgetExhaustedError) as refused:
                ledger.reserve(RUN, 6, [asked], "adapter update", now=NOW)
        assert refused.value.exit_code == 4
        assert refused.value.rounds_that_fit == 0
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.reserve(RUN, 6, [gaussian()], "adapter update", now=NOW)
        assert refused.value.spent == refused.value.budget == ledger.chain.budget_epsilon
        assert refused.value.asked == pytest.approx(one)
        assert refused.value.total == gaussian_epsilon([gaussian(count=6)], 1e-5)
    assert place.lines.read_bytes() == lines


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf")])
def test_an_epsilon_that_is_no_number_is_past_every_budget(tmp_path: Path, epsilon: float) -> None:
    place = new_ledger(tmp_path)
    with (
        open_ledger(place.directory, TERMS, epsilon_of=lambda events, delta: epsilon, now=NOW) as ledger,
        pytest.raises(BudgetExhaustedError),
    ):
        ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)


def test_the_budget_is_the_owners_to_change_and_what_is_spent_stays_spent(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, budget_epsilon=2.0)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        spent = ledger.budget.spent
        ledger.change_budget(0.1, now=NOW)
        assert (ledger.budget.spent, ledger.budget.left) == (spent, 0)
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
        with pytest.raises(InputError, match="above 0"):
            ledger.change_budget(float("nan"), now=NOW)
        ledger.change_budget(3.0, now=NOW)
    with place.open() as ledger:
        assert ledger.budget.left == 3.0 - spent


def test_rounds_that_fit_are_as_many_as_can_be_reserved(tmp_path: Path) -> None:
    events = [gaussian(12.0, 4), gaussian(50.0)]
    with new_ledger(tmp_path, budget_epsilon=3.0).open() as ledger:
        release(ledger, 0, b"number of records", gaussian(40.0))
        fits = ledger.budget.rounds_that_fit(events)
        for round_number in range(1, fits + 1):
            assert ledger.budget.rounds_that_fit(events) == fits - round_number + 1
            release(ledger, round_number, b"noised", *events)
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve(RUN, fits + 1, events, "adapter update", now=NOW)
    assert fits > 3


def test_rounds_that_cost_nothing_fit_as_often_as_the_search_goes(tmp_path: Path) -> None:
    with new_ledger(tmp_path).open() as ledger:
        assert ledger.budget.rounds_that_fit([gaussian(1e7)]) == 1_000_000


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"data_set": TERMS.data_set.model_copy(update={"records": 13})}, "another data set"),
        ({"data_set": TERMS.data_set.model_copy(update={"sha256": "ab" * 32})}, "another data set"),
        ({"unit": "one patient"}, "another unit"),
        ({"neighbouring": "replace one"}, "another neighbouring"),
        ({"delta": 1e-6}, "another delta"),
    ],
)
def test_a_ledger_of_other_terms_is_refused(tmp_path: Path, other: dict[str, object], named: str) -> None:
    place = new_ledger(tmp_path)
    with pytest.raises(LedgerError, match=named) as refused, place.open(TERMS.model_copy(update=other)):
        pytest.fail("the block must not run")
    assert refused.value.line == 1
    assert refused.value.exit_code == 3


def test_a_new_ledger_replaces_nothing_and_needs_a_place(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    before = place.lines.read_bytes()
    with pytest.raises(OutputError, match="already: a new one would forget what was spent"):
        create_ledger(place.directory, TERMS, budget_epsilon=8.0, now=NOW)
    with pytest.raises(OutputError, match="cannot be written"):
        create_ledger(tmp_path / "none" / "ledger", TERMS, budget_epsilon=8.0, now=NOW)
    with pytest.raises(InputError, match="above 0"):
        create_ledger(tmp_path / "other", TERMS, budget_epsilon=0.0, now=NOW)
    with pytest.raises(InputError, match="there is no privacy ledger"), replace(place, directory=tmp_path).open():
        pytest.fail("the block must not run")
    assert place.lines.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger"]


def test_only_its_owner_may_read_a_ledger(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
    for path in (place.directory, *place.directory.rglob("*")):
        if path.name != "ledger.lock":  # empty
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("run", "round_number", "events", "statement"),
    [
        ("", 1, [gaussian()], "adapter update"),
        ("../run", 1, [gaussian()], "adapter update"),
        (RUN, -1, [gaussian()], "adapter update"),
        (RUN, 2**53, [gaussian()], "adapter update"),
        (RUN, 1, [], "adapter update"),
        (RUN, 1, [gaussian()], ""),
        (RUN, 1, [gaussian()], "half a pair: \ud800"),
    ],
)
def test_a_reservation_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, run: str, round_number: int, events: list[PrivacyEvent], statement: str
) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        before = place.lines.read_bytes()
        with pytest.raises(InputError, match=r"reservation's (run|round|events|statement)"):
            ledger.reserve(run, round_number, events, statement, now=NOW)
    assert place.lines.read_bytes() == before


def test_bytes_that_changed_are_not_sent_again(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        (stored,) = (place.directory / "releases").iterdir()
        stored.write_bytes(b"Noised")
        with pytest.raises(LedgerError, match=r"line 3: the released bytes .* SHA-256 is another"):
            ledger.released(RUN, 1)
        stored.unlink()
        with pytest.raises(LedgerError, match="cannot be sent again: No such file"):
            ledger.released(RUN, 1)
        with pytest.raises(LedgerError, match="released already"):
            ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:2], lines[2][:-1]], 3),  # cut off
        (lambda lines: lines[:1], 2),
        (lambda lines: [], 1),
        (lambda lines: [*lines, b"x"], 4),  # added to
        (lambda lines: [*lines, b"x\n", b"y\n"], 4),
        (lambda lines: [lines[0], *lines[2:]], 2),  # without a line
        (lambda lines: [lines[0], lines[1].replace(b"adapter", b"another adapter"), lines[2]], 2),
    ],
)
def test_a_ledger_that_another_hand_changes_while_it_is_open_takes_no_further_line(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        place.lines.write_bytes(b"".join(change(place.lines.read_bytes().splitlines(keepends=True))))
        with pytest.raises(LedgerError, match=f"line {line}: .*changed by another hand, from this line on") as refused:
            ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
        assert refused.value.line == line


def test_a_ledger_that_goes_on_elsewhere_while_it_is_open_stops_at_the_line_where_the_two_part(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    shutil.copytree(place.directory, tmp_path / "copy")
    copy = replace(place, directory=tmp_path / "copy")
    with copy.open() as ledger:
        release(ledger, 1, b"another noise")
        release(ledger, 2, b"another noise")
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        place.lines.write_bytes(copy.lines.read_bytes())  # every line of it verifies
        with pytest.raises(LedgerError, match="changed by another hand") as refused:
            ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
    assert refused.value.line == 3, "the same was reserved in line 2, at the same time"


def test_a_ledger_whose_file_is_gone_or_another_one_takes_no_further_line(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        content = place.lines.read_bytes()
        place.lines.rename(tmp_path / "kept")
        with pytest.raises(LedgerError, match=r"line 1: .*changed by another hand"):
            ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        place.lines.write_bytes(content)  # another file of the same name: what we write would be nowhere
        with pytest.raises(LedgerError, match=r"line 1: .*changed by another hand"):
            ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)


def test_the_summary_lists_every_release_with_its_time_and_status(tmp_path: Path) -> None:
    place = new_ledger(tmp_path, budget_epsilon=4.0)
    later = NOW + timedelta(hours=1)
    with place.open() as ledger:
        release(ledger, 1, b"noised")
        ledger.reserve(RUN, 2, [gaussian(count=2), gaussian(30.0)], "scalars and a noised loss", now=later)
    summary = summarise(place.read(), gaussian_epsilon, [gaussian()])
    assert summary.spent_epsilon == gaussian_epsilon([gaussian(count=3), gaussian(30.0)], 1e-5)
    assert summary.left_epsilon == 4.0 - summary.spent_epsilon
    assert summary.rounds_that_fit is not None
    assert summary.rounds_that_fit > 0
    first, second = summary.releases
    assert (first.round_number, first.time, first.status) == (1, NOW, ReleaseStatus.COMMITTED)
    assert (second.time, second.status, second.release_sha256) == (later, ReleaseStatus.RESERVED, None)
    assert second.events == (gaussian(count=2), gaussian(30.0))
    assert summary.to_json()["releases"][1]["statement"] == "scalars and a noised loss"
    assert summarise(place.read(), gaussian_epsilon).rounds_that_fit is None


def test_a_lost_and_a_repeated_reservation_of_a_round_are_told_apart(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
        release(ledger, 1, b"noised")
    statuses = [one.status for one in summarise(place.read(), gaussian_epsilon).releases]
    assert statuses == [ReleaseStatus.RESERVED, ReleaseStatus.COMMITTED]


def test_two_new_ledgers_have_no_line_in_common(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = new_ledger(tmp_path / "a"), new_ledger(tmp_path / "b")
    assert first.read().head != second.read().head


def test_events_come_back_from_the_disk_bit_for_bit(tmp_path: Path) -> None:
    events = tuple(gaussian(value, 3) for value in (0.1 + 0.2, 100 / 3, 1e7, 2.0, 0.7))
    place = new_ledger(tmp_path)
    with open_ledger(place.directory, TERMS, epsilon_of=lambda events, delta: 0.0, now=NOW) as ledger:
        ledger.reserve(RUN, 1, events, "adapter update", now=NOW)
    (reserved,) = (entry for entry in place.read().entries if isinstance(entry, Reserved))
    assert reserved.events == events


def test_terms_out_of_range_cannot_be_made() -> None:
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="delta"):
            LedgerTerms(data_set=TERMS.data_set, delta=delta)


def test_with_the_accountant_rounds_are_refused_where_an_independent_composition_says(tmp_path: Path) -> None:
    round_events = [
        PrivacyEvent("gaussian", {"noise_multiplier": 1.2}, 0.05, 20),
        PrivacyEvent("laplace", {"scale": 40.0, "dimension": 1.0}, 1.0, 1),
    ]
    place, accountant = new_ledger(tmp_path, budget_epsilon=3.0), Accountant()
    with open_ledger(place.directory, TERMS, epsilon_of=accountant.epsilon, now=NOW) as ledger:
        assert ledger.budget.rounds_that_fit(round_events) == 7
        for round_number in range(1, 8):
            release(ledger, round_number, b"noised", *round_events)
        # 2.8655: the distributions of dp-accounting itself, at a discretisation of 1e-3.
        assert ledger.budget.spent == pytest.approx(2.8655, rel=0.005)
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve(RUN, 8, round_events, "adapter update", now=NOW)
    with open_ledger(place.directory, TERMS, epsilon_of=Accountant().epsilon, now=NOW) as again:
        assert again.budget.spent == accountant.epsilon(round_events * 7, TERMS.delta)
