"""What a GPU computes is what the CPU computes, up to rounding: ``pytest -m gpu`` on a machine with one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_server.comparison.compare import compare
from fl_server.simulation import simulate
from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.out_of_memory import is_out_of_memory
from scaleot_core.privacy.dp_sgd import DPSGD, sum_clipped_gradients
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.release import LocalTask
from scaleot_core.privacy.zeroth_order import ZerothOrder, example_differences
from scaleot_core.progress import SilentReporter
from tests.support.private_tasks import attached_adapter, random_examples
from tests.support.tiny_task import tiny_run, write_task

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_cache")]

DEVICES = ("cpu", "cuda")
LOSS_TOLERANCE = 0.03
"""Of a loss after a dozen steps of AdamW, whose first steps are signs of gradients."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


def check_comparison(task: Path, folder: Path, grid: str, *overrides: str) -> None:
    """Runs a comparison on both devices and checks that every point comes to the same on both."""
    file = folder / "grid.toml"
    file.write_text(grid)
    sides = []
    for device in DEVICES:
        run = tiny_run(task, *overrides, f"model.device={device}", file=file)
        sides.append(compare(run, folder / device, SilentReporter()))
    for one, other in zip(*sides, strict=True):
        check_alike(one["results"], other["results"])


def check_alike(results: dict[str, Any], others: dict[str, Any]) -> None:
    assert results.keys() == others.keys()
    for what, figures in results.items():
        assert others[what]["loss"] == pytest.approx(figures["loss"], rel=LOSS_TOLERANCE), what


def test_every_builder_gives_the_same_emulator_to_tune_and_plug_in(task: Path, tmp_path: Path) -> None:
    grid = '[compare]\nseeds = [0]\n[compare.variants]\nplain = {}\nranks = { "emulator.rank_target" = "both" }\n'
    check_comparison(task, tmp_path, grid, "emulator.distillation_steps=3")


def test_every_kind_of_adapter_learns_the_same(task: Path, tmp_path: Path) -> None:
    grid = (
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n'
        '"adapter.kind" = ["lora", "layers", "bottleneck"]\n"emulator.adapter_rule" = ["spread", "gradient"]\n'
    )
    check_comparison(task, tmp_path, grid, "federation.gradient_checkpointing=true")


def test_every_mechanism_of_privacy_runs_with_hardly_any_noise_as_on_the_cpu(task: Path, tmp_path: Path) -> None:
    grid = (
        '[compare]\nbuilders = ["uniform"]\nseeds = [0]\n[compare.vary]\n'
        '"privacy.mechanism" = ["dp-sgd", "dpzero", "update-gaussian", "client-level"]\n'
    )
    settings = ("privacy.epsilon=20", "privacy.num_directions=2", "federation.learning_rate=1e-4", "adapter.rank=1")
    check_comparison(task, tmp_path, grid, *settings)


def test_a_whole_federation_with_attacks_and_canary_runs_on_a_gpu(task: Path, tmp_path: Path) -> None:
    settings = (
        "model_privacy.strong_emulator_steps=3",
        "model_privacy.healing_steps=[0, 2]",
        f"canary.text={task / 'train.jsonl'}",
        "canary.tolerance=10",
        "emulator.rank_criterion=activation",
    )
    reports = []
    for device in DEVICES:
        (tmp_path / device).mkdir()
        run = tiny_run(task, *settings, f"model.device={device}")
        reports.append(simulate(run, tmp_path / device, SilentReporter()).to_json())
    check_alike(reports[0]["results"], reports[1]["results"])
    assert reports[1]["model_privacy"]["healing"] is not None


def on_gpu(attached: AttachedAdapter) -> AttachedAdapter:
    """Returns the same adapter in a copy of its model on the GPU."""
    model = copy.deepcopy(attached.model).to("cuda")
    names = {id(parameter): name for name, parameter in attached.model.named_parameters()}
    trainable = {key: model.get_parameter(names[id(value)]) for key, value in attached.trainable().items()}
    return AttachedAdapter(model, trainable, lambda: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipped_sums_of_gradients_come_by_hooks_and_are_the_cpus(dtype: torch.dtype) -> None:
    attached, examples = attached_adapter("llama", "ffa-lora", dtype=dtype), random_examples(9)
    mechanism = DPSGD(1, 0.5, 8.0, max_grad_norm=0.5, noise_multiplier=1.0, learning_rate=0.1)
    sums = []
    for one in (attached, on_gpu(attached)):
        way = mechanism.choose_way(one, pad_token_id=0)
        assert way.uses_hooks, way.reason
        found = sum_clipped_gradients(LocalTask(one, examples, 0, way), examples, 0.5)
        sums.append({name: tensor.cpu() for name, tensor in found.items()})
    difference = sum(float((sums[0][name] - sums[1][name]).square().sum()) for name in sums[0]) ** 0.5
    size = sum(float(tensor.square().sum()) for tensor in sums[0].values()) ** 0.5
    assert difference < (1e-4 if dtype is torch.float32 else 0.1) * size


def test_differences_of_losses_come_in_whole_passes_and_are_the_cpus() -> None:
    attached, examples = attached_adapter("llama", "ffa-lora"), random_examples(9)
    settings = ZerothOrder(1, 0.5, 8.0, 1.0, 0.1, direction_key=1, num_directions=3, smoothing=0.05)
    differences = []
    for one in (attached, on_gpu(attached)):
        way = DPZero(settings, noise_multiplier=1.0).choose_way(one, pad_token_id=0)
        assert way.rows > 1, way.reason
        differences.append(example_differences(settings, LocalTask(one, examples[:3], 0, way), examples[:3], 0))
    assert differences[1] == pytest.approx(differences[0], abs=2e-3)


def test_a_gpu_s_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, device="cuda")
    assert is_out_of_memory(caught.value)
