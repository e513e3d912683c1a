import fcntl
import os
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save

from scaleot_core.bundle.plaintext import DirectoryStore, MemoryStore, plaintext_store


def test_a_finished_file_cannot_be_changed_by_anyone() -> None:
    store = MemoryStore()
    file = store.create()
    file.write(b"text")
    path = store.finish(file)
    assert path.read_bytes() == b"text"
    with pytest.raises(OSError):
        os.write(file.fileno(), b"more")
    with pytest.raises(OSError):
        os.ftruncate(file.fileno(), 0)
    with pytest.raises(OSError):
        os.ftruncate(file.fileno(), 100)
    with pytest.raises(OSError):
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, 0)
    writable = os.open(path, os.O_RDWR)
    with pytest.raises(OSError):
        os.write(writable, b"more")
    os.close(writable)
    assert path.read_bytes() == b"text"
    store.close()
    assert not path.exists()


def test_tensors_load_from_sealed_memory_and_outlive_the_store() -> None:
    import numpy

    weights = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    store = MemoryStore()
    file = store.create()
    file.write(save({"weight": weights}))
    loaded = load_file(store.finish(file))
    store.close()
    assert (loaded["weight"] == weights).all()


def test_a_system_with_memory_files_uses_them() -> None:
    assert isinstance(plaintext_store(), MemoryStore)


def test_a_system_without_memory_files_gets_a_private_directory_that_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = plaintext_store()
    assert isinstance(store, DirectoryStore)
    file = store.create()
    file.write(b"text")
    path = store.finish(file)
    assert path.read_bytes() == b"text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.create()
    store.close()
    assert list(tmp_path.iterdir()) == []
