from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.errors import InputError, OutputError
from scaleot_core.model_privacy.disclosure import Revealed
from scaleot_core.model_privacy.disclosure_record import (
    DisclosedEmulator,
    DisclosureRecord,
    read_disclosure,
    record_disclosure,
    record_path,
)

MODEL = "ab" * 32
GOLDEN = Path(__file__).parents[1] / "golden" / "disclosure-1"
FIRST = DisclosedEmulator(
    "01" * 32,
    date(2026, 3, 1),
    Revealed(
        LayerPlan(
            (
                PlannedLayer(0, LayerRole.ADAPTER),
                PlannedLayer(1, LayerRole.KEPT, 0.25, kept_channel_share=0.5),
                PlannedLayer(2, LayerRole.SHARED, shared_from=1),
            )
        ),
        "weights",
    ),
)
SECOND = DisclosedEmulator(
    "02" * 32,
    date(2026, 4, 30),
    Revealed(LayerPlan(tuple(PlannedLayer(i, LayerRole.REPLACED) for i in range(3))), "weights"),
)


def test_a_model_without_a_record_has_an_empty_one(tmp_path: Path) -> None:
    assert read_disclosure(tmp_path / "nowhere", MODEL) == DisclosureRecord(MODEL)


def test_emulators_add_up_on_disk_in_their_order_and_models_do_not_mix(tmp_path: Path) -> None:
    directory = tmp_path / "owner" / "records"
    assert record_disclosure(directory, MODEL, FIRST).emulators == (FIRST,)
    assert record_disclosure(directory, MODEL, SECOND).emulators == (FIRST, SECOND)
    assert read_disclosure(directory, MODEL) == DisclosureRecord(MODEL, (FIRST, SECOND))
    assert read_disclosure(directory, MODEL).revealed == (FIRST.revealed, SECOND.revealed)
    assert read_disclosure(directory, "cd" * 32).emulators == ()
    assert not [path for path in directory.iterdir() if path.suffix not in (".json", ".lock")]


def test_an_emulator_that_is_recorded_already_changes_nothing(tmp_path: Path) -> None:
    record_disclosure(tmp_path, MODEL, FIRST)
    before = record_path(tmp_path, MODEL).read_bytes()
    assert record_disclosure(tmp_path, MODEL, FIRST).emulators == (FIRST,)
    assert record_path(tmp_path, MODEL).read_bytes() == before


def test_writers_that_record_at_once_all_stay_recorded(tmp_path: Path) -> None:
    def record(number: int) -> None:
        record_disclosure(tmp_path, MODEL, DisclosedEmulator(f"{number:064x}", date(2026, 1, 1), FIRST.revealed))

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(record, range(16)))
    assert len(read_disclosure(tmp_path, MODEL).emulators) == 16


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("scaleot.disclosure/1", "scaleot.disclosure/2", "format: Input should be 'scaleot.disclosure/1'"),
        ('"kept"', '"leaked"', "a layer plan is malformed"),
        ('"index": 1', '"index": 7', "every original layer index once, in order"),
        ("2026-03-01", "yesterday", "emulators.0.date"),
        (FIRST.digest, "../../etc", "emulators.0.digest"),
        (MODEL, "cd" * 32, "model: it is the record of cdcd"),
        ("}", "", "file: Invalid JSON"),
    ],
)
def test_a_record_that_is_not_what_it_should_be_names_place_and_cure(
    old: str, new: str, fault: str, tmp_path: Path
) -> None:
    record_disclosure(tmp_path, MODEL, FIRST)
    path = record_path(tmp_path, MODEL)
    text = path.read_text(encoding="utf-8").replace('"index":1', '"index": 1')
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_disclosure(tmp_path, MODEL)
    assert str(path) in str(caught.value) and fault in str(caught.value) and "Put back a copy" in str(caught.value)
    before = path.read_bytes()
    with pytest.raises(InputError):
        record_disclosure(tmp_path, MODEL, SECOND)
    assert path.read_bytes() == before


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        record_disclosure(tmp_path / "file", MODEL, FIRST)


def test_the_golden_record_still_opens_and_its_emulators_of_unknown_basis_have_one_each() -> None:
    golden = read_disclosure(GOLDEN, MODEL)
    assert [(one.digest, one.day, one.revealed) for one in golden.emulators] == [
        (one.digest, one.day, Revealed(one.revealed.plan, one.digest)) for one in (FIRST, SECOND)
    ]
