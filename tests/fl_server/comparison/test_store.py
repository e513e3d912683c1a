import json
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_server.comparison.store import RESULTS_FOLDER, VERSION_FILE, Origin, ResultStore
from scaleot_core.errors import OutputError

VERSIONS = {"scaleot": "1", "torch": "2"}


def never() -> dict[str, int]:
    raise AssertionError("computed again")


def test_a_result_is_computed_once_and_found_by_a_later_store(tmp_path: Path) -> None:
    assert ResultStore(tmp_path, VERSIONS, "a machine").get_or_compute(
        "figure", {"a": 1}, lambda: {"loss": 0.25}
    ).values == {"loss": 0.25}
    assert ResultStore(tmp_path, VERSIONS, "a machine").get_or_compute("figure", {"a": 1}, never).values == {
        "loss": 0.25
    }


def test_a_result_keeps_the_machine_and_the_day_that_computed_it(tmp_path: Path) -> None:
    first = ResultStore(tmp_path, VERSIONS, "first").get_or_compute("figure", {"a": 1}, lambda: {"loss": 1})
    later = ResultStore(tmp_path, VERSIONS, "second")
    assert later.get_or_compute("figure", {"a": 1}, never) == first
    assert first.origin == Origin("first", datetime.now(UTC).date().isoformat())
    assert later.get_or_compute("figure", {"a": 2}, lambda: {"loss": 1}).origin.machine == "second"


def test_a_store_counts_what_it_computed_and_not_what_it_found(tmp_path: Path) -> None:
    ResultStore(tmp_path, VERSIONS, "a machine").get_or_compute("figure", {"a": 1}, lambda: {"loss": 1})
    store = ResultStore(tmp_path, VERSIONS, "a machine")
    store.get_or_compute("figure", {"a": 1}, never)
    assert store.num_computed == 0
    store.get_or_compute("figure", {"a": 2}, lambda: {"loss": 2})
    assert store.num_computed == 1


@pytest.mark.parametrize(("what", "key"), [("figure", {"a": 2}), ("other", {"a": 1})])
def test_what_differs_in_kind_or_inputs_is_another_result(tmp_path: Path, what: str, key: dict[str, int]) -> None:
    store = ResultStore(tmp_path, VERSIONS, "a machine")
    store.get_or_compute("figure", {"a": 1}, lambda: {"loss": 1})
    assert store.get_or_compute(what, key, lambda: {"loss": 2}).values == {"loss": 2}


def test_a_computation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, VERSIONS, "a machine")
    with pytest.raises(AssertionError):
        store.get_or_compute("figure", {}, never)
    assert list((tmp_path / RESULTS_FOLDER).iterdir()) == []


def test_a_store_of_other_versions_is_refused_with_both_named(tmp_path: Path) -> None:
    ResultStore(tmp_path, VERSIONS, "a machine")
    with pytest.raises(OutputError, match=r"begun by .*torch 2, this is .*torch 3: give --out another directory"):
        ResultStore(tmp_path, {**VERSIONS, "torch": "3"}, "a machine")


@pytest.mark.parametrize("content", ["{", "[]", "3", json.dumps({"format": "other"})])
def test_a_stamp_that_is_not_ours_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / VERSION_FILE).write_text(content)
    with pytest.raises(OutputError, match=str(tmp_path)):
        ResultStore(tmp_path, VERSIONS, "a machine")


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something else than a comparison"):
        ResultStore(tmp_path, VERSIONS, "a machine")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_result_names_itself_and_the_cure(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, VERSIONS, "a machine")
    store.get_or_compute("figure", {}, lambda: {"loss": 1})
    [path] = (tmp_path / RESULTS_FOLDER).iterdir()
    path.write_text("{")
    with pytest.raises(OutputError, match=f"{path.name} is damaged: delete it"):
        store.get_or_compute("figure", {}, never)


def hammer(directory: Path) -> None:
    store = ResultStore(directory, VERSIONS, "a machine")
    for number in range(200):
        assert store.get_or_compute("figure", {"n": number}, lambda: {"loss": 0.5}).values == {"loss": 0.5}


def test_processes_that_begin_and_fill_one_directory_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=hammer, args=(tmp_path / "shared",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list((tmp_path / "shared" / RESULTS_FOLDER).iterdir())) == 200


@pytest.mark.parametrize("content", ["null", "[1]", "{", ""])
def test_a_damaged_result_is_one_clear_error(tmp_path: Path, content: str) -> None:
    ResultStore(tmp_path, VERSIONS, "a machine").get_or_compute("figure", {}, lambda: {"loss": 1})
    [path] = (tmp_path / RESULTS_FOLDER).iterdir()
    path.write_text(content)
    with pytest.raises(OutputError, match=r"is damaged: delete it"):
        ResultStore(tmp_path, VERSIONS, "a machine").get_or_compute("figure", {}, never)
