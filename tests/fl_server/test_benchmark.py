import io
import json
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fl_server.benchmark import chosen_cases, example_lengths, run_benchmark
from fl_server.benchmark_cases import CASES, Setting, load_benchmarked_model
from fl_server.benchmark_measure import StepCost, Workload, measure
from fl_server.benchmark_table import print_costs
from fl_server.compress import Workbench
from fl_server.device_speed import count_flops, peak_flops_per_second
from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.compression.emulator import write_emulator
from scaleot_core.config import RunFile, with_settings
from scaleot_core.errors import InputError
from scaleot_core.progress import SilentReporter
from tests.support.compilers import needs_compiler
from tests.support.tiny_models import save_tiny_model, tiny_language_model, tiny_model

CPU = torch.device("cpu")
TOKENS, HIDDEN, INNER, KEYS, VOCABULARY, LAYERS = 10, 16, 24, 8, 320, 6
LAYER_WEIGHTS = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER  # q and o, k and v, gate and up and down
ATTENTION = 4 * TOKENS * TOKENS * HIDDEN  # queries times keys, weights times values
HEAD = 2 * HIDDEN * VOCABULARY * TOKENS
FORWARD = LAYERS * (2 * LAYER_WEIGHTS * TOKENS + ATTENTION) + HEAD
IDS = torch.arange(TOKENS)[None]


def tiny_run(directory: Path, **settings: object) -> RunFile:
    save_tiny_model(directory)
    values = {
        "model.source": str(directory),
        "model.dtype": "float32",
        "model.device": "cpu",
        "emulator.builder": "uniform",
        "emulator.num_adapter_layers": 2,
        "importance.block_tokens": 12,
        "importance.harmonizer_rank": 4,
    }
    return with_settings(RunFile(), {**values, **settings})


def tiny_setting(tmp_path: Path, **settings: object) -> Setting:
    run = tiny_run(tmp_path / "model", **settings)
    full = load_benchmarked_model(run, has_random_weights=True, reporter=SilentReporter())
    emulator = Workbench(full, run, SilentReporter()).build(run.emulator)
    (tmp_path / "emulator").mkdir()
    write_emulator(emulator, tmp_path / "emulator")
    return Setting(run, tmp_path / "emulator", emulator.plan.adapter_layers, 2, (11, 11), has_random_weights=True)


def test_a_forward_pass_is_counted_as_two_operations_a_weight_and_token_and_the_attention() -> None:
    full = tiny_language_model("llama")
    with torch.inference_mode():
        assert count_flops(lambda: full.model(input_ids=IDS)) == FORWARD


def test_a_step_is_counted_once_more_where_a_gradient_passes_and_once_more_where_weights_learn() -> None:
    full, rank = tiny_language_model("llama"), 2
    attached = attach_adapter(full.model, full.layout, AdapterSpec(AdapterKind.LORA, (LAYERS - 1,), rank, seed=0))
    lora_weights = sum(parameter.numel() for parameter in attached.trainable().values())

    def step() -> None:
        full.model(input_ids=IDS, use_cache=False).logits.sum().backward()

    forward = FORWARD + 2 * lora_weights * TOKENS
    # Going back: the head and the last layer alone; not past its first maps' inputs, which nothing learns before.
    first_maps = HIDDEN * HIDDEN + 2 * HIDDEN * KEYS
    first_downs = 3 * rank * HIDDEN
    through = HEAD + 2 * TOKENS * (LAYER_WEIGHTS - first_maps + lora_weights - first_downs)
    attention = ATTENTION * 5 // 2  # its scores are computed again
    learning = 2 * TOKENS * lora_weights
    assert count_flops(step) == forward + through + attention + learning
    attached.detach()


def test_the_peak_is_that_of_the_best_matrix_product() -> None:
    a = torch.ones(512, 512)
    assert peak_flops_per_second(CPU, torch.float32) * 10 > 2 * 512**3  # a product takes less than ten seconds
    assert count_flops(lambda: a @ a) == 2 * 512**3


def test_what_is_reported_follows_from_what_was_measured() -> None:
    a = torch.ones(256, 256)
    workload = Workload(lambda: a @ a, tokens_per_step=7, trained_parameters=3, model=tiny_model("llama"))
    cost = measure(workload, 5)
    assert cost.compile_seconds == 0
    assert cost.flops_per_step == 2 * 256**3
    assert cost.tokens_per_second == pytest.approx(7 / cost.seconds_per_step)
    speed = cost.flops_per_step / cost.seconds_per_step
    assert cost.share_of_peak == pytest.approx(speed / cost.peak_flops_per_second)
    assert 0 <= cost.training_memory_mebibytes <= cost.peak_memory_mebibytes


def test_every_case_does_its_work_on_the_model_of_the_run_file(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path)
    trained, flops, tokens, sent = {}, {}, {}, {}
    for case, prepare in CASES.items():
        with ExitStack() as stack:
            workload = prepare(setting, stack)
            trained[case], tokens[case] = workload.trained_parameters, workload.tokens_per_step
            sent[case] = workload.sent_bytes
            flops[case] = count_flops(workload.step)
            workload.step()
    assert trained == {
        "stage 1": LAYERS * 2 * 4 * HIDDEN,
        "inference, emulator": 0,
        "client step, emulator": trained["client step, full model"] // 3,  # two layers of six
        "client step, dp-sgd": trained["client step, emulator"],
        "client step, dpzero": trained["client step, emulator"],
        "client step, lmo-dp": trained["client step, emulator"],
        "client step, update-gaussian": trained["client step, emulator"],
        "client step, full model": trained["client step, full model"],
        "plug-in evaluation": 0,
    }
    assert tokens == {
        "stage 1": 4 * 12,
        "inference, emulator": 4 * 11,
        "client step, emulator": 4 * 11,
        "client step, dp-sgd": 4 * 11,
        "client step, dpzero": 4 * 11,
        "client step, lmo-dp": 4 * 11,
        "client step, update-gaussian": 4 * 11,
        "client step, full model": 4 * 11,
        "plug-in evaluation": 204 * 10,  # as many rows of ten as make no more than 2048 tokens
    }
    assert 0 < flops["client step, emulator"] < flops["client step, full model"]
    directions = setting.run.privacy.num_directions
    federation = setting.run.federation
    scalars = federation.rounds * federation.local_steps * directions * 4
    assert (
        sent["client step, dp-sgd"]
        == sent["client step, update-gaussian"]
        == sent["client step, emulator"]
        > federation.rounds * 4 * trained["client step, emulator"]
    )
    assert scalars < sent["client step, dpzero"] < scalars + federation.rounds * 128  # names and shapes beside them
    assert sent["client step, lmo-dp"] < sent["client step, dpzero"]
    assert sent["inference, emulator"] == 0
    assert flops["client step, dpzero"] > 2 * directions * flops["inference, emulator"] * 0.9
    assert flops["client step, lmo-dp"] == pytest.approx(flops["client step, dpzero"] * 8 / directions, rel=0.1)
    assert flops["client step, update-gaussian"] == flops["client step, emulator"]


def test_gradient_checkpointing_costs_a_second_forward_pass(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path)
    checkpointed = with_settings(setting.run, {"federation.gradient_checkpointing": True})
    with ExitStack() as stack:
        plain = count_flops(CASES["client step, full model"](setting, stack).step)
        again = Setting(**{**vars(setting), "run": checkpointed})
        assert count_flops(CASES["client step, full model"](again, stack).step) > 1.2 * plain


def test_a_setting_reaches_the_measuring_process_unchanged(tmp_path: Path) -> None:
    setting = Setting(RunFile(), tmp_path, (1, 4), 3, (20, 60), has_random_weights=False)
    assert Setting.from_text(setting.to_text()) == setting


def test_the_table_has_a_row_for_each_case_and_says_what_the_share_is_of() -> None:
    cost = StepCost(2.0, 128.0, 900.0, 30.0, 12_345, 67_890, 10**9, 1e9, 0.5)
    out = io.StringIO()
    print_costs({"stage 1": cost}, Console(file=out, width=120))
    for text in ("stage 1", "128", "50%", "900", "12,345", "67,890", "peak: 1 GFLOP/s"):
        assert text in out.getvalue()
    assert "compile s" not in out.getvalue()
    print_costs(
        {"stage 1": cost, "stage 1, compiled": replace(cost, compile_seconds=41.6)}, Console(file=out, width=140)
    )
    assert "compile s" in out.getvalue() and "42" in out.getvalue()
    assert json.loads(json.dumps(asdict(cost))).keys() == {field.name for field in fields(StepCost)}


@pytest.mark.parametrize(("text", "expected"), [("64", (64, 64)), ("20-60", (20, 60)), ("2", (2, 2))])
def test_the_length_of_examples_is_a_number_or_a_range(text: str, expected: tuple[int, int]) -> None:
    assert example_lengths(text) == expected


@pytest.mark.parametrize("text", ["", "1", "-5", "5-", "60-20", "1-9", "20..60", "2.5"])
def test_another_length_of_examples_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--example-tokens"):
        example_lengths(text)


def test_cases_are_chosen_by_name_and_an_unknown_one_is_refused() -> None:
    assert chosen_cases([], with_compiled=False) == tuple(CASES)
    assert chosen_cases(["plug-in evaluation", "stage 1"], with_compiled=False) == ("stage 1", "plug-in evaluation")
    with pytest.raises(InputError, match="--case stage 2: expected one of: stage 1; "):
        chosen_cases(["stage 1", "stage 2"], with_compiled=False)


def test_whatever_can_be_compiled_is_measured_so_after_itself_and_something_must_be() -> None:
    names = ["client step, dp-sgd", "stage 1"]
    assert chosen_cases(names, with_compiled=True) == ("stage 1", "stage 1, compiled", "client step, dp-sgd")
    with pytest.raises(InputError, match="--compile: none of the cases asked for can be compiled; client step, emu"):
        chosen_cases(["client step, dp-sgd"], with_compiled=True)


def test_examples_of_a_range_have_evenly_spread_lengths_in_no_order(tmp_path: Path) -> None:
    setting = replace(tiny_setting(tmp_path, **{"federation.batch_size": 10}), example_tokens=(3, 12))
    workload = CASES["client step, full model"](setting, ExitStack())
    assert workload.tokens_per_step == sum(range(3, 13))


@pytest.mark.slow
def test_every_case_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Half a minute: each process imports PyTorch."""
    run = tiny_run(tmp_path / "whole", **{"emulator.builder": "scaleot"})
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    bare = with_settings(run, {"model.source": str(tmp_path / "bare")})
    costs = run_benchmark(bare, steps=2, example_tokens=(9, 11), has_random_weights=True, reporter=SilentReporter())
    assert list(costs) == list(CASES)
    assert all(cost.share_of_peak > 0 for cost in costs.values())


@pytest.mark.slow
@needs_compiler
def test_every_case_that_can_be_is_measured_compiled_beside_itself(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "model")
    cases = ("stage 1", "stage 1, compiled", "client step, full model", "client step, full model, compiled")
    costs = run_benchmark(
        run,
        steps=2,
        example_tokens=(9, 11),
        has_random_weights=True,
        cases=cases,
        reporter=SilentReporter(),
    )
    assert tuple(costs) == cases
    for case in ("stage 1", "client step, full model"):
        plain, compiled = costs[case], costs[f"{case}, compiled"]
        assert (plain.flops_per_step, plain.trained_parameters) == (
            compiled.flops_per_step,
            compiled.trained_parameters,
        )
        assert plain.compile_seconds == 0 < compiled.compile_seconds


@pytest.mark.gpu
def test_a_gpu_is_measured_and_not_exceeded(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "model", **{"model.device": "auto", "model.dtype": "bfloat16"})
    costs = run_benchmark(run, steps=2, example_tokens=(9, 11), has_random_weights=True, reporter=SilentReporter())
    assert all(0 < cost.share_of_peak < 1 for cost in costs.values())
    assert all(cost.peak_flops_per_second > 1e12 for cost in costs.values())
