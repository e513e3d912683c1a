import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.bundle.hash_chain import NO_LINE, read_line, write_line
from scaleot_core.errors import BrokenLineError

ENTRY = {"type": "approved", "round": 3, "text": "ä"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_what_was_written_is_read_and_holds_on_to_the_line_before(entry: object) -> None:
    first = write_line("first", number=1, previous=NO_LINE)
    _, digest = read_line(first[:-1], number=1, previous=NO_LINE)
    second = write_line(entry, number=2, previous=digest)
    assert second.endswith(b"}\n") and second.count(b"\n") == 1
    read, after = read_line(second[:-1], number=2, previous=digest)
    assert read == entry
    assert json.loads(second)["sha256"] == after != digest


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_of_a_line_can_be_changed(position: int, change: int) -> None:
    line = bytearray(write_line(ENTRY, number=1, previous=NO_LINE)[:-1])
    line[position % len(line)] ^= change
    with pytest.raises(BrokenLineError):
        read_line(bytes(line), number=1, previous=NO_LINE)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_line_are_refused_with_our_own_error(data: bytes) -> None:
    with pytest.raises(BrokenLineError):
        read_line(data, number=1, previous=NO_LINE)


def test_a_line_elsewhere_or_after_another_line_is_refused() -> None:
    line = write_line(ENTRY, number=2, previous="a" * 64)[:-1]
    read_line(line, number=2, previous="a" * 64)
    for number, previous in ((1, "a" * 64), (3, "a" * 64), (2, "b" * 64)):
        with pytest.raises(BrokenLineError, match="lines were removed, added or moved"):
            read_line(line, number=number, previous=previous)
