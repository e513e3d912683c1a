from pathlib import Path

import pytest

from scaleot_core.config import read_run_file, read_run_file_elsewhere, to_toml, with_settings
from scaleot_core.errors import RunFileError
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from scaleot_core.run_file import AdapterSection, FederationSection, RunFile


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path | None, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RunFileError) as caught:
        read_run_file(path, overrides)
    return caught.value.faults


def test_no_run_file_and_an_empty_one_are_the_quickstart(tmp_path: Path) -> None:
    assert read_run_file(None, []) == RunFile()
    assert read_run_file(write(tmp_path / "run.toml", ""), []) == RunFile()


def test_a_disclosure_record_need_not_exist_yet_and_starts_at_the_run_files_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", '[model_privacy]\ndisclosure_record = "owner/records"')
    assert read_run_file(path, []).model_privacy.disclosure_record == str(tmp_path / "owner/records")
    assert read_run_file(path, ["model_privacy.disclosure_record="]).model_privacy.disclosure_record == ""


def test_a_run_file_has_the_sections_and_keys_that_tools_rely_on() -> None:
    promised = {
        "model": {"source", "dtype", "device"},
        "importance": {"text", "steps", "candidates", "harmonizer_rank"},
        "emulator": {"builder", "num_adapter_layers", "adapter_rule", "replaced_layer_share", "removed_rank_share"},
        "adapter": {"kind", "rank"},
        "data": {"train", "test"},
        "federation": {
            *("engine", "clients", "rounds", "clients_per_round", "partition", "partition_alpha"),
            *("local_steps", "batch_size", "learning_rate", "aggregation"),
        },
        "privacy": {"mechanism", "epsilon", "delta", "max_grad_norm"},
        "canary": {"text", "tolerance"},
        "evaluation": {"examples", "full_fine_tuning"},
        "compare": {"builders", "seeds"},
        "model_privacy": {"strong_emulator_steps", "healing_steps", "disclosure_record"},
        "serve": {"fleet", "distribution", "superlink_port"},
    }
    document = RunFile().model_dump()
    assert document.keys() == {"seed", *promised}
    for section, keys in promised.items():
        assert keys <= document[section].keys()


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.toml",
        """
        seed = -1
        privacy = 4
        [model]
        dtype = "fp32"
        [emulator]
        replaced_layer_share = 1.5
        removed_rank_share = "0.8"
        [adapter]
        kind = "layers"
        [federation]
        clients = 0
        locl_steps = 3
        learning_rate = true
        aggregation = "ffa"
        [data]
        train = "missing.jsonl"
        """,
    )
    faults = faults_of(path, "evaluation.examples=many", "nonsense")
    expected = {
        "--set nonsense: expected section.key=value",
        "seed: got -1, expected a whole number from 0 to 4294967295",
        "privacy: got 4, expected a table: [privacy]",
        'model.dtype: got "fp32", expected "float32" or "bfloat16" or "float16"',
        "emulator.replaced_layer_share: got 1.5, expected a number from 0 to 1",
        'emulator.removed_rank_share: got "0.8", expected a number from 0 to 1',
        "federation.clients: got 0, expected a whole number, at least 1",
        "federation.locl_steps: no such key; did you mean federation.local_steps?",
        "federation.learning_rate: got true, expected a number above 0",
        'federation.aggregation: got "ffa", expected adapter.kind = "lora"',
        f'data.train: no file "{tmp_path}/missing.jsonl"',
        'evaluation.examples: got "many", expected a whole number, at least 1 (from --set)',
    }
    assert {start for start in expected if any(fault.startswith(start) for fault in faults)} == expected
    assert len(faults) == len(expected)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("emulator.removed_rank_share=-0.1", "expected a number from 0 to 1"),
        ("emulator.replaced_layer_share=nan", "expected a number from 0 to 1"),
        ("federation.learning_rate=0", "expected a number above 0"),
        ("federation.learning_rate=inf", "expected a number above 0"),
        ("federation.rounds=1.5", "expected a whole number, at least 1"),
        ("federation.rounds=true", "expected a whole number, at least 1"),
        ("importance.candidates=1", "at least 2"),
        ("privacy.delta=1", "expected a number between 0 and 1"),
        ("federation.trimmed_share=0.5", "expected a number between 0 and 0.5"),
        ("federation.assumed_attackers=0", "expected a whole number, at least 1"),
        ("model_privacy.strong_emulator_steps=-1", "expected a whole number, at least 0"),
        ("model_privacy.healing_steps=50", "expected a list, each a whole number"),
        ("model_privacy.healing_steps=[0, 1.5]", "expected a list, each a whole number"),
        ("model_privacy.healing_steps=[50, 0]", "from 0 upwards, each above the one before"),
        ("model_privacy.healing_steps=[-1, 5]", "from 0 upwards, each above the one before"),
        ("evaluation.full_fine_tuning=1", "expected true or false"),
        ("model.source=''", "a text in quotes, not empty"),
        ("adapter.kind=Lora", 'expected "lora" or "layers" or "bottleneck"'),
        ("compare.builders=['scaleoT']", 'expected a list, not empty, each "scaleot" or'),
        ("compare.builders=['crush']", 'did you mean "crash"?'),
        ("compare.builders=[]", "got [], expected a list, not empty"),
        ("compare.seeds=-1", "got -1, expected a list, not empty, each a whole number from 0 to 4294967295"),
        ("compare.seeds=[0, -1]", "got -1, expected a list, not empty, each a whole number from 0 to 4294967295"),
        ("compare.tasks=3", "got 3, expected a table"),
        ("compare.tasks={rte = 'rte'}", 'compare.tasks.rte: got "rte", expected a table'),
        ("compare.tasks={rte = {test = ''}}", "compare.tasks.rte.train: missing, expected a text in quotes, not empty"),
        ("compare.tasks={rte = {trian = 'x', train = 'rte'}}", "compare.tasks.rte.trian: no such key; did you mean"),
        ("compare.tasks={'a/b' = {train = 'rte'}, _c = {train = 'rte'}}", 'named after them: not "a/b", "_c"'),
        ("compare.tasks={rte = {train = 'rte'}, RTE = {train = 'rte'}}", "differ in more than case"),
        ("compare.vary=[1]", "got [1], expected a table"),
        ("compare.vary={'adapter.rank' = 4}", "compare.vary.adapter.rank: got 4, expected a list"),
        ("compare.variants={wide = 4}", "compare.variants.wide: got 4, expected a table"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(override: str, fault: str) -> None:
    [only] = faults_of(None, override)
    assert only.startswith(override.partition("=")[0]) and fault in only


SECTIONS = {name: field.annotation.model_fields for name, field in RunFile.model_fields.items() if name != "seed"}
WRONG_VALUES = ("[]", "[[]]", "{}", "{a = 1}", "{a = {b = []}}", "[-1]", "-1e999", "true", "''", "1979-05-27", "[{}]")


@pytest.mark.parametrize("key", [f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys])
def test_whatever_stands_at_a_key_it_is_taken_or_refused_by_name(key: str) -> None:
    for value in WRONG_VALUES:
        try:
            read_run_file(None, [f"{key}={value}"])
        except RunFileError as error:
            assert all(key.partition(".")[0] in fault for fault in error.faults), value


def test_another_word_than_those_known_is_refused_and_all_of_them_are_named() -> None:
    [fault] = faults_of(None, "federation.aggregation=bulyan")
    known = ("fedavg", "ffa", "product", "median", "trimmed_mean", "multi_krum", "geometric_median")
    assert fault.startswith('federation.aggregation: got "bulyan", expected ')
    assert all(f'"{name}"' in fault for name in known)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("clients=3", "did you mean federation.clients?"),
        ("model.clients=3", "did you mean federation.clients?"),
        ("federation.cleints=3", "did you mean federation.clients?"),
        ("federated.clients=3", "did you mean federation?"),
        ("model.zzz=3", "known here: source, dtype, device"),
        ("model.batch_size=3", "did you mean importance.batch_size or federation.batch_size?"),
        ("data.train=sst2-trian", 'did you mean the asset "sst2-train"?'),
        ("data.test=smollm2-135m", 'got the asset "smollm2-135m", expected one of the assets "sst2-train"'),
        ("model.source=sst2-train", 'expected one of the assets "smollm2-135m", "gemma3-270m"'),
        ("model.dtype=bfloat", 'did you mean "bfloat16"?'),
    ],
)
def test_the_nearest_that_exists_is_named(override: str, hint: str) -> None:
    [fault] = faults_of(None, override)
    assert hint in fault


def test_every_client_takes_part_in_a_round_unless_the_file_says_fewer() -> None:
    assert read_run_file(None, ["federation.clients=9"]).federation.clients_per_round == 9
    assert read_run_file(None, ["federation.clients=9", "federation.clients_per_round=2"]).federation.clients == 9


@pytest.mark.parametrize("mechanism", ["dp-sgd", "dpzero", "lmo-dp"])
def test_lora_under_noise_on_single_records_is_averaged_by_ffa_unless_the_file_says_otherwise(mechanism: str) -> None:
    noisy = f"privacy.mechanism={mechanism}"
    run = read_run_file(None, [noisy])
    assert run.federation.aggregation == "ffa"
    assert read_run_file(None, [noisy, "federation.aggregation=fedavg"]).federation.aggregation == "fedavg"
    assert read_run_file(None, [noisy, "adapter.kind=layers"]).federation.aggregation == "fedavg"
    assert with_settings(run, {"privacy.mechanism": "none"}).federation.aggregation == "fedavg"


def test_a_default_that_follows_another_section_is_written_out_and_reads_back(tmp_path: Path) -> None:
    run = read_run_file(None, ["privacy.mechanism=dp-sgd"])
    assert 'aggregation = "ffa"' in to_toml(run)
    assert read_run_file(write(tmp_path / "run.toml", to_toml(run)), []) == run


def test_a_round_cannot_have_more_clients_than_there_are() -> None:
    [fault] = faults_of(None, "federation.clients=3", "federation.clients_per_round=4")
    assert fault.startswith("federation.clients_per_round: got 4, expected at most federation.clients, which is 3")


@pytest.mark.parametrize(("aggregation", "lacks"), [("ffa", "no A to freeze"), ("product", "no product B A")])
def test_a_rule_of_lora_alone_is_refused_whether_or_not_the_section_has_another_fault(
    aggregation: str, lacks: str
) -> None:
    rule = f'federation.aggregation: got "{aggregation}", expected adapter.kind = "lora"'
    asked = f"federation.aggregation={aggregation}"
    [fault] = faults_of(None, asked, "adapter.kind=layers")
    assert fault.startswith(rule) and lacks in fault
    faults = faults_of(None, asked, "adapter.kind=bottleneck", "federation.rounds=0")
    assert [fault.startswith(rule) for fault in faults].count(True) == 1
    with pytest.raises(ValueError, match=lacks):
        RunFile(adapter=AdapterSection(kind="layers"), federation=FederationSection(aggregation=aggregation))


@pytest.mark.parametrize("mechanism", ["dpzero", "lmo-dp"])
@pytest.mark.parametrize("aggregation", ["product", "median", "trimmed_mean", "multi_krum", "geometric_median"])
def test_scalars_are_averaged_and_any_other_rule_is_refused_with_them(mechanism: str, aggregation: str) -> None:
    asked = (f"federation.aggregation={aggregation}", f"privacy.mechanism={mechanism}", "federation.clients=9")
    start = f'federation.aggregation: got "{aggregation}", expected "fedavg" or "ffa"'
    [fault] = faults_of(None, *asked)
    assert fault.startswith(start) and mechanism in fault
    faults = faults_of(None, *asked, "privacy.delta=2", "federation.rounds=0")
    assert [fault.startswith(start) for fault in faults].count(True) == 1


@pytest.mark.parametrize("aggregation", ["fedavg", "ffa"])
def test_a_mean_goes_with_scalars(aggregation: str) -> None:
    run = read_run_file(None, [f"federation.aggregation={aggregation}", "privacy.mechanism=dpzero"])
    assert run.federation.aggregation == aggregation


@pytest.mark.parametrize("aggregation", ["product", "median", "trimmed_mean", "multi_krum", "geometric_median"])
@pytest.mark.parametrize("mechanism", ["none", "dp-sgd", "update-gaussian"])
def test_every_rule_goes_with_mechanisms_that_send_adapters(aggregation: str, mechanism: str) -> None:
    asked = (f"federation.aggregation={aggregation}", f"privacy.mechanism={mechanism}", "federation.clients=5")
    assert read_run_file(None, asked).federation.aggregation == aggregation


def test_multi_krum_with_too_few_clients_in_a_round_is_refused_with_the_numbers() -> None:
    [fault] = faults_of(
        None, "federation.aggregation=multi_krum", "federation.clients=9", "federation.clients_per_round=4"
    )
    assert fault.startswith("federation.assumed_attackers: got 1, expected 2 f + 3 clients in a round, at least 5;")
    assert fault.endswith("federation.clients_per_round is 4")
    [fault] = faults_of(
        None, "federation.aggregation=multi_krum", "federation.clients=8", "federation.assumed_attackers=3"
    )
    assert "got 3" in fault and "at least 9" in fault and "is 8" in fault
    assert read_run_file(None, ["federation.assumed_attackers=3"]).federation.assumed_attackers == 3


def test_a_relative_path_starts_at_the_run_file_and_one_of_set_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, current = tmp_path / "beside", tmp_path / "current"
    for directory in (beside, current, beside / "model"):
        directory.mkdir()
    write(beside / "train.jsonl", "")
    write(current / "test.jsonl", "")
    monkeypatch.chdir(current)
    path = write(beside / "run.toml", 'model.source = "model"\ndata.train = "train.jsonl"')
    run = read_run_file(path, ["data.test=test.jsonl"])
    assert run.model.source == str(beside / "model")
    assert (run.data.train, run.data.test) == (str(beside / "train.jsonl"), str(current / "test.jsonl"))


def test_an_assets_name_wins_over_a_file_of_that_name_and_a_path_is_written_with_a_dot(tmp_path: Path) -> None:
    write(tmp_path / "sst2-train", "")
    assert read_run_file(write(tmp_path / "a.toml", 'data.train = "sst2-train"'), []).data.train == "sst2-train"
    run = read_run_file(write(tmp_path / "b.toml", 'data.train = "./sst2-train"'), [])
    assert Path(run.data.train) == tmp_path / "sst2-train"


def test_an_override_is_toml_or_bare_text_and_the_last_one_wins() -> None:
    run = read_run_file(
        None,
        ["model.dtype=float32", 'model.device="cpu"', "federation.learning_rate=2e-3", "seed=3", "seed = 4"],
    )
    assert (run.model.dtype, run.model.device, run.federation.learning_rate) == ("float32", "cpu", 2e-3)
    assert run.seed == 4


def test_an_override_changes_only_its_key(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[federation]\nclients = 7\nrounds = 5")
    federation = read_run_file(path, ["federation.rounds=2"]).federation
    assert (federation.clients, federation.rounds) == (7, 2)


def test_an_override_cannot_smuggle_in_a_second_key() -> None:
    [fault] = faults_of(None, "federation.rounds=3\nclients = 9")
    assert fault.startswith("federation.rounds: got")


def test_what_to_toml_writes_reads_back_to_an_equal_run_file(tmp_path: Path) -> None:
    write(tmp_path / 'quoted "name" é.jsonl', "")
    run = read_run_file(
        write(tmp_path / "run.toml", "[data]\ntrain = 'quoted \"name\" é.jsonl'"),
        ["federation.learning_rate=1e-7", "evaluation.full_fine_tuning=false", "federation.clients=3"],
    )
    assert run != RunFile()
    assert read_run_file(write(tmp_path / "resolved.toml", to_toml(run)), []) == run


def test_a_run_file_that_cannot_be_read_or_is_no_toml_is_one_clear_fault(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "none.toml") == ("it cannot be read: No such file or directory",)
    assert faults_of(tmp_path) == ("it cannot be read: Is a directory",)
    [fault] = faults_of(write(tmp_path / "broken.toml", "[model\n"))
    assert fault.startswith("it is no TOML") and "line 1" in fault
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    [fault] = faults_of(tmp_path / "binary.toml")
    assert fault.startswith("it is no TOML")


@pytest.mark.parametrize("aggregation", ["product", "median", "trimmed_mean", "multi_krum", "geometric_median"])
def test_the_server_s_noise_is_made_for_a_sum_and_for_no_other_rule(aggregation: str) -> None:
    [fault] = faults_of(
        None, "privacy.mechanism=client-level", f"federation.aggregation={aggregation}", "federation.clients=9"
    )
    assert 'expected "fedavg" or "ffa" beside privacy.mechanism = "client-level"' in fault


def test_a_server_reads_the_file_whose_model_and_texts_it_must_not_see(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", '[model]\nsource = "vault/model"\n[data]\ntest = "vault/test.jsonl"')
    assert len(faults_of(path)) == 2
    run = read_run_file_elsewhere(path)
    assert (run.model.source, run.data.test) == (str(tmp_path / "vault/model"), str(tmp_path / "vault/test.jsonl"))


def test_whatever_else_is_wrong_the_server_refuses_as_everybody(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", '[model]\nsource = "vault/model"\n[federation]\nrounds = 0\nround = 3')
    with pytest.raises(RunFileError) as caught:
        read_run_file_elsewhere(path)
    assert len(caught.value.faults) == 2


def test_lmo_dp_has_no_noise_multiplier() -> None:
    with pytest.raises(RunFileError, match=r"privacy\.noise_multiplier.*calibrated"):
        read_run_file(None, ["privacy.mechanism=lmo-dp", "privacy.noise_multiplier=1.0"])


def test_lmo_dp_takes_as_many_directions_as_its_mechanism_and_no_more() -> None:
    assert read_run_file(None, ["privacy.mechanism=lmo-dp"]).privacy.num_directions == MOST_LMO_DIRECTIONS
    with pytest.raises(RunFileError, match=rf"num_directions.*at most {MOST_LMO_DIRECTIONS} under lmo-dp"):
        read_run_file(None, ["privacy.mechanism=lmo-dp", f"privacy.num_directions={MOST_LMO_DIRECTIONS + 1}"])
    assert read_run_file(None, ["privacy.mechanism=dpzero"]).privacy.num_directions == 16
    with pytest.raises(RunFileError, match=r"privacy\.noise_multiplier"):
        read_run_file(None, ["privacy.mechanism=dp-sgd", "privacy.noise_multiplier=1e200"])
