import os
import resource
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from scaleot_core.bundle import (
    generate_identity,
    issue_grant,
    open_bundle,
    read_bundle,
    seal_bundle,
    verify_bundle,
    verify_objects,
)
from scaleot_core.bundle.manifest import BLOCK_BYTES
from scaleot_core.errors import InputError, ScaleOTError, VerificationError
from tests.support.bundles import CLINIC, END, FILES, MODEL, NOW, Scene, encrypt, replace_object, scene

CHUNK = 16 * 1024


def descriptors() -> set[Path]:
    """What this process has open; the listing's own descriptor is gone when it is looked up."""
    return {entry.readlink() for entry in list(Path("/proc/self/fd").iterdir()) if entry.is_symlink()}


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    made = scene(tmp_path)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    with open_bundle(verified, made.grant, made.identity, organisation=CLINIC, now=NOW) as opened:
        assert {name: path.read_bytes() for name, path in opened.files.items()} == FILES
        assert dict(opened.model) == MODEL
        assert opened.bundle_id == made.sealed.bundle_id


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_a_round_trip_is_exact_at_the_edges_of_a_chunk(tmp_path: Path, size: int) -> None:
    files = {"emulator.safetensors": os.urandom(size)}
    assert scene(tmp_path, files).open() == files


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_round_trip_is_exact_at_the_edges_of_a_block(tmp_path: Path, over: int) -> None:
    # the ciphertext is header, plaintext and tags; this plaintext makes it two blocks and ``over`` bytes long
    size = 2 * BLOCK_BYTES + over - 56
    size -= 16 * (size // (CHUNK + 16) + 1)
    files = {"emulator.safetensors": os.urandom(size)}
    made = scene(tmp_path, files)
    assert made.object_file(1).stat().st_size == 2 * BLOCK_BYTES + over
    assert len(made.manifest()["objects"][0]["blocks"]) == (3 if over > 0 else 2)
    assert made.open() == files


def test_every_recipient_has_its_own_grant_and_opens_the_same_files(tmp_path: Path) -> None:
    made = scene(tmp_path)
    other = generate_identity()
    grant = issue_grant(made.sealed, owner=made.owner, organisation=CLINIC, recipient=other.recipient, not_after=END)
    assert made.open(grant=grant, identity=other) == made.open() == FILES


def test_a_grant_shows_neither_the_data_key_nor_the_inside(tmp_path: Path) -> None:
    made = scene(tmp_path)
    assert made.sealed.data_key.secret not in made.grant
    assert made.sealed.data_key.secret.hex().encode() not in made.grant


def test_a_closed_bundle_is_gone(tmp_path: Path) -> None:
    made = scene(tmp_path)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    before = descriptors()
    opened = open_bundle(verified, made.grant, made.identity, organisation=CLINIC, now=NOW)
    assert any("memfd:scaleot" in str(target) for target in descriptors())
    opened.close()
    opened.close()
    assert descriptors() == before


class FileSystemWatch:
    """Notes every call that could make or change a file, by Python's audit events, while it is switched on."""

    def __init__(self) -> None:
        self.is_on, self.events = False, list[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        if event == "open" and isinstance(arguments[2], int) and isinstance(arguments[0], str | bytes | os.PathLike):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self.events.append(f"open {arguments[0]!r}")
        elif event in {
            "os.rename",
            "os.mkdir",
            "os.link",
            "os.symlink",
            "os.truncate",
            "tempfile.mkstemp",
            "tempfile.mkdtemp",
        }:
            self.events.append(event)


def test_opening_writes_to_no_file_system(tmp_path: Path) -> None:
    made = scene(tmp_path)
    watch = FileSystemWatch()
    watch.is_on = True
    assert made.open() == FILES
    seen_while_opening = list(watch.events)
    (tmp_path / "file").touch()
    watch.is_on = False
    assert seen_while_opening == []
    assert len(watch.events) == 1  # the watch does see a file being made


def test_a_system_without_memory_files_opens_it_too_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scene(tmp_path / "made")
    (tmp_path / "temporary").mkdir()
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert made.open() == FILES
    with pytest.raises(VerificationError, match=r"grant\.unwrap"):
        made.open(identity=generate_identity())
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_refused_bundle_leaves_no_memory_file_open(tmp_path: Path) -> None:
    made = scene(tmp_path)
    replace_object(made, 2, encrypt(made, 9, FILES["emulator.safetensors"]))  # signed, but made for another place
    before = descriptors()
    with pytest.raises(VerificationError) as refused:
        made.open()
    assert descriptors() == before
    assert refused.value.code == "object.decrypt"  # the error, and all that its traceback holds, is still alive


def test_files_that_memory_does_not_hold_are_an_error_of_ours_and_leave_nothing_open(tmp_path: Path) -> None:
    made = scene(tmp_path)
    before, limits = descriptors(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limits[1]))  # memory files obey it too
    try:
        with pytest.raises(ScaleOTError, match="no room"):
            made.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert descriptors() == before


def test_a_bundle_is_verified_without_its_objects_and_its_objects_on_their_own(tmp_path: Path) -> None:
    made = scene(tmp_path)
    made.object_file(2).rename(tmp_path / "elsewhere")
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    with pytest.raises(VerificationError, match=r"object\.missing"):
        verify_objects(verified)
    with pytest.raises(VerificationError, match=r"object\.missing"):
        open_bundle(verified, made.grant, made.identity, organisation=CLINIC, now=NOW)
    (tmp_path / "elsewhere").rename(made.object_file(2))
    verify_objects(verified)


def test_opening_reads_every_object_once(tmp_path: Path) -> None:
    made = scene(tmp_path)
    times_opened = dict.fromkeys((str(made.object_file(index)) for index in (1, 2, 3)), 0)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) in times_opened:
            times_opened[str(arguments[0])] += 1

    sys.addaudithook(count)
    assert made.open() == FILES
    assert list(times_opened.values()) == [1, 1, 1]


def test_what_is_opened_is_checked_again_after_verification(tmp_path: Path) -> None:
    made = scene(tmp_path)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    verify_objects(verified)
    changed = bytearray(made.object_file(2).read_bytes())
    changed[-1] ^= 1
    made.object_file(2).write_bytes(changed)
    with pytest.raises(VerificationError, match=r"object\.block"):
        open_bundle(verified, made.grant, made.identity, organisation=CLINIC, now=NOW)


def test_a_bundle_can_be_used_until_its_end_and_not_from_then_on(tmp_path: Path) -> None:
    made = scene(tmp_path)
    assert made.open(now=END - timedelta(seconds=1)) == FILES
    with pytest.raises(VerificationError, match=r"bundle\.expired"):
        made.open(now=END)
    verified = verify_bundle(read_bundle(made.path), made.owner.public, now=NOW)
    late = issue_grant(
        made.sealed,
        owner=made.owner,
        organisation=CLINIC,
        recipient=made.identity.recipient,
        not_after=END + timedelta(9),
    )
    with pytest.raises(VerificationError, match=r"bundle\.expired"):
        open_bundle(verified, late, made.identity, organisation=CLINIC, now=END)


def test_skipping_verification_is_a_type_error(tmp_path: Path) -> None:
    made = scene(tmp_path)
    with pytest.raises(TypeCheckError):
        open_bundle(read_bundle(made.path), made.grant, made.identity, organisation=CLINIC, now=NOW)  # type: ignore[arg-type]


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    os.mkfifo(pipe / "manifest.dsse.json")
    for path in (tmp_path, tmp_path / "missing", Path("/dev/null"), pipe):
        with pytest.raises(VerificationError, match=r"bundle\.missing"):
            read_bundle(path)


def missing_object(made: Scene) -> None:
    made.object_file(1).unlink()


def directory_for_object(made: Scene) -> None:
    path = made.object_file(1)
    path.unlink()
    path.mkdir()


def pipe_for_object(made: Scene) -> None:
    path = made.object_file(1)
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [missing_object, directory_for_object, pipe_for_object])
def test_a_missing_or_strange_object_is_refused_at_once(tmp_path: Path, damage: object) -> None:
    made = scene(tmp_path)
    damage(made)  # type: ignore[operator]
    with pytest.raises(VerificationError, match=r"object\.missing"):
        made.open()


def test_files_that_the_manifest_does_not_name_are_never_read(tmp_path: Path) -> None:
    made = scene(tmp_path)
    (made.path / "config.json").write_bytes(b"{}")
    (made.path / "objects" / "extra").write_bytes(b"x")
    assert made.open() == FILES


@pytest.mark.parametrize("organisation", ["", "x" * 201, "a\nb", "a\x00b", "\u202eabc"])
def test_a_grant_is_not_issued_to_a_name_that_cannot_be_shown(tmp_path: Path, organisation: str) -> None:
    made = scene(tmp_path)
    with pytest.raises(InputError, match="organisation"):
        issue_grant(
            made.sealed, owner=made.owner, organisation=organisation, recipient=made.identity.recipient, not_after=END
        )


def test_fractions_of_a_second_are_cut_off(tmp_path: Path) -> None:
    made = scene(tmp_path)
    end = END + timedelta(microseconds=999_999)
    sealed = seal_bundle(tmp_path / "source", tmp_path / "other", owner=made.owner, model={}, not_after=end)
    assert verify_bundle(read_bundle(sealed.path), made.owner.public, now=NOW).manifest.not_after == END
