import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaleot_core.compression.builders.uniform import plan_uniform
from scaleot_core.compression.emulator import Emulator, build_emulator, describe_emulator, read_emulator, write_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer, RankTarget, plan_layers, plan_of_roles
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")
RANK = 4


def scaleot_plan(alpha: float, beta: float, layers: int = 6) -> LayerPlan:
    return plan_layers(
        [float(i % 3) for i in range(layers)],
        adapter={2, 4},
        replaced_layer_share=alpha,
        removed_rank_share=beta,
    )


def harmonizers(layers: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"down.weight": (RANK, 16), "up.weight": (16, RANK)}
    return {f"{i}.{n}": 0.1 * torch.randn(s, generator=generator) for i in range(layers) for n, s in shapes.items()}


def build(full: LanguageModel, plan: LayerPlan) -> Emulator:
    return build_emulator(full, plan, harmonizers(), harmonizer_rank=RANK)


def written(emulator: Emulator, directory: Path) -> dict[str, Path]:
    write_emulator(emulator, directory)
    return {path.name: path for path in directory.iterdir()}


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_without_replacement_or_truncation_the_emulator_is_the_model(model_type: str) -> None:
    full = tiny_language_model(model_type)
    emulator = build(full, scaleot_plan(0.0, 0.0))
    assert torch.equal(emulator.model(IDS).logits, full.model(IDS).logits)
    assert describe_emulator(emulator, full).verbatim_share == 1.0


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_building_leaves_the_full_model_as_it_was(model_type: str) -> None:
    full = tiny_language_model(model_type)
    before, names = full.model(IDS).logits, list(full.model.state_dict())
    emulator = build(full, scaleot_plan(0.5, 0.5))
    assert torch.equal(full.model(IDS).logits, before)
    assert list(full.model.state_dict()) == names
    assert not torch.allclose(emulator.model(IDS).logits, before)
    shared = {t.data_ptr() for t in full.model.parameters()} & {t.data_ptr() for t in emulator.model.parameters()}
    assert not shared


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_the_emulator_is_the_model_with_the_planned_changes_and_no_other(model_type: str) -> None:
    """Adapter layers, embeddings, norms, head and the feed-forward part of kept layers are exact."""
    full = tiny_language_model(model_type)
    plan = scaleot_plan(0.5, 0.5)
    emulator = build(full, plan)
    own, original = emulator.model.state_dict(), full.model.state_dict()
    for name, tensor in original.items():
        layer = next((i for i in range(6) if name.startswith(full.layout.layer_path(i) + ".")), None)
        role = plan.layers[layer].role if layer is not None else LayerRole.ADAPTER
        inside = name.removeprefix(f"{full.layout.layer_path(layer)}.") if layer is not None else name
        if role is LayerRole.REPLACED:
            assert name not in own
        elif role is LayerRole.ADAPTER or not inside.startswith(full.layout.attention_linears):
            assert torch.equal(own[name], tensor), name
        elif inside.endswith("weight"):
            assert name not in own
    for index in plan.indices(LayerRole.REPLACED):
        stand_in = emulator.layout.layer(emulator.model, index)
        assert torch.equal(stand_in.up.weight, harmonizers()[f"{index}.up.weight"])


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_written_and_read_back_it_computes_the_same_logits(model_type: str, tied: bool, tmp_path: Path) -> None:
    full = tiny_language_model(model_type, tied=tied)
    emulator = build(full, scaleot_plan(0.5, 0.6))
    read = read_emulator(written(emulator, tmp_path), device=CPU)
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)
    assert read.plan == emulator.plan
    assert read.tokenizer("the film is good")["input_ids"] == full.tokenizer("the film is good")["input_ids"]
    head = read.model.get_output_embeddings().weight
    assert (head.data_ptr() == read.model.get_input_embeddings().weight.data_ptr()) is tied


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
def test_an_untied_head_is_shipped_and_used(model_type: str, tmp_path: Path) -> None:
    full = tiny_language_model(model_type, tied=False)
    emulator = build(full, scaleot_plan(0.0, 0.0))
    files = written(emulator, tmp_path)
    weights = load_file(files["emulator.safetensors"])
    name = next(n for n, p in full.model.named_parameters() if p is full.model.get_output_embeddings().weight)
    assert torch.equal(weights[name], full.model.get_output_embeddings().weight)
    weights[name] = weights[name] * 2
    save_file(weights, files["emulator.safetensors"])
    assert torch.equal(read_emulator(files, device=CPU).model(IDS).logits, 2 * full.model(IDS).logits)


def test_the_emulator_keeps_the_models_type(tmp_path: Path) -> None:
    full = tiny_language_model("llama")
    for parameter in full.model.parameters():  # as loading does: buffers stay float32
        parameter.data = parameter.data.to(torch.bfloat16)
    emulator = build(full, scaleot_plan(0.5, 0.5))
    read = read_emulator(written(emulator, tmp_path), device=CPU)
    assert {p.dtype for p in read.model.parameters()} == {torch.bfloat16}
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)


def test_uniform_drops_layers() -> None:
    full = tiny_language_model("llama")
    plan = plan_uniform(6, {0, 5}, 0.5)
    emulator = build(full, plan)
    x = torch.randn(1, 3, 16)
    dropped = plan.indices(LayerRole.DROPPED)
    assert len(dropped) == 2
    for index in range(6):
        layer = full.layout.layer(emulator.model, index)
        assert (sum(1 for _ in layer.parameters()) == 0) is (index in dropped)
        if index in dropped:
            assert torch.equal(layer(x), x)
    assert describe_emulator(emulator, full).trained_share == 0


def test_the_report_weighs_what_was_built() -> None:
    full = tiny_language_model("llama")
    report = describe_emulator(build(full, scaleot_plan(0.5, 0.0)), full)
    total = sum(p.numel() for p in full.model.parameters())
    layer = sum(p.numel() for p in full.layout.layer(full.model, 0).parameters())
    assert report.parameters == total - 2 * layer + 2 * 2 * RANK * 16
    assert report.size_bytes == 4 * report.parameters
    assert report.verbatim_share == pytest.approx((total - 2 * layer) / total)
    assert report.trained_share == pytest.approx(2 * 2 * RANK * 16 / total)
    compressed = describe_emulator(build(full, scaleot_plan(0.5, 0.9)), full)
    assert compressed.verbatim_share < report.verbatim_share


def test_a_plan_for_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="for 5 layers, the model has 6"):
        build(tiny_language_model("llama"), scaleot_plan(0.5, 0.5, layers=5))


def test_one_plan_serves_every_size_from_the_same_harmonizers() -> None:
    full = tiny_language_model("llama")
    for alpha in (0.0, 0.25, 0.5, 1.0):
        emulator = build(full, scaleot_plan(alpha, 0.3))
        assert len(emulator.plan.indices(LayerRole.REPLACED)) == int(alpha * 4)
        assert torch.isfinite(emulator.model(IDS).logits).all()


MALFORMED = {
    "config.json": [b"{", b"[]", b'{"model_type": "mamba"}', b'{"model_type": 3}', b"\xff"],
    "plan.json": [b"{}", b"null", b'{"layers": [], "harmonizer_rank": 4}', b'{"layers": 3, "harmonizer_rank": 4}'],
    "emulator.safetensors": [b"", b"\x00" * 64],
    "tokenizer.json": [b"", b"{}", b"\xff\xfe"],
    "tokenizer_config.json": [b"[", b"[3]"],
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, all_ in MALFORMED.items() for each in all_])
def test_malformed_files_give_our_error(name: str, content: bytes, tmp_path: Path) -> None:
    files = written(build(tiny_language_model("llama"), scaleot_plan(0.5, 0.5)), tmp_path)
    files[name].write_bytes(content)
    with pytest.raises(ModelError):
        read_emulator(files, device=CPU)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_the_plan_are_refused(fault: str, tmp_path: Path) -> None:
    files = written(build(tiny_language_model("llama"), scaleot_plan(0.5, 0.5)), tmp_path)
    weights = load_file(files["emulator.safetensors"])
    name = next(name for name in weights if "gate_proj" in name)
    if fault == "missing":
        del weights[name]
    elif fault == "extra":
        weights["model.layers.0.backdoor"] = torch.zeros(1)
    else:
        weights[name] = torch.zeros(1, 1)
    save_file(weights, files["emulator.safetensors"])
    with pytest.raises(ModelError, match="do not fit"):
        read_emulator(files, device=CPU)


def test_the_files_name_no_origin(tmp_path: Path) -> None:
    full = tiny_language_model("llama")
    full.model.config._name_or_path = "the owner's secret"
    files = written(build(full, scaleot_plan(0.5, 0.5)), tmp_path)
    assert set(files) == {"config.json", "plan.json", "emulator.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "secret" not in files["config.json"].read_text()
    assert json.loads(files["plan.json"].read_text())["harmonizer_rank"] == RANK


def test_a_plan_without_kept_layers_builds() -> None:
    full = tiny_language_model("llama")
    roles = [LayerRole.ADAPTER, *[LayerRole.REPLACED] * 5]
    plan = LayerPlan(tuple(PlannedLayer(i, role) for i, role in enumerate(roles)))
    assert torch.isfinite(build(full, plan).model(IDS).logits).all()


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_shared_layer_runs_with_the_low_rank_maps_of_its_kept_one(model_type: str, tmp_path: Path) -> None:
    full = tiny_language_model(model_type)
    roles = dict.fromkeys(range(6), LayerRole.KEPT) | {0: LayerRole.ADAPTER, 2: LayerRole.SHARED, 5: LayerRole.SHARED}
    plan = plan_of_roles(roles, removed_rank_share=0.6, rank_target=RankTarget.BOTH, shared_from={2: 3, 5: 3})
    emulator = build(full, plan)
    read = read_emulator(written(emulator, tmp_path), device=CPU)
    assert torch.equal(read.model(IDS).logits, emulator.model(IDS).logits)
    for each in (emulator, read):
        kept, *shared = (dict(each.layout.layer(each.model, i).named_parameters()) for i in (3, 2, 5))
        assert all(copy.keys() == kept.keys() and all(copy[n] is kept[n] for n in kept) for copy in shared)
    for index in (2, 5):  # the full model with the weights copied over, then the same ranks
        full.layout.layer(full.model, index).load_state_dict(full.layout.layer(full.model, 3).state_dict())
    kept_roles = {index: LayerRole.KEPT if index else LayerRole.ADAPTER for index in range(6)}
    copied = build(full, plan_of_roles(kept_roles, removed_rank_share=0.6, rank_target=RankTarget.BOTH))
    assert torch.equal(copied.model(IDS).logits, emulator.model(IDS).logits)
