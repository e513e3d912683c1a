"""From a directory of emulator files to a sealed bundle: encrypted, signed, and complete or not there at all."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from scaleot_core.bundle.archive import encrypt_manifest, encrypt_object
from scaleot_core.bundle.canonical import Json, canonical_json, parse_canonical, write_document
from scaleot_core.bundle.contents import refuse_code
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.bundle.files import new_directory, sync_directory, write_synced
from scaleot_core.bundle.keys import DataKey, SigningKey, generate_data_key
from scaleot_core.bundle.manifest import (
    BLOCK_BYTES,
    FORMAT,
    MANIFEST_FILE,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    OBJECTS_DIRECTORY,
    SUITE,
    InnerFile,
    InnerManifest,
    OuterManifest,
    SealedObject,
    check_file_names,
    object_context,
    read_inner_manifest,
    read_outer_manifest,
)
from scaleot_core.errors import InputError, VerificationError


@dataclass(frozen=True)
class SealedBundle:
    """A bundle just sealed, with the data key that its grants need.

    ``digest`` is the signed manifest's SHA-256, ``size_bytes`` what a data owner downloads.
    """

    path: Path
    bundle_id: str
    digest: str
    size_bytes: int
    data_key: DataKey = field(repr=False)


def seal_bundle(
    source: Path,
    destination: Path,
    *,
    owner: SigningKey,
    model: Mapping[str, Json],
    version: int = 1,
    not_after: datetime,
) -> SealedBundle:
    """Encrypts and signs every file under ``source`` into a new directory ``destination``.

    ``model`` is a description for those who may open the bundle; nobody else sees it, nor the files' names.
    ``version`` is at least 1 and higher than that of the bundle this one replaces. ``not_after`` carries a time zone.
    Memory is bounded by a few MiB, whatever the files' size. The bundle is built beside ``destination`` and renamed
    when it is complete and on the disk; a failure leaves nothing. Raises ``InputError`` for a source, model or version
    that no data owner would accept, and ``OutputError`` for a destination that exists or cannot be written.
    """
    end = whole_second(not_after)
    with _as_input_error(source):
        # refused before the files are encrypted, which may take minutes, and not after
        parse_canonical(canonical_json(dict(model)), kind="inner", limit_bytes=MAX_MANIFEST_BYTES)
        names = _file_names(source)
    data_key, bundle_id = generate_data_key(), token_hex(16)
    with new_directory(destination) as building:
        objects = building / OBJECTS_DIRECTORY
        objects.mkdir()
        entries = [
            _seal_file(source / name, objects, data_key, bundle_id, name=name, index=index)
            for index, name in enumerate(names, start=1)
        ]
        files, sealed = tuple(file for file, _ in entries), tuple(sealed for _, sealed in entries)
        with _as_input_error(source):
            inner = _inner_stream(files, model, sealed, data_key, bundle_id)
            statement = _statement(inner, sealed, bundle_id, version=version, not_after=end)
        envelope = sign_statement(statement, MANIFEST_TYPE, owner)
        write_synced(building / MANIFEST_FILE, envelope, mode=0o666)
        sync_directory(objects)
    size_bytes = len(envelope) + sum(one.size for one in sealed)
    return SealedBundle(destination, bundle_id, hashlib.sha256(statement).hexdigest(), size_bytes, data_key)


def whole_second(not_after: datetime) -> datetime:
    """Returns the end of a bundle or grant in UTC, cut to the second; raises ``InputError`` if it has no time zone."""
    if not_after.tzinfo is None:
        raise InputError(f"not_after: expected an instant with a time zone, got {not_after.isoformat()}")
    try:
        return not_after.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise InputError(f"not_after: {not_after.isoformat()} is out of range") from error


@contextmanager
def _as_input_error(source: Path) -> Iterator[None]:
    """What a data owner would refuse is, before it is sealed, a fault of what the model owner gave."""
    try:
        yield
    except (VerificationError, ValueError, OSError) as error:
        raise InputError(f"{source} cannot be sealed: {error}") from error


def _file_names(source: Path) -> list[str]:
    """Returns the sorted names of the files under a directory, with ``/`` between their parts."""
    if not source.is_dir():
        raise InputError(f"{source} is not a directory")
    names = []
    for path in source.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is not a regular file")
        if path.is_file():
            names.append(path.relative_to(source).as_posix())
    if not names:
        raise InputError(f"{source} has no files")
    check_file_names(names)
    for name in names:
        refuse_code(name, source / name)
    return sorted(names)


def _seal_file(
    source: Path, objects: Path, data_key: DataKey, bundle_id: str, *, name: str, index: int
) -> tuple[InnerFile, SealedObject]:
    """Encrypts one file into the directory of objects, under the object's name."""
    building = objects / f"{index}.partial"
    try:
        opened = source.open("rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    with opened, building.open("xb") as sink:
        context = object_context(bundle_id, index)
        file, sealed = encrypt_object(opened, sink, data_key, context, name=name, index=index)
        sink.flush()
        os.fsync(sink.fileno())
    building.rename(objects / sealed.name)
    return file, sealed


def _inner_stream(
    files: tuple[InnerFile, ...],
    model: Mapping[str, Json],
    sealed: tuple[SealedObject, ...],
    data_key: DataKey,
    bundle_id: str,
) -> bytes:
    inner = InnerManifest(files=files, model=dict(model))
    read_inner_manifest(write_document(inner), sealed)  # nothing is sealed that would be refused when it is opened
    return encrypt_manifest(inner, data_key, bundle_id)


def _statement(
    inner: bytes, sealed: tuple[SealedObject, ...], bundle_id: str, *, version: int, not_after: datetime
) -> bytes:
    statement = write_document(
        OuterManifest(
            block_size=BLOCK_BYTES,
            bundle_id=bundle_id,
            format=FORMAT,
            inner=inner,
            not_after=not_after,
            objects=sealed,
            suite=SUITE,
            version=version,
        )
    )
    read_outer_manifest(statement)
    return statement
