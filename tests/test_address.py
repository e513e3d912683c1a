import pytest

from scaleot_core.address import parse_address
from scaleot_core.errors import InputError


@pytest.mark.parametrize("text", ["127.0.0.1:9443", "clinic.example:443", "[::1]:9443"])
def test_an_address_reads_back_as_it_was_written(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "9443", ":9443", "host", "host:", "host:0", "host:65536", "host:٣", "::1:9443", "a b:1", "u@h:1", "h/x:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="host:port"):
        parse_address(text)


def test_loopback_is_told_from_the_network() -> None:
    assert [parse_address(f"{host}:1").is_loopback for host in ("127.0.0.2", "[::1]", "localhost", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]
