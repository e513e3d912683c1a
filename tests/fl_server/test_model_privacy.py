import io
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from fl_server.compress import Workbench, disclosure_basis, load_full_model
from fl_server.data import Data, read_data, read_own_data
from fl_server.model_privacy import (
    Target,
    attack_emulator,
    disclosure_record,
    measure_model_privacy,
    record_of_home,
    warn_of_disclosure,
)
from fl_server.simulation import simulate
from scaleot_core.compression.plan import LayerRole
from scaleot_core.errors import InputError, ModelError
from scaleot_core.evaluation import evaluate
from scaleot_core.model_privacy.disclosure import Revealed
from scaleot_core.model_privacy.disclosure_record import read_disclosure, record_path
from scaleot_core.model_privacy.floors import MajorityFloor
from scaleot_core.progress import LogReporter, Reporter, SilentReporter
from scaleot_core.report import NotMeasured, ReportedModelPrivacy
from scaleot_core.run_file import RunFile
from tests.support.tiny_task import tiny_run, write_task

pytestmark = pytest.mark.usefixtures("own_cache")
SILENT = SilentReporter()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("material"))


def run_file(material: Path, *overrides: str) -> RunFile:
    small = (
        "emulator.builder=uniform",
        "federation.rounds=1",
        "federation.local_steps=2",
        "federation.clients=2",
        "evaluation.full_fine_tuning=false",
        "evaluation.examples=13",
    )
    return tiny_run(material, *small, *overrides)


def target_of(run: RunFile, data: Data) -> Target:
    full = load_full_model(run.model, SILENT)
    emulator = Workbench(full, run, SILENT).build(run.emulator)
    return Target(full, emulator, evaluate(full.model, full.tokenizer, data.test, reporter=SILENT))


def measured(
    run: RunFile, digest: str = "01" * 32, *, data: Data | None = None, reporter: Reporter = SILENT
) -> ReportedModelPrivacy:
    """Measures the emulator of a run file without the rounds, on its own data if no other is given."""
    data = data or read_data(run, SILENT)
    return measure_model_privacy(
        run, target_of(run, data), data, reporter, digest=digest, record=disclosure_record(run)
    )


def test_the_default_attacks_take_as_many_steps_as_a_client_of_the_default_federation() -> None:
    run = RunFile()
    assert run.model_privacy.strong_emulator_steps == run.federation.rounds * run.federation.local_steps
    assert run.model_privacy.healing_steps[0] == 0 < run.model_privacy.healing_steps[-1]


def test_without_attacks_floors_are_measured_and_no_record_is_kept(material: Path) -> None:
    privacy = measured(run_file(material))
    assert privacy.attacks.floors.majority == MajorityFloor(label=0, accuracy=7 / 13, examples=13)
    assert privacy.attacks.floors.random_initialisation.examples == 13
    assert privacy.attacks.strong_emulator is None and privacy.attacks.healing is None
    assert not privacy.disclosure.is_recorded and privacy.disclosure.emulators == 1


def test_a_simulation_measures_the_attacks_that_its_file_asks_for(material: Path, tmp_path: Path) -> None:
    run = run_file(
        material,
        "model_privacy.strong_emulator_steps=4",
        "model_privacy.strong_emulator_learning_rate=5e-3",
        "model_privacy.healing_steps=[0, 3]",
        f"model_privacy.disclosure_record={tmp_path / 'owner'}",
    )
    (tmp_path / "out").mkdir()
    report = simulate(run, tmp_path / "out", SILENT)
    section = json.loads((tmp_path / "out" / "report.json").read_text())["model_privacy"]
    assert section["strong_emulator"]["steps"] == 4
    assert section["strong_emulator"]["metrics"]["loss"] < report.results.emulator_zero_shot.loss
    first, second = section["healing"]
    assert first["zero_shot"] == report.results.emulator_zero_shot.to_json()
    assert first["tuned"] == section["strong_emulator"]
    assert second["steps"] == 3 and 0 < second["public_tokens"] <= 3 * run.importance.batch_size * 16
    assert second["zero_shot"] != first["zero_shot"] and second["tuned"] != first["tuned"]
    assert (section["disclosure"]["is_recorded"], section["disclosure"]["emulators"]) == (True, 1)
    assert section["disclosure"]["verbatim_share"] == pytest.approx(section["verbatim_share"])
    model = load_full_model(run.model, SILENT)
    [recorded] = read_disclosure(tmp_path / "owner", model.digest).emulators
    assert recorded.digest == report.bundle.digest
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 4


def test_the_strong_emulator_is_the_same_with_and_without_healing(material: Path) -> None:
    steps = "model_privacy.strong_emulator_steps=3"
    alone = measured(run_file(material, steps)).attacks
    beside = measured(run_file(material, steps, "model_privacy.healing_steps=[0]")).attacks
    later = measured(run_file(material, steps, "model_privacy.healing_steps=[1]")).attacks
    assert alone.strong_emulator == beside.strong_emulator == later.strong_emulator is not None
    assert alone.healing is None


def test_without_private_text_an_owner_s_report_heals_and_says_what_it_could_not_tune(material: Path) -> None:
    run = run_file(material, "model_privacy.strong_emulator_steps=3", "model_privacy.healing_steps=[0, 1]")
    attacks = measured(run, data=read_own_data(run, SILENT)).attacks
    assert attacks.strong_emulator == NotMeasured("there is no private text at hand")
    assert isinstance(attacks.healing, tuple)
    assert [(point.steps, point.tuned) for point in attacks.healing] == [(0, None), (1, None)]


@pytest.mark.parametrize(
    ("bytes_per_parameter", "left_out"),
    [(22.8, {"strong_emulator", "healing"}), (22.9, {"healing"}), (39.9, {"healing"}), (40.1, set())],
)
def test_an_attack_that_memory_is_too_small_for_is_left_out_with_both_numbers(
    material: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_parameter: float, left_out: set[str]
) -> None:
    """Seven tenths of the free memory may go to weights: 16 bytes a parameter, 28 where a healed copy is tuned."""
    run = run_file(material, "model_privacy.strong_emulator_steps=1", "model_privacy.healing_steps=[0, 1]")
    data = read_data(run, SILENT)
    target = target_of(run, data)
    parameters = sum(parameter.numel() for parameter in target.emulator.model.parameters())
    monkeypatch.setattr("fl_server.model_privacy.free_bytes", lambda _: int(bytes_per_parameter * parameters))
    stream = io.StringIO()
    attacks = measured(run, reporter=LogReporter(stream)).attacks.to_json()
    assert attacks["not_measured"].keys() == left_out == {name for name in attacks if attacks[name] is None}
    needed = {"strong_emulator": 16 * parameters, "healing": 28 * parameters}
    for name, why in attacks["not_measured"].items():
        free = bytes_per_parameter * parameters
        assert f"needs {needed[name] / 1e9:.3g} GB of memory" in why and f"{free / 1e9:.3g} GB are free" in why
    assert stream.getvalue().count("warning: ") == len(left_out)
    with pytest.raises(ModelError, match=r"healing: it needs .* GB") if left_out else nullcontext():
        attack_emulator(run, target, data, SILENT)  # as a comparison does, whose rows are to have all or none


def test_an_attack_that_runs_out_of_memory_is_left_out_and_another_fault_is_not_hidden(
    material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_file(material, "model_privacy.strong_emulator_steps=1")

    def fails(message: str) -> None:
        def attack(*_: object, **__: object) -> None:
            raise RuntimeError(message)

        monkeypatch.setattr("fl_server.model_privacy.tune_whole_emulator", attack)

    fails("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert measured(run).attacks.strong_emulator == NotMeasured("memory ran out")
    fails("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measured(run)


def test_emulators_of_one_model_add_up_and_one_that_reveals_more_is_warned_of(material: Path, tmp_path: Path) -> None:
    run = run_file(material, f"model_privacy.disclosure_record={tmp_path / 'owner'}")
    first, again = measured(run, "01" * 32).disclosure, measured(run, "02" * 32).disclosure
    assert (first.emulators, first.new) == (1, ()) and (again.emulators, again.new) == (2, ())
    whole = run.model_copy(update={"emulator": run.emulator.model_copy(update={"replaced_layer_share": 0.0})})
    full, stream = load_full_model(run.model, SILENT), io.StringIO()
    plans = [Workbench(full, each, SILENT).build(each.emulator).plan for each in (run, whole)]
    basis = disclosure_basis(run, SILENT)
    warn_of_disclosure(tmp_path / "owner", full, Revealed(plans[0], basis), LogReporter(stream))
    assert stream.getvalue() == ""
    warn_of_disclosure(tmp_path / "owner", full, Revealed(plans[1], basis), LogReporter(stream))
    [dropped] = plans[0].indices(LayerRole.DROPPED)
    assert stream.getvalue().startswith(f"warning: more of layers {dropped} leaves than")
    more = measured(whole, "03" * 32).disclosure
    assert more.emulators == 3 and more.verbatim_share == 1.0 > again.verbatim_share
    assert [one.after.index for one in more.new] == [dropped]


def test_without_a_record_nothing_is_warned_of(material: Path) -> None:
    run, stream = run_file(material), io.StringIO()
    full = load_full_model(run.model, SILENT)
    plan = Workbench(full, run, SILENT).build(run.emulator).plan
    warn_of_disclosure(None, full, Revealed(plan, "weights"), LogReporter(stream))
    assert stream.getvalue() == ""


def test_a_record_that_cannot_be_read_stops_the_run_before_the_emulator_leaves(material: Path, tmp_path: Path) -> None:
    run = run_file(material, f"model_privacy.disclosure_record={tmp_path}")
    record_path(tmp_path, load_full_model(run.model, SILENT).digest).write_text("{}")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="Put back a copy"):
        simulate(run, tmp_path / "out", SILENT)
    assert not (tmp_path / "out" / "bundle").exists()


def test_a_basis_is_the_text_and_the_settings_that_choose_by_it(material: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("another text")
    other = f"importance.text={tmp_path / 'other.txt'}"

    def basis(*overrides: str) -> str:
        return disclosure_basis(run_file(material, *overrides), SILENT)

    by_weight = "emulator.rank_criterion=weight"
    assert basis(by_weight) == basis(by_weight, other) == "weights"
    assert basis() == basis("emulator.removed_rank_share=0.3", "seed=5")
    different = [basis(), basis(other), basis("emulator.public_blocks=9"), basis("importance.block_tokens=17")]
    pruned = [
        basis("emulator.builder=gradot", by_weight),
        basis("emulator.builder=gradot", "emulator.loss_increase_weight=3"),
    ]
    assert len({*different, *pruned, "weights"}) == 7


def test_a_home_keeps_its_own_record_unless_the_run_file_names_another(material: Path, tmp_path: Path) -> None:
    assert record_of_home(run_file(material), tmp_path) == tmp_path / "disclosure"
    named = run_file(material, f"model_privacy.disclosure_record={tmp_path / 'elsewhere'}")
    assert record_of_home(named, tmp_path) == tmp_path / "elsewhere"
