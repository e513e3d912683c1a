import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from fl_server.authority import (
    create_authority,
    fingerprint_of,
    hosts_of,
    issue_to_member,
    load_authority,
    read_certificate,
    renew_server,
)
from scaleot_core.bundle.tls_files import TlsFiles, read_tls_files
from scaleot_core.enrolment.transport_keys import generate_transport_key, tls_private_bytes
from scaleot_core.errors import InputError, OutputError

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", ["fed.example.org", "192.0.2.7"], now=NOW)
    return tmp_path / "authority"


def server_of(place: Path) -> x509.Certificate:
    return read_certificate(place / "server.pem")


def test_private_keys_are_readable_by_their_owner_alone(place: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    assert modes == {"authority.key": 0o600, "authority.pem": 0o644, "server.key": 0o600, "server.pem": 0o644}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_the_authority_lives_five_years_and_issues_end_certificates_alone(place: Path) -> None:
    authority = read_certificate(place / "authority.pem")
    assert authority.not_valid_after_utc == NOW + 5 * 365 * DAY
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(
        ca=True, path_length=0
    )
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    key = authority.public_key()
    assert isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)


@pytest.mark.parametrize("host", ["fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"])
def test_the_servers_certificate_is_good_at_each_host_for_90_days(place: Path, host: str) -> None:
    store = Store([read_certificate(place / "authority.pem")])
    address = x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
    for at in (NOW, NOW + 89 * DAY):
        chain = PolicyBuilder().store(store).time(at).build_server_verifier(address).verify(server_of(place), [])
        assert len(chain) == 2
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(store).time(NOW + 91 * DAY).build_server_verifier(address).verify(server_of(place), [])
    with pytest.raises(x509.verification.VerificationError):
        verifier = PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName("evil.example.org"))
        verifier.verify(server_of(place), [])


def test_our_own_reader_takes_the_servers_files(place: Path) -> None:
    files = TlsFiles(place / "server.pem", place / "server.key", place / "authority.pem")
    read_tls_files(files, now=NOW)
    with pytest.raises(InputError, match="have a new one issued"):
        read_tls_files(files, now=NOW + 91 * DAY)


def test_a_members_certificate_names_it_and_is_no_servers(place: Path) -> None:
    key = generate_transport_key()
    authority = load_authority(place, now=NOW)
    certificate = issue_to_member(authority, "clinic-a", key.public_key(), now=NOW)
    certificate.verify_directly_issued_by(authority.certificate)
    assert [name.value for name in certificate.subject] == ["clinic-a"]
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc == NOW + 90 * DAY
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert len(fingerprint_of(certificate)) == 64


def test_no_certificate_outlives_its_authority(place: Path) -> None:
    late = NOW + (5 * 365 - 10) * DAY
    authority = load_authority(place, now=late)
    certificate = issue_to_member(authority, "clinic-a", generate_transport_key().public_key(), now=late)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_tls_refuses_a_member_that_poses_as_the_server(place: Path, tmp_path: Path) -> None:
    """Even at an address that its certificate were made for, a client would not talk to it."""
    now, key = datetime.now(UTC), generate_transport_key()
    authority = load_authority(place, now=now)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    real = issue_to_member(authority, "clinic-a", key.public_key(), now=now)
    builder = x509.CertificateBuilder(
        real.issuer,
        real.subject,
        key.public_key(),
        real.serial_number,
        real.not_valid_before_utc,
        real.not_valid_after_utc,
        [*real.extensions, x509.Extension(x509.SubjectAlternativeName.oid, critical=False, value=names)],
    )
    posing = builder.sign(authority.private_key, SHA384()).public_bytes(Encoding.PEM)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls_private_bytes(key), posing)]))
    server.start()
    trusted = grpc.ssl_channel_credentials((place / "authority.pem").read_bytes())
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/any/method")(b"", timeout=5)
    finally:
        server.stop(None)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.details()


def test_renewing_keeps_the_key_and_the_hosts_or_takes_others(place: Path) -> None:
    before = server_of(place)
    later = NOW + 80 * DAY
    renew_server(place, [], now=later)
    renewed = server_of(place)
    assert renewed.public_key() == before.public_key() and renewed.serial_number != before.serial_number
    assert renewed.not_valid_after_utc == later + 90 * DAY
    assert hosts_of(renewed) == hosts_of(before) == ("fed.example.org", "192.0.2.7", "localhost", "127.0.0.1", "::1")
    renew_server(place, ["other.example.org"], now=later)
    assert hosts_of(server_of(place))[0] == "other.example.org"
    read_tls_files(TlsFiles(place / "server.pem", place / "server.key", place / "authority.pem"), now=later)


def test_an_expired_authority_issues_nothing_and_says_what_to_do(place: Path) -> None:
    for at in (NOW + 5 * 366 * DAY, NOW - DAY):
        with pytest.raises(InputError, match=r"is valid from .* set the clock, or make a new home"):
            load_authority(place, now=at)
        with pytest.raises(InputError, match="is valid from"):
            renew_server(place, [], now=at)


def test_another_key_than_the_certificates_or_an_open_one_is_refused(place: Path) -> None:
    (place / "authority.key").chmod(0o640)
    with pytest.raises(InputError, match="has mode 0640, expected 0600"):
        load_authority(place, now=NOW)
    (place / "authority.key").write_bytes(tls_private_bytes(generate_transport_key()))
    (place / "authority.key").chmod(0o600)
    with pytest.raises(InputError, match="is not the private key of"):
        load_authority(place, now=NOW)
    (place / "authority.key").write_text("no key")
    with pytest.raises(InputError, match="expected an unencrypted private key in PEM"):
        load_authority(place, now=NOW)
    (place / "authority.pem").write_text("no certificate")
    with pytest.raises(InputError, match="expected a certificate in PEM"):
        read_certificate(place / "authority.pem")


@pytest.mark.parametrize(
    "host", ["", "a b", "ä.org", "*.example.org", "host:9092", "https://x", "-", "a..b", "x" * 254]
)
def test_what_is_no_host_is_refused_and_nothing_is_made(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="expected"):
        create_authority(tmp_path / "authority", [host], now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_authority_of_another_home_does_not_vouch_for_this_ones_members(place: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other", [], now=NOW)
    foreign = issue_to_member(
        load_authority(tmp_path / "other", now=NOW), "clinic-a", generate_transport_key().public_key(), now=NOW
    )
    with pytest.raises((InvalidSignature, ValueError)):
        foreign.verify_directly_issued_by(read_certificate(place / "authority.pem"))


def test_an_authority_is_never_replaced(place: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        create_authority(place, [], now=NOW)
    assert NameOID.COMMON_NAME in [name.oid for name in read_certificate(place / "authority.pem").subject]
