from collections import Counter

import pytest

from scaleot_core.errors import DataError
from scaleot_core.training.data import ChoiceRecord, Record, TextRecord, few_shot

CHOICES = ("negative", "neutral", "positive")


def records(*counts: int) -> list[Record]:
    """Returns so many records of each label, the labels taking turns."""
    labels = [label for turn in range(max(counts)) for label, count in enumerate(counts) if turn < count]
    return [ChoiceRecord(f"record {index}", CHOICES, label) for index, label in enumerate(labels)]


def labels_of(drawn: tuple[Record, ...]) -> Counter[int]:
    return Counter(record.label for record in drawn if isinstance(record, ChoiceRecord))


def test_every_label_has_as_many_records_however_rare_it_is() -> None:
    assert labels_of(few_shot(records(90, 9, 30), per_class=9, seed=0)) == {0: 9, 1: 9, 2: 9}


def test_a_seed_decides_the_draw_and_the_order_of_the_file_stays() -> None:
    everything = records(40, 40, 40)
    first, again, other = (few_shot(everything, per_class=5, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    places = [everything.index(record) for record in first]
    assert places == sorted(places)


def test_every_record_of_a_label_can_be_drawn() -> None:
    everything = records(6, 6, 6)
    drawn = {record for seed in range(40) for record in few_shot(everything, per_class=2, seed=seed)}
    assert drawn == set(everything)


def test_labels_with_fewer_records_are_named_with_their_counts() -> None:
    with pytest.raises(DataError, match=r"at least 10 .*, but label 1 has 9, label 2 has 3: ask for at most 3"):
        few_shot(records(90, 9, 3), per_class=10, seed=0)


def test_a_label_that_never_occurs_is_missed() -> None:
    with pytest.raises(DataError, match="label 2 has 0"):
        few_shot(records(5, 5, 0), per_class=1, seed=0)


def test_records_without_labels_are_refused_with_their_kind() -> None:
    with pytest.raises(DataError, match=r"examples_per_class.*got TextRecord"):
        few_shot([TextRecord("no label")], per_class=1, seed=0)
