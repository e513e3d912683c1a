import hashlib

from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.privacy.data_set import fingerprint
from scaleot_core.training.records import CompletionRecord, TextRecord

TEXTS = st.lists(st.text(alphabet="ab", max_size=3), max_size=6)


def test_a_fingerprint_is_the_digest_of_sorted_digests_of_canonical_records() -> None:
    first = hashlib.sha256(b'{"text":"a"}').digest()
    second = hashlib.sha256(b'{"context":"b","target":"c"}').digest()
    expected = hashlib.sha256(min(first, second) + max(first, second)).hexdigest()
    made = fingerprint([TextRecord("a"), CompletionRecord("b", "c")])
    assert (made.records, made.sha256) == (2, expected)


@given(one=TEXTS, other=TEXTS)
def test_two_data_sets_have_one_fingerprint_only_if_they_hold_the_same_records(
    one: list[str], other: list[str]
) -> None:
    made = [fingerprint(map(TextRecord, texts)) for texts in (one, other)]
    assert (made[0] == made[1]) == (sorted(one) == sorted(other))


def test_the_order_of_records_does_not_make_another_data_set() -> None:
    records = [CompletionRecord(str(number), "x") for number in range(20)]
    assert fingerprint(records) == fingerprint(reversed(records))


def test_one_record_twice_is_not_one_record() -> None:
    assert fingerprint([TextRecord("a")]) != fingerprint([TextRecord("a"), TextRecord("a")])
