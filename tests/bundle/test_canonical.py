import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleot_core.bundle.canonical import Document, Instant, canonical_json, parse_canonical, read_document
from scaleot_core.bundle.grant import Grant
from scaleot_core.bundle.manifest import InnerManifest, OuterManifest, read_outer_manifest
from scaleot_core.errors import VerificationError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\"\\\n\x00é\U0001f600"), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


class Term(Document):
    end: Instant


def refusal(data: bytes, *, limit_bytes: int = 4096) -> str:
    with pytest.raises(VerificationError) as caught:
        parse_canonical(data, kind="grant", limit_bytes=limit_bytes)
    return caught.value.code


@given(JSON_VALUES)
def test_every_json_value_is_read_back_from_its_canonical_form(value: object) -> None:
    assert parse_canonical(canonical_json(value), kind="inner", limit_bytes=10**6) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e400}',
        b'{"a":1.0}',
        b'{"a":-0}',
        b'{"a":9007199254740993}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":' + b"9" * 4000 + b"}",
        b"[" * 2000 + b"]" * 2000,
        b"[" * 4000,
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"\x00",
        b'{"a":1}{}',
    ],
)
def test_bytes_that_are_not_the_canonical_form_of_their_value_are_refused(data: bytes) -> None:
    assert refusal(data) == "grant.json"


def test_bytes_over_the_limit_are_refused_before_they_are_parsed() -> None:
    assert refusal(b"[" * 5000) == "grant.size"


def test_a_refusal_shows_nothing_of_an_unknown_field_that_could_steer_a_terminal() -> None:
    data = canonical_json({"end": "2027-05-01T00:00:00+00:00", "\x1b[2J" + "x" * 1000: 1})
    with pytest.raises(VerificationError) as caught:
        read_document(Term, data, kind="grant", limit_bytes=4096)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    for schema in (OuterManifest, InnerManifest, Grant):
        with pytest.raises(VerificationError):
            read_document(schema, data, kind="grant", limit_bytes=4096)
    with pytest.raises(VerificationError):
        read_outer_manifest(data)


@given(JSON_VALUES)
def test_canonical_json_of_another_shape_raises_nothing_but_our_error(value: object) -> None:
    data = canonical_json(value)
    for schema in (OuterManifest, InnerManifest, Grant):
        with pytest.raises(VerificationError):
            read_document(schema, data, kind="grant", limit_bytes=10**6)
    with pytest.raises(VerificationError):
        read_outer_manifest(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, {"a": {3}}, "\ud800", b"bytes", object()])
def test_what_json_cannot_say_is_not_written(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


def test_nesting_beyond_all_limits_is_not_written() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError):
        canonical_json(value)


@pytest.mark.parametrize(
    "text",
    [
        "2027-05-01T00:00:00Z",
        "2027-05-01T00:00:00",
        "2027-05-01 00:00:00+00:00",
        "2027-05-01T02:00:00+02:00",
        "2027-05-01T00:00:00.5+00:00",
        "2027-05-01",
        "20270501T000000+00:00",
        "0000-05-01T00:00:00+00:00",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "soon",
        "",
    ],
)
def test_an_instant_has_one_spelling(text: str) -> None:
    with pytest.raises(VerificationError, match=r"grant\.fields"):
        read_document(Term, json.dumps({"end": text}, separators=(",", ":")).encode(), kind="grant", limit_bytes=100)


def test_an_instant_is_read_in_utc() -> None:
    term = read_document(Term, b'{"end":"2027-05-01T00:00:00+00:00"}', kind="grant", limit_bytes=100)
    assert term.end == datetime(2027, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("value", ["12", "null", "true", "[]", '{"a":1}', "1e30"])
def test_an_instant_is_a_string(value: str) -> None:
    with pytest.raises(VerificationError):
        read_document(Term, f'{{"end":{value}}}'.encode(), kind="grant", limit_bytes=100)
