"""From a verified bundle and a grant to readable files in sealed memory."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from io import BufferedWriter
from pathlib import Path
from types import MappingProxyType, TracebackType

from scaleot_core.bundle.archive import decrypt_manifest, decrypt_object, read_blocks
from scaleot_core.bundle.canonical import Json
from scaleot_core.bundle.contents import refuse_code
from scaleot_core.bundle.grant import verify_grant
from scaleot_core.bundle.keys import DataKey, Identity
from scaleot_core.bundle.manifest import InnerFile, InnerManifest, object_context
from scaleot_core.bundle.plaintext import PlaintextStore, plaintext_store
from scaleot_core.bundle.verify import VerifiedBundle
from scaleot_core.errors import ScaleOTError


@dataclass(frozen=True, eq=False)
class OpenedBundle:
    """The files of a bundle, by name, as paths that this process can read until ``close`` or the ``with`` block's end.

    ``model`` is the model owner's description. What has mapped a file into memory may use it longer.
    """

    bundle_id: str
    files: Mapping[str, Path]
    model: Mapping[str, Json]
    _store: PlaintextStore = field(repr=False)

    def __enter__(self) -> "OpenedBundle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the files up; their paths no longer work."""
        self._store.close()


def open_bundle(
    bundle: VerifiedBundle, grant: bytes, identity: Identity, *, organisation: str, now: datetime
) -> OpenedBundle:
    """Returns the decrypted files of a bundle that is granted to this organisation and identity.

    ``now`` carries a time zone. The plaintext goes to sealed memory and to no disk (``plaintext.py`` says what other
    systems than Linux do). Every block is compared with its signed digest, in memory, right before it is decrypted, and
    no file has a path before all of them are complete and authentic. Beyond the files themselves, memory is bounded by
    one block of 16 MiB. Raises
    ``VerificationError`` with a code of ``FORMAT.md``, and ``ScaleOTError`` if memory (or the disk of a system
    without memory files) does not hold the files; then nothing is left open.
    """
    return open_own_bundle(bundle, verify_grant(bundle, grant, identity, organisation=organisation, now=now))


def open_own_bundle(bundle: VerifiedBundle, data_key: DataKey) -> OpenedBundle:
    """Opens a bundle as ``open_bundle`` does, for its owner, who has the data key and needs no grant."""
    inner = decrypt_manifest(bundle.manifest, data_key)
    with ExitStack() as on_failure:
        try:
            store = plaintext_store()
            on_failure.callback(store.close)
            files = _decrypt_files(bundle, inner, data_key, store)
        except OSError as error:
            raise ScaleOTError(f"there is no room for the bundle's files: {error}") from error
        on_failure.pop_all()
    return OpenedBundle(bundle.bundle_id, MappingProxyType(files), MappingProxyType(inner.model), store)


def _decrypt_files(
    bundle: VerifiedBundle, inner: InnerManifest, data_key: DataKey, store: PlaintextStore
) -> dict[str, Path]:
    plaintexts = {file.name: _decrypt_file(bundle, file, data_key, store) for file in inner.files}
    files = {name: store.finish(plaintext) for name, plaintext in plaintexts.items()}
    for name, path in files.items():
        refuse_code(name, path)
    return files


def _decrypt_file(bundle: VerifiedBundle, file: InnerFile, data_key: DataKey, store: PlaintextStore) -> BufferedWriter:
    sink = store.create()
    sealed, context = bundle.manifest.objects[file.object - 1], object_context(bundle.bundle_id, file.object)
    with closing(read_blocks(bundle.objects_directory, sealed)) as blocks:
        decrypt_object(blocks, data_key, context, sink)
    return sink
