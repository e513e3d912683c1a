from collections import Counter
from pathlib import Path

import pytest

from fl_server.data import hold_back, read_data
from scaleot_core.errors import DataError
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import ChoiceRecord, TextRecord
from tests.support.tiny_task import tiny_run, write_task

RECORDS = tuple(TextRecord(str(number)) for number in range(50))


def test_held_back_records_are_no_longer_in_training_and_nothing_is_lost() -> None:
    train, test = hold_back(RECORDS, 20)
    assert len(test) == 20
    assert sorted((*train, *test), key=lambda record: int(record.text)) == list(RECORDS)


def test_the_same_records_are_held_back_every_time_and_they_are_not_just_the_first() -> None:
    assert hold_back(RECORDS, 20) == hold_back(RECORDS, 20)
    assert hold_back(RECORDS, 20)[1] != RECORDS[:20]


def test_holding_everything_back_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"of 50 training records evaluation\.examples = 50"):
        hold_back(RECORDS, 50)


def test_without_a_test_file_the_run_holds_back_and_every_seed_measures_on_the_same(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    runs = [tiny_run(task, 'data.test=""', f"seed={seed}") for seed in (0, 1)]
    first, second = (read_data(run, SilentReporter()) for run in runs)
    assert first.test == second.test and len(first.test) == 20
    assert len(first.pooled) == 20
    assert not set(first.test) & set(first.pooled)


def test_few_shot_records_are_drawn_by_the_seed_before_they_are_divided_and_the_test_stays(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    runs = [tiny_run(task, "data.examples_per_class=6", f"seed={seed}") for seed in (0, 0, 1)]
    first, again, other = (read_data(run, SilentReporter()) for run in runs)
    assert first == again
    assert Counter(record.label for record in first.pooled if isinstance(record, ChoiceRecord)) == {0: 6, 1: 6}
    assert set(first.pooled) != set(other.pooled)
    assert first.test == other.test


def test_more_records_of_a_label_than_there_are_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    run = tiny_run(write_task(tmp_path), "data.examples_per_class=21")
    with pytest.raises(DataError, match="label 0 has 20, label 1 has 20"):
        read_data(run, SilentReporter())
