import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleot_core.errors import BudgetExhaustedError, LedgerError
from scaleot_core.privacy.ledger import Reservation
from scaleot_core.privacy.ledger_lines import LedgerChain, Reserved
from tests.support.ledgers import NOW, RUN, Place, gaussian, gaussian_epsilon, new_ledger, release

Lines = list[bytes]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A ledger of five lines: opened, and two releases."""
    place = new_ledger(tmp_path_factory.mktemp("five"))
    with place.open() as ledger:
        release(ledger, 1, b"first")
        release(ledger, 2, b"second")
    return place


@pytest.fixture
def content(five: Place) -> Iterator[bytes]:
    """What its file holds; the file is as it was again when the next test starts."""
    content = five.lines.read_bytes()
    head = five.head.read_bytes()
    assert len(five.read().entries) == 5
    yield content
    five.lines.write_bytes(content)
    five.head.write_bytes(head)


def fault(place: Place, content: bytes) -> LedgerError:
    """Returns the error that stops reading and opening alike."""
    place.lines.write_bytes(content)
    with pytest.raises(LedgerError) as at_reading:
        place.read()
    with pytest.raises(LedgerError) as at_opening, place.open():
        pytest.fail("the block must not run")
    assert str(at_reading.value) == str(at_opening.value)
    assert place.lines.read_bytes() == content, "a ledger at fault is left as it is"
    return at_reading.value


def hashed(line: dict[str, Any]) -> bytes:
    """Returns a line with its own digest put right, as one who forges it would."""
    line = {name: value for name, value in line.items() if name != "sha256"}
    return rfc8785.dumps({**line, "sha256": hashlib.sha256(rfc8785.dumps(line)).hexdigest()}) + b"\n"


def chained(lines: Lines) -> Lines:
    """Returns the lines, each forged to follow the one before."""
    previous, forged = "0" * 64, []
    for number, line in enumerate(lines, 1):
        forged.append(hashed({**json.loads(line), "number": number, "previous": previous}))
        previous = json.loads(forged[-1])["sha256"]
    return forged


def cheaper(line: bytes) -> bytes:
    """Returns a reservation that claims a tenth of the privacy loss."""
    value = json.loads(line)
    value["entry"]["events"][0]["parameters"]["noise_multiplier"] *= 10
    return hashed(value)


def test_the_forger_of_these_tests_writes_what_the_ledger_writes(five: Place, content: bytes) -> None:
    lines = content.splitlines(keepends=True)
    assert chained(lines) == lines


def test_a_changed_byte_anywhere_stops_with_its_line(five: Place, content: bytes) -> None:
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1
        five.lines.write_bytes(damaged)
        with pytest.raises(LedgerError) as stopped:
            five.read()
        assert stopped.value.line == content[:position].count(b"\n") + 1


def test_a_ledger_cut_off_anywhere_stops_with_the_first_line_that_is_missing(five: Place, content: bytes) -> None:
    for length in range(0, len(content), 3):
        five.lines.write_bytes(content[:length])
        with pytest.raises(LedgerError, match="cut off or is an older copy") as stopped:
            five.read()
        assert stopped.value.line == content[:length].count(b"\n") + 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], 3),  # removed
        (lambda lines: [lines[0], lines[3], *lines[2:3], lines[1], lines[4]], 2),  # exchanged
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),  # twice
        (lambda lines: lines[1:], 1),  # without its opening
        (lambda lines: [*lines, lines[-1]], 6),  # twice at the end, and more behind it
        (lambda lines: [lines[0], cheaper(lines[1]), *lines[2:]], 3),  # cheaper, its own digest put right
        (lambda lines: chained([lines[0], cheaper(lines[1]), *lines[2:]]), 5),  # and every line behind it: the head
        (lambda lines: chained([*lines[:1], *lines[3:]]), 3),  # a release left out; its reservation is another now
        (lambda lines: [b"\n", *lines], 1),
    ],
)
def test_lines_removed_moved_added_or_forged_stop_with_the_line(
    five: Place, content: bytes, change: Callable[[Lines], Lines], line: int
) -> None:
    changed = change(content.splitlines(keepends=True))
    more_than_one_unfinished_line = b"x\ny\n" if line == 6 else b""
    assert fault(five, b"".join(changed) + more_than_one_unfinished_line).line == line


def with_entry(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: {**line, "entry": {**line["entry"], **fields}}


@pytest.mark.parametrize(
    ("number", "change", "named"),
    [
        (1, with_entry(format="scaleot.ledger/2"), "format"),
        (1, with_entry(delta=2.0), "delta"),
        (1, with_entry(budget_epsilon=-1.0), "budget_epsilon"),
        (2, with_entry(type="forgotten"), "forgotten"),
        (2, with_entry(events=[]), "events"),
        (2, with_entry(events=[{"noise": "gaussian"}]), "events"),
        (2, with_entry(events=["gaussian"]), "events"),
        (2, with_entry(round="1"), "round"),
        (2, with_entry(round=True), "round"),
        (2, with_entry(run="../run"), "run"),
        (2, with_entry(time="yesterday"), "time"),
        (2, lambda line: {**line, "note": "x"}, "note"),
        (2, lambda line: {**line, "number": 3}, "expected line 2"),
        (3, with_entry(reservation=1), "expected line 1 to be a reservation that still stands"),
        (3, with_entry(reservation=3), "expected line 3 to be a reservation"),
        (3, with_entry(reservation=9), "expected line 9 to be a reservation"),
        (5, with_entry(reservation=2), "expected line 2 to be a reservation that still stands"),
        (4, with_entry(round=1), "released already"),
    ],
)
def test_a_line_that_says_what_no_ledger_says_is_refused_even_if_its_digest_is_right(
    five: Place, content: bytes, number: int, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    lines = content.splitlines(keepends=True)
    lines[number - 1] = hashed(change(json.loads(lines[number - 1])))
    stopped = fault(five, b"".join(lines))
    assert stopped.line == number
    assert named in str(stopped)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: text.replace(b'"number"', b' "number"'),
        lambda text: text.replace(b'"round":1', b'"round":1.0'),
        lambda text: text.replace(b'"round":1', b'"round":1,"round":1'),
        lambda text: text.replace(b'"run-1"', b'"run\\u002d1"'),
        lambda text: text.replace(b'"round":1', b'"round":NaN'),
        lambda text: b"[" * 100_000,
        lambda text: b"\xff" + text,
        lambda text: b"",
    ],
)
def test_another_spelling_of_a_line_is_refused_even_if_its_digest_is_right(
    five: Place, content: bytes, spelling: Callable[[bytes], bytes]
) -> None:
    lines = content.splitlines(keepends=True)
    body = spelling(lines[1].rpartition(b',"sha256"')[0] + b"}")
    lines[1] = body[:-1] + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    assert fault(five, b"".join(lines)).line == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"format":"scaleot.ledger-head/2"}'])
def test_a_damaged_head_stops(five: Place, content: bytes, damage: bytes) -> None:
    five.head.write_bytes(damage)
    stopped = fault(five, content)
    assert f"line 5: {five.head} is damaged" in str(stopped)
    assert stopped.line == 5, "the last one, which the head should name"


@pytest.mark.parametrize(("kept_lines", "line"), [(0, 1), (1, 1), (4, 4)])
def test_a_damaged_head_is_said_of_the_last_line_that_there_is(
    five: Place, content: bytes, kept_lines: int, line: int
) -> None:
    five.head.write_bytes(b"{}")
    assert fault(five, b"".join(content.splitlines(keepends=True)[:kept_lines])).line == line


def test_a_missing_file_stops_and_is_not_taken_for_a_new_ledger(five: Place, content: bytes) -> None:
    for path, line in ((five.head, 5), (five.lines, 1)):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(LedgerError, match=f"line {line}: .*{path.name} cannot be read") as stopped, five.open():
            pytest.fail("the block must not run")
        assert stopped.value.line == line
        path.write_bytes(kept)


def test_a_missing_or_emptied_ledger_stops_at_its_first_line_whatever_became_of_the_head(
    five: Place, content: bytes
) -> None:
    assert fault(five, b"").line == 1
    five.head.write_bytes(b"")
    assert fault(five, b"").line == 1
    five.lines.unlink()
    with pytest.raises(LedgerError) as stopped:
        five.read()
    assert stopped.value.line == 1


def test_a_line_torn_anywhere_before_it_was_acknowledged_is_cut_off_with_a_note(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    with place.open() as ledger:
        release(ledger, 1, b"first")
        head, spent = place.head.read_bytes(), ledger.budget.spent
        before = place.lines.read_bytes()
        ledger.reserve(RUN, 2, [gaussian()], "adapter update", now=NOW)
    whole = place.lines.read_bytes()
    for length in range(len(before) + 1, len(whole), 7):
        place.head.write_bytes(head)  # what a crash between the two writes leaves
        place.lines.write_bytes(whole[:length])
        assert len(place.read().entries) == 3
        with place.open() as ledger:
            assert ledger.budget.spent == spent
        *_, note = (json.loads(line)["entry"] for line in place.lines.read_bytes().splitlines())
        assert note["type"] == "recovered"
        assert note["cut_bytes"] == length - len(before)
        assert note["cut_sha256"] == hashlib.sha256(whole[len(before) : length]).hexdigest()
        assert place.lines.read_bytes().startswith(before)
    place.head.write_bytes(head)
    place.lines.write_bytes(whole)
    with place.open() as ledger:  # all of it was there, though nobody was told: it counts
        assert ledger.budget.spent == gaussian_epsilon([gaussian(count=2)], 1e-5)


def test_a_last_line_whose_blocks_a_power_cut_lost_is_cut_off_if_it_was_not_acknowledged(tmp_path: Path) -> None:
    place = new_ledger(tmp_path)
    head, before = place.head.read_bytes(), place.lines.read_bytes()
    with place.open() as ledger:
        ledger.reserve(RUN, 1, [gaussian()], "adapter update", now=NOW)
    torn = before + b"\0" * 100 + place.lines.read_bytes()[len(before) + 100 :]
    place.lines.write_bytes(torn)
    with pytest.raises(LedgerError, match="line 2"):
        place.read()  # acknowledged: not torn but damaged
    place.head.write_bytes(head)
    with place.open() as ledger:
        assert ledger.budget.spent == 0
        release(ledger, 1, b"noised")
    assert [entry.type for entry in place.read().entries] == ["opened", "recovered", "reserved", "committed"]


def test_lines_behind_an_unacknowledged_line_at_fault_stop(five: Place, content: bytes, tmp_path: Path) -> None:
    head = new_ledger(tmp_path).head.read_bytes()
    lines = content.splitlines(keepends=True)
    first = json.loads(lines[0])["sha256"]
    five.head.write_bytes(json.dumps({**json.loads(head), "head": first}).encode())
    lines[2] = lines[2].replace(b"committed", b"Committed")
    assert fault(five, b"".join(lines)).line == 3


def test_a_chain_that_refuses_an_entry_stays_as_it_was(five: Place, content: bytes) -> None:
    chain = five.read()
    head = chain.head
    with pytest.raises(LedgerError, match="released already"):
        chain.write_line(Reserved(run=RUN, round=1, events=(gaussian(),), statement="x", time=NOW))
    assert (chain.head, len(chain.entries)) == (head, 5)
    assert LedgerChain("new").head == "0" * 64


@dataclass
class Expected:
    """What a data owner knows of its ledger without looking into it."""

    charged: int = 0
    released: dict[int, bytes] = field(default_factory=dict)
    reservations: list[Reservation] = field(default_factory=list)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 3), st.integers(1, 40)),
        st.tuples(st.just("commit"), st.integers(0, 5), st.binary(max_size=3)),
        st.tuples(st.just("reopen"), st.just(0), st.sampled_from([b"", b"{", b'{"entry":'])),
        st.tuples(st.just("budget"), st.integers(1, 12), st.just(0)),
    ),
    max_size=12,
)


def run_operations(place: Place, operations: list[tuple[str, int, Any]], expected: Expected) -> None:
    """Does what can be done until the ledger is closed, and checks after each step what must hold."""
    with place.open() as ledger:
        expected.reservations.clear()  # those of an earlier process cannot be committed; tests above say so
        while operations and operations[0][0] != "reopen":
            (kind, number, value), spent = operations.pop(0), ledger.budget.spent
            if kind == "budget":
                ledger.change_budget(float(number), now=NOW)
            if kind == "reserve" and number not in expected.released:
                try:
                    made = ledger.reserve(RUN, number, [gaussian(count=value)], "adapter update", now=NOW)
                except BudgetExhaustedError:
                    asked = [gaussian(count=expected.charged + value)] if expected.charged + value else []
                    assert gaussian_epsilon(asked, 1e-5) > ledger.chain.budget_epsilon
                else:
                    expected.charged += value
                    kept = [one for one in expected.reservations if one.round_number != number]
                    expected.reservations[:] = [*kept, made]
            if kind == "commit" and expected.reservations:
                made = expected.reservations.pop(number % len(expected.reservations))
                ledger.commit(made, value, now=NOW)
                expected.released[made.round_number] = value
            assert ledger.budget.spent >= spent
            assert {number: ledger.released(RUN, number) for number in expected.released} == expected.released
    assert place.read().events == ledger.chain.events
    assert sum(event.count for event in place.read().events) == expected.charged


@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_is_done_the_chain_verifies_spent_only_grows_and_releases_stay(
    operations: list[tuple[str, int, Any]],
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place, expected = new_ledger(Path(temporary), budget_epsilon=5.0), Expected()
        while True:
            run_operations(place, operations, expected)
            if not operations:
                return
            _, _, torn = operations.pop(0)
            with place.lines.open("ab") as file:
                file.write(torn)
