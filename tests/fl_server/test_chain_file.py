import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fl_server.chain_file import ChainFile, ChainHead, create_chain, head_path
from scaleot_core.bundle.canonical import Document
from scaleot_core.errors import ChainError, InputError, OutputError

ROOT = Path(__file__).parents[2]


class Note(Document):
    text: str


NOTES: TypeAdapter[Note] = TypeAdapter(Note)


def opened(path: Path, *, is_copy: bool = False) -> ChainFile[Note]:
    return ChainFile(path, kind="notebook", entries=NOTES, is_copy=is_copy)


def append(path: Path, *texts: str) -> ChainHead:
    file = opened(path)
    for text in texts:
        with file.writing():
            file.read()
            head = file.append(Note(text=text))
    return head


def texts(path: Path) -> list[str]:
    return [line.entry.text for line in opened(path).read()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A notebook of three lines."""
    path = tmp_path / "notes.jsonl"
    create_chain(path, Note(text="first"))
    append(path, "second", "third")
    return path


def test_what_was_appended_is_read_in_order_with_the_digests_of_the_lines(path: Path) -> None:
    lines = opened(path).read()
    assert [(line.number, line.entry.text) for line in lines] == [(1, "first"), (2, "second"), (3, "third")]
    assert opened(path).head == ChainHead(0, "0" * 64), "nothing was read yet"
    file = opened(path)
    file.read()
    assert file.head == ChainHead(3, lines[2].sha256)
    assert [file.digest_of(number) for number in (0, 1, 3, 4)] == [None, lines[0].sha256, lines[2].sha256, None]


def test_a_reader_sees_what_another_process_appends_and_only_that(path: Path) -> None:
    reader = opened(path)
    assert len(reader.read()) == 3
    assert reader.read() == []
    append(path, "fourth")
    assert [line.entry.text for line in reader.read()] == ["fourth"]


def test_a_line_that_is_just_being_written_is_not_seen_and_not_a_fault(path: Path) -> None:
    reader = opened(path)
    reader.read()
    before = path.read_bytes()
    append(path, "fourth")
    line = path.read_bytes()[len(before) :]
    for cut in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(before + line[:cut])
        head_path(path).write_bytes(head_of(path, before))
        assert reader.read() == []
        assert texts(path) == ["first", "second", "third"]


def head_of(path: Path, content: bytes) -> bytes:
    """Returns the head file that belongs to a content."""
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(content)
    file = opened(copy, is_copy=True)
    file.read()
    return b'{"format":"scaleot.chain-head/1","number":%d,"sha256":"%b"}\n' % (
        file.head.number,
        file.head.sha256.encode(),
    )


@pytest.mark.parametrize("cut", ["part of a line", "blocks missing"])
def test_an_append_removes_what_an_interrupted_one_left(path: Path, cut: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + (b'{"entry":{"te' if cut == "part of a line" else b"\0" * 80 + b"\n"))
    assert texts(path) == ["first", "second", "third"]
    append(path, "fourth")
    assert path.read_bytes().startswith(whole)
    assert texts(path) == ["first", "second", "third", "fourth"]


def test_a_whole_line_whose_head_was_not_written_counts(path: Path) -> None:
    head = head_path(path).read_bytes()
    append(path, "fourth")
    head_path(path).write_bytes(head)
    assert texts(path) == ["first", "second", "third", "fourth"]
    append(path, "fifth")
    assert texts(path) == ["first", "second", "third", "fourth", "fifth"]


def test_lines_that_were_acknowledged_cannot_be_cut_off(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(ChainError, match=f"notebook {path}, line 3: it is missing: the head names line 3"):
        opened(path).read()
    path.write_bytes(b"".join(lines)[:-1])
    with pytest.raises(ChainError, match="line 3: it is missing"):
        opened(path).read()


def test_a_file_that_becomes_shorter_while_it_is_open_is_a_fault_for_good(path: Path) -> None:
    file, content = opened(path), path.read_bytes()
    file.read()
    path.write_bytes(content[:100])
    with pytest.raises(ChainError, match="became shorter"):
        file.read()
    path.write_bytes(content)
    with pytest.raises(ChainError, match="became shorter"):
        file.read()
    with pytest.raises(ChainError), file.writing():
        file.read()


def test_a_line_with_another_schema_is_a_fault_and_names_the_field(path: Path) -> None:
    class Other(Document):
        number: int

    adapter: TypeAdapter[Other] = TypeAdapter(Other)
    with pytest.raises(ChainError, match=r"line 1: entry\.number: Field required"):
        ChainFile(path, kind="notebook", entries=adapter).read()


def test_a_missing_record_or_head_is_named(path: Path) -> None:
    head_path(path).unlink()
    with pytest.raises(InputError, match=r"the head .*notes\.head\.json .* cannot be read: No such file"):
        opened(path).read()
    assert len(opened(path, is_copy=True).read()) == 3
    path.unlink()
    with pytest.raises(InputError, match=r"there is no notebook .*notes\.jsonl"):
        opened(path).read()


def test_a_damaged_head_is_a_fault(path: Path) -> None:
    head_path(path).write_bytes(b'{"number":1}')
    with pytest.raises(ChainError, match="is damaged"):
        opened(path).read()


def test_a_copy_without_its_head_has_to_end_with_a_whole_line(path: Path) -> None:
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ChainError, match=r"line 3: it has no end"):
        opened(copy, is_copy=True).read()
    copy.write_bytes(path.read_bytes() + b"\0\n")
    with pytest.raises(ChainError, match="line 4: its SHA-256"):
        opened(copy, is_copy=True).read()


def test_a_line_that_is_too_long_is_refused_and_nothing_is_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        append(path, "x" * 65_536)
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_written_says_so_and_keeps_what_it_has(path: Path) -> None:
    path.chmod(0o600)
    file = opened(path)
    file.read()
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")  # a link is not followed
    with file.writing(), pytest.raises(OutputError, match="cannot be written"):
        file.append(Note(text="fourth"))


def test_threads_of_one_process_append_one_after_another(path: Path) -> None:
    file = opened(path)

    def work(name: str) -> None:
        for number in range(10):
            with file.writing():
                file.read()
                file.append(Note(text=f"{name} {number}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = texts(path)
    assert len(written) == 33
    assert [text for text in written if text.startswith("b ")] == [f"b {number}" for number in range(10)]


def test_processes_append_one_after_another_and_lose_nothing(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.fl_server.test_chain_file import append\n"
        "append(Path(sys.argv[1]), *(f'{sys.argv[2]} {number}' for number in range(15)))"
    )
    command = [sys.executable, "-c", program, str(path)]
    running = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [process.wait() for process in running] == [0, 0, 0]
    written = texts(path)
    assert sorted(written[3:]) == sorted(f"{name} {number}" for name in "abc" for number in range(15))
