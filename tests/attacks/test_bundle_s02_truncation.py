"""S02: a ciphertext cut at a chunk's end, where every chunk that is left is authentic, never becomes visible.

The block digests refuse it first; here the owner signs the cut ciphertext, so that only the end of the stream can tell.
"""

import os
from io import BytesIO
from pathlib import Path

import pytest

from scaleot_core.bundle.archive import decrypt_object
from scaleot_core.bundle.manifest import object_context
from scaleot_core.errors import VerificationError
from tests.support.bundles import Scene, replace_object, scene

CHUNK = 16 * 1024
CHUNKS = 20
CONTENT = os.urandom(CHUNKS * CHUNK + 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(tmp_path_factory.mktemp("s02"), {"emulator.safetensors": CONTENT})


def cut(ciphertext: bytes, chunks: int) -> bytes:
    return ciphertext[: 56 + chunks * (CHUNK + 16)]


@pytest.mark.parametrize("chunks", range(CHUNKS + 1))
def test_a_stream_cut_at_a_chunk_boundary_is_refused_only_at_its_end(made: Scene, chunks: int) -> None:
    ciphertext = cut(made.object_file(1).read_bytes(), chunks)
    context, sink = object_context(made.sealed.bundle_id, 1), BytesIO()
    with pytest.raises(VerificationError, match=r"object\.decrypt"):
        decrypt_object([memoryview(ciphertext)], made.sealed.data_key, context, sink)
    assert sink.getvalue() == CONTENT[: chunks * CHUNK]  # which is why nobody may look before the end


@pytest.mark.parametrize("chunks", [0, 1, 10, CHUNKS])
def test_a_bundle_cut_at_a_chunk_boundary_is_refused(tmp_path: Path, chunks: int) -> None:
    made = scene(tmp_path, {"emulator.safetensors": CONTENT})
    made.object_file(1).write_bytes(cut(made.object_file(1).read_bytes(), chunks))
    with pytest.raises(VerificationError, match=r"object\.size"):
        made.open()


@pytest.mark.parametrize("chunks", [0, 1, 10, CHUNKS])
def test_a_cut_bundle_is_refused_even_if_the_owner_signed_it(tmp_path: Path, chunks: int) -> None:
    made = scene(tmp_path, {"emulator.safetensors": CONTENT})
    replace_object(made, 1, cut(made.object_file(1).read_bytes(), chunks))
    before = sorted(tmp_path.rglob("*"))
    open_memory_files = memory_files()
    with pytest.raises(VerificationError, match=r"inner\.objects"):
        made.open()
    assert sorted(tmp_path.rglob("*")) == before
    assert memory_files() == open_memory_files


def memory_files() -> int:
    links = [entry.readlink() for entry in list(Path("/proc/self/fd").iterdir()) if entry.is_symlink()]
    return sum("memfd:scaleot" in str(link) for link in links)
