import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from scaleot_core.enrolment.transport_keys import (
    NodeKeyField,
    TlsKeyField,
    generate_transport_key,
    node_private_bytes,
    node_public_line,
    read_certificate_request,
    request_certificate,
    tls_private_bytes,
)
from scaleot_core.errors import VerificationError

NODE: TypeAdapter[str] = TypeAdapter(NodeKeyField)
TLS = TypeAdapter(TlsKeyField)


def named(*names: tuple[x509.ObjectIdentifier, str]) -> x509.CertificateSigningRequestBuilder:
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    return x509.CertificateSigningRequestBuilder().subject_name(subject)


def test_the_node_key_is_read_by_openssh_readers_and_its_line_by_our_own() -> None:
    key = generate_transport_key()
    line = node_public_line(key)
    assert load_ssh_private_key(node_private_bytes(key), None).public_key() == key.public_key()
    assert load_ssh_public_key(line.encode()) == key.public_key()
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert NODE.validate_python(line) == line


def test_another_kind_of_node_key_or_a_comment_is_refused() -> None:
    line = node_public_line(generate_transport_key())
    weak = node_public_line(generate_private_key(SECP256R1()))
    for other in (weak, f"{line} me@home", f"{line}\n", f" {line}", "ssh-ed25519 AAAA", "", "x" * 500):
        with pytest.raises(ValidationError):
            NODE.validate_python(other)


def test_a_certificate_request_gives_the_key_that_signed_it() -> None:
    key = generate_transport_key()
    assert read_certificate_request(request_certificate(key, "clinic-a"), "clinic-a") == key.public_key()
    assert load_pem_private_key(tls_private_bytes(key), None).public_key() == key.public_key()


def test_a_certificate_request_of_another_name_key_or_signature_is_refused() -> None:
    key, other = generate_transport_key(), generate_transport_key()
    good = request_certificate(key, "clinic-a")
    forged = bytearray(good)
    forged[-1] ^= 1
    own = key.public_key().public_numbers()
    foreign = other.public_key().public_numbers()
    stolen = good.replace(own.x.to_bytes(48) + own.y.to_bytes(48), foreign.x.to_bytes(48) + foreign.y.to_bytes(48))
    assert stolen != good
    weak = named((NameOID.COMMON_NAME, "clinic-a")).sign(generate_private_key(SECP256R1()), SHA384())
    edwards = named((NameOID.COMMON_NAME, "clinic-a")).sign(Ed25519PrivateKey.generate(), None)
    two = named((NameOID.COMMON_NAME, "clinic-a"), (NameOID.COMMON_NAME, "clinic-b")).sign(key, SHA384())
    more = named((NameOID.COMMON_NAME, "clinic-a"), (NameOID.ORGANIZATION_NAME, "x")).sign(key, SHA384())
    requests = [one.public_bytes(Encoding.DER) for one in (weak, edwards, two, more)]
    for data in (b"", b"text", bytes(forged), stolen, request_certificate(key, "clinic-b"), *requests):
        with pytest.raises(VerificationError) as refused:
            read_certificate_request(data, "clinic-a")
        assert refused.value.code == "enrolment.tls"


def test_a_tls_key_comes_back_from_a_document_and_nothing_else_does() -> None:
    key = generate_transport_key().public_key()
    assert TLS.validate_python(TLS.dump_python(key)) == key
    for other in ("", "AAAA", 3):
        with pytest.raises(ValidationError):
            TLS.validate_python(other)
