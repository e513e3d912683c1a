"""Which sealed emulator is the newest, as the model owner's repository says it: no older one, and said today.

python-tuf's client does the work of The Update Framework, from the root that the data owner pinned, over any source.
It keeps its state by rename but without waiting for the disk, so beside it stands a mark of our own that a power cut,
or a removed directory, does not lower::

    HOME/root.json              the pinned root, from the model owner's admission
    HOME/repository/metadata/   python-tuf's state; it may be removed
    HOME/repository/newest.json the mark: the newest version seen, its digest, the newest root, and when
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from fl_clients.patient_source import PatientSource
from scaleot_core.bundle.canonical import Document, Instant, Sha256, read_document, write_document
from scaleot_core.bundle.file_lock import locked
from scaleot_core.bundle.files import replace_file
from scaleot_core.bundle.keys import VerifyingKey
from scaleot_core.bundle.manifest import MAX_ENVELOPE_BYTES, MAX_INTEGER
from scaleot_core.bundle.repository import (
    LIFETIMES,
    MAX_METADATA_BYTES,
    METADATA_DIRECTORY,
    TARGET,
    TARGETS_DIRECTORY,
    Role,
    is_repository_file,
)
from scaleot_core.bundle.verify import SignedManifest, verify_manifest
from scaleot_core.errors import FetchError, InputError, NotServedError, OutputError, VerificationError

PINNED_ROOT_FILE, STATE_DIRECTORY, MARK_FILE = "root.json", "repository", "newest.json"
CLOCK_TOLERANCE = timedelta(hours=1)
"""That the clocks of both sides may differ by, on top of what a timestamp lives."""

_MAX_MARK_BYTES = 1024
_CONFIG = UpdaterConfig(
    root_max_length=MAX_METADATA_BYTES,
    timestamp_max_length=MAX_METADATA_BYTES,
    snapshot_max_length=MAX_METADATA_BYTES,
    targets_max_length=MAX_METADATA_BYTES,
    max_delegations=0,
)


@dataclass(frozen=True)
class NewestManifest:
    """The manifest that the repository calls the newest, which the owner's own key has signed, too."""

    signed: SignedManifest
    envelope: bytes = field(repr=False)


class _Mark(Document):
    """``newest.json``."""

    digest: Sha256
    format: Literal["scaleot.newest/1"]
    root: Annotated[int, Field(ge=1, le=MAX_INTEGER)]
    seen_at: Instant
    version: Annotated[int, Field(ge=1, le=MAX_INTEGER)]


def newest_manifest(source: PatientSource, home: Path, *, owner: VerifyingKey, now: datetime) -> NewestManifest:
    """Returns the manifest of the newest sealed emulator and remembers it, so that no older one is believed later.

    ``now`` carries a time zone. python-tuf compares ends with the system's own clock.

    Raises:
        VerificationError: ``repository.expired``, ``.rollback``, ``.signature``, ``.digest``, ``.malformed``,
            ``.empty``, ``.clock``, ``.mark``, ``.equivocation``, or a code ``bundle.*`` of the manifest itself.
        FetchError: the source refuses, or gives nothing within its deadline.
        InputError: the home has no pinned root, or another process is at it.
        OutputError: the home cannot be written.
    """
    state = home / STATE_DIRECTORY
    with locked(state / "lock", in_use=f"{state} is in use by another process. Wait until it ends"):
        mark = _read_mark(state / MARK_FILE)
        _check_clock_against(mark, now)
        try:
            (state / METADATA_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
            envelope, root, timestamp = _refresh(source, state, _pinned_root(home))
        except OSError as error:
            raise OutputError(f"{state} cannot be written: {error.strerror or error}") from error
        _check_clock(timestamp, now)
        signed = verify_manifest(envelope, owner, now=now)
        _check_is_not_older(mark, signed, root)
        _remember(state / MARK_FILE, signed, root, now)
    return NewestManifest(signed, envelope)


def _refresh(source: PatientSource, state: Path, pinned_root: bytes) -> tuple[bytes, int, Timestamp]:
    """Walks the repository and returns the target, the number of the newest root, and the timestamp."""
    metadata = state / METADATA_DIRECTORY
    try:
        updater = Updater(
            str(metadata),
            METADATA_DIRECTORY,
            target_base_url=TARGETS_DIRECTORY,
            fetcher=_SourceFetcher(source),
            config=_CONFIG,
            bootstrap=pinned_root,
        )
        updater.refresh()
        target = updater.get_targetinfo(TARGET)
        if target is None:
            raise VerificationError("repository.empty", f"the repository has no target {TARGET}")
        if target.length > MAX_ENVELOPE_BYTES:
            raise VerificationError("repository.malformed", f"the target {TARGET} is over {MAX_ENVELOPE_BYTES} bytes")
        envelope = Path(updater.download_target(target, str(state / "manifest.dsse.json"))).read_bytes()
    except RepositoryError as error:
        raise _refusal(error) from error
    except DownloadError as error:
        raise _failure(error) from error
    root = Metadata[Root].from_file(str(metadata / "root.json")).signed
    return envelope, root.version, Metadata[Timestamp].from_file(str(metadata / "timestamp.json")).signed


class _SourceFetcher(FetcherInterface):
    """python-tuf's way to a file, over a source: its "URLs" are the names of files within the repository."""

    def __init__(self, source: PatientSource) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not is_repository_file(url):  # of a hostile target's name, for example
            raise DownloadHTTPError(f"{url[:200]!r} is no file of a repository", 404)
        most_bytes = MAX_ENVELOPE_BYTES if url.startswith(f"{TARGETS_DIRECTORY}/") else MAX_METADATA_BYTES
        try:
            return iter([self._source.repository_file(url, most_bytes)])
        except NotServedError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except FetchError as error:
            raise DownloadError(str(error)) from error


def _refusal(error: RepositoryError) -> VerificationError:
    for kind, code, meaning in _REFUSALS:
        if isinstance(error, kind):
            return VerificationError(f"repository.{code}", f"the repository is refused: {error}. {meaning}")
    raise AssertionError("the last row is of every error") from error


_REFUSALS: tuple[tuple[type[RepositoryError], str, str], ...] = (
    (
        ExpiredMetadataError,
        "expired",
        "The source serves an old copy, or the model owner has not renewed it (scaleot publish HOME --refresh), or "
        "this machine's clock is ahead: check the clock, then ask the model owner",
    ),
    (
        BadVersionNumberError,
        "rollback",
        "The source serves older files than it did before, or a mixture: try another source, and tell the model owner",
    ),
    (
        UnsignedMetadataError,
        "signature",
        "Both signatures of a role have to hold: this is not the model owner's repository, or a forged copy. Compare "
        "the pinned root with the model owner's",
    ),
    (LengthOrHashMismatchError, "digest", "The source mixes files of different moments, or damages them: try another"),
    (RepositoryError, "malformed", "Try another source, and tell the model owner"),
)


def _failure(error: DownloadError) -> FetchError:
    """A file that the signed metadata names is missing, or the source failed: no reason to disbelieve the owner."""
    cause = error.__cause__
    return cause if isinstance(cause, FetchError) else FetchError(f"the repository cannot be fetched: {error}")


def _pinned_root(home: Path) -> bytes:
    path = home / PINNED_ROOT_FILE
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the pinned root {path} cannot be read: {error.strerror}. It comes with the model owner's admission"
        ) from error


def _check_clock(timestamp: Timestamp, now: datetime) -> None:
    """A clock that is far behind would take an old timestamp for a fresh one: no timestamp has so long to live."""
    left = timestamp.expires - now
    if left > LIFETIMES[Role.TIMESTAMP] + CLOCK_TOLERANCE:
        raise VerificationError(
            "repository.clock",
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, and the repository was renewed on "
            f"{timestamp.expires - LIFETIMES[Role.TIMESTAMP]:%Y-%m-%d %H:%M}: set the clock",
        )


def _check_clock_against(mark: _Mark | None, now: datetime) -> None:
    if mark is not None and now < mark.seen_at - CLOCK_TOLERANCE:
        raise VerificationError(
            "repository.clock",
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC and went back since {mark.seen_at}: set the clock",
        )


def _read_mark(path: Path) -> _Mark | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return read_document(_Mark, data, kind="newest", limit_bytes=_MAX_MARK_BYTES)
    except VerificationError as error:
        raise VerificationError(
            "repository.mark",
            f"{path}, which remembers the newest version seen, is damaged: {error}. Bring it back from a backup; "
            "removing it lets the source choose an older emulator once",
        ) from error


def _check_is_not_older(mark: _Mark | None, signed: SignedManifest, root: int) -> None:
    if mark is None:
        return
    got, version = signed.manifest.version, mark.version
    if got < version or root < mark.root:
        raise VerificationError(
            "repository.rollback",
            f"expected version {version} or a later one, of root {mark.root} or a later one; got version {got} of root "
            f"{root}: the source serves an old copy. Try another source, and tell the model owner",
        )
    if got == version and signed.digest != mark.digest:
        raise VerificationError(
            "repository.equivocation",
            f"version {got} was {mark.digest} and is now {signed.digest}: no owner publishes two. Ask the model owner",
        )


def _remember(path: Path, signed: SignedManifest, root: int, now: datetime) -> None:
    mark = _Mark(
        digest=signed.digest,
        format="scaleot.newest/1",
        root=root,
        seen_at=now.replace(microsecond=0),
        version=signed.manifest.version,
    )
    try:
        replace_file(path, write_document(mark), mode=0o600)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
