import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleot_core.bundle.archive import BlockDigests, decrypt_object, encrypt_object, read_blocks
from scaleot_core.bundle.keys import DataKey, generate_data_key
from scaleot_core.bundle.manifest import BLOCK_BYTES, ciphertext_size, object_context
from scaleot_core.errors import VerificationError
from tests.support.cobblestone_reference import reference_decrypt

CHUNK = 16 * 1024
# Vectors 1 and 2 of C2SP's Wycheproof, c2sp_chunked_encryption_aes_256_gcm_test.json
PUBLISHED_KEY = b"YELLOW SUBMARINE YELLOW SUBMARIN"
PUBLISHED = [
    (
        b"",
        "43a2e39431cbae0389d3fc86adf46f7c3a24de88d9311617e53f3164cc1d5dc738a66b97f0bf786565c31799c2f463d50a7e1004"
        "6011dc6fc3c939e3a5db7affb6191551669554fb",
    ),
    (
        b"chunked",
        "a1a1b56f6db58cd1ede0c5c9db62aef20d3f96a6c594bb9252bb38122de91236502b42a1d7fcab820ffa292940d2f86add212cfa"
        "42c38df19d3cc9139ee61a5990d3db57433514229beea49a8a72bd",
    ),
]


def encrypt(plaintext: bytes, key: DataKey, context: bytes) -> bytes:
    sink = io.BytesIO()
    encrypt_object(io.BytesIO(plaintext), sink, key, context, name="a.txt", index=1)
    return sink.getvalue()


def decrypt(ciphertext: bytes, key: DataKey, context: bytes) -> bytes:
    sink = io.BytesIO()
    decrypt_object([memoryview(ciphertext)], key, context, sink)
    return sink.getvalue()


@pytest.mark.parametrize(("plaintext", "ciphertext"), PUBLISHED)
def test_the_published_vectors_decrypt(plaintext: bytes, ciphertext: str) -> None:
    assert decrypt(bytes.fromhex(ciphertext), DataKey(PUBLISHED_KEY), b"") == plaintext
    assert reference_decrypt(PUBLISHED_KEY, b"", bytes.fromhex(ciphertext)) == plaintext


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_234_567])
def test_the_transcription_of_the_specification_decrypts_what_we_encrypt(size: int) -> None:
    key, context, plaintext = generate_data_key(), object_context("ab" * 16, 7), os.urandom(size)
    ciphertext = encrypt(plaintext, key, context)
    assert reference_decrypt(key.secret, context, ciphertext) == plaintext
    assert decrypt(ciphertext, key, context) == plaintext
    assert len(ciphertext) == ciphertext_size(size)


def test_entries_describe_plaintext_and_ciphertext() -> None:
    plaintext = os.urandom(100_000)
    sink = io.BytesIO()
    file, sealed = encrypt_object(io.BytesIO(plaintext), sink, generate_data_key(), b"c", name="a.txt", index=3)
    assert (file.name, file.object, file.size) == ("a.txt", 3, len(plaintext))
    assert sealed.size == len(sink.getvalue())
    assert list(sealed.blocks) == [hashlib.sha256(sink.getvalue()).hexdigest()]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12 * 1024 * 1024), max_size=5))
def test_block_digests_do_not_depend_on_how_the_stream_is_cut(cuts: list[int]) -> None:
    digests, whole = BlockDigests(), bytes(sum(cuts) + 1)
    start = 0
    for cut in [*cuts, 1]:
        digests.update(whole[start : start + cut])
        start += cut
    entry = digests.finish()
    blocks = [whole[at : at + BLOCK_BYTES] for at in range(0, len(whole), BLOCK_BYTES)]
    assert list(entry.blocks) == [hashlib.sha256(block).hexdigest() for block in blocks]
    assert entry.size == len(whole)


def test_a_stream_of_exactly_whole_blocks_has_no_empty_last_block() -> None:
    digests = BlockDigests()
    digests.update(bytes(2 * BLOCK_BYTES))
    assert len(digests.finish().blocks) == 2


def test_two_encryptions_of_the_same_bytes_differ() -> None:
    key = generate_data_key()
    assert encrypt(b"same", key, b"c") != encrypt(b"same", key, b"c")


@pytest.mark.parametrize("other", [object_context("ab" * 16, 8), object_context("ac" * 16, 7), b""])
def test_a_stream_of_another_place_or_bundle_does_not_decrypt(other: bytes) -> None:
    key = generate_data_key()
    ciphertext = encrypt(b"text", key, object_context("ab" * 16, 7))
    with pytest.raises(VerificationError, match=r"object\.decrypt"):
        decrypt(ciphertext, key, other)


def test_another_key_does_not_decrypt() -> None:
    with pytest.raises(VerificationError, match=r"object\.decrypt"):
        decrypt(encrypt(b"text", generate_data_key(), b"c"), generate_data_key(), b"c")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_do_not_decrypt_and_raise_nothing_but_our_error(data: bytes) -> None:
    with pytest.raises(VerificationError, match=r"object\.decrypt"):
        decrypt(data, DataKey(PUBLISHED_KEY), b"c")


def test_blocks_come_one_by_one_and_only_if_they_are_the_signed_ones(tmp_path: Path) -> None:
    content = os.urandom(BLOCK_BYTES) + os.urandom(BLOCK_BYTES) + b"tail"
    digests = BlockDigests()
    digests.update(content)
    sealed = digests.finish()
    (tmp_path / sealed.name).write_bytes(content)
    assert b"".join(bytes(block) for block in read_blocks(tmp_path, sealed)) == content
    (tmp_path / sealed.name).write_bytes(content[:BLOCK_BYTES] + b"x" + content[BLOCK_BYTES + 1 :])
    blocks = read_blocks(tmp_path, sealed)
    assert len(next(blocks)) == BLOCK_BYTES
    with pytest.raises(VerificationError, match=r"block 1.*object\.block"):
        next(blocks)


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    content = os.urandom(2 * BLOCK_BYTES)
    digests = BlockDigests()
    digests.update(content)
    sealed = digests.finish()
    path = tmp_path / sealed.name
    path.write_bytes(content)
    blocks = read_blocks(tmp_path, sealed)
    next(blocks)
    os.truncate(path, 2 * BLOCK_BYTES - 1)
    with pytest.raises(VerificationError, match=r"block 1.*object\.block"):
        next(blocks)
