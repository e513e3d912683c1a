from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.plug_in import plugged_in, save_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.training.data import EncodedExample, collate
from scaleot_core.training.local import target_loss
from tests.compression.test_emulator import build, scaleot_plan
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
KINDS = list(AdapterKind)


def spec(kind: AdapterKind, layers: tuple[int, ...] = (1, 4), *, freezes_down: bool = False) -> AdapterSpec:
    return AdapterSpec(kind, layers, rank=3, seed=5, freezes_down=freezes_down)


def moved(full: LanguageModel, of: AdapterSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state of an adapter some random way off its start."""
    attached = attach_adapter(full.model, full.layout, of)
    generator = torch.Generator().manual_seed(seed)
    state = {name: t + 0.2 * torch.randn(t.shape, generator=generator) for name, t in attached.state().items()}
    attached.detach()
    return state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_untouched_adapter_plugged_in_gives_the_full_models_logits_bit_for_bit(
    model_type: str, kind: AdapterKind, tied: bool
) -> None:
    full = tiny_language_model(model_type, tied=tied)
    expected = full.model(IDS).logits
    emulator = build(full, scaleot_plan(0.5, 0.5))
    of = spec(kind, emulator.plan.adapter_layers)
    attached = attach_adapter(emulator.model, emulator.layout, of)
    untouched = attached.state()
    with plugged_in(full.model, full.layout, of, untouched) as model:
        assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(full.model(IDS).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_adapter_in_half_precision_changes_nothing_either(kind: AdapterKind) -> None:
    full = tiny_language_model("llama")
    for parameter in full.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    expected = full.model(IDS).logits
    attached = attach_adapter(full.model, full.layout, spec(kind))
    assert torch.equal(full.model(IDS).logits, expected)
    assert all(parameter.dtype is torch.float32 for parameter in attached.trainable().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_detaching_leaves_the_model_as_it_was(model_type: str, kind: AdapterKind) -> None:
    full = tiny_language_model(model_type)
    names, logits = list(full.model.state_dict()), full.model(IDS).logits
    modules = [type(module) for module in full.model.modules()]
    attached = attach_adapter(full.model, full.layout, spec(kind))
    attached.load(moved(tiny_language_model(model_type), spec(kind)))
    assert not torch.allclose(full.model(IDS).logits, logits)
    attached.detach()
    assert torch.equal(full.model(IDS).logits, logits)
    assert list(full.model.state_dict()) == names
    assert [type(module) for module in full.model.modules()] == modules
    assert not any(parameter.requires_grad for parameter in full.model.parameters())
    assert not hasattr(full.model, "peft_config")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_finds_its_place_by_original_index_whatever_the_order_of_keys(kind: AdapterKind) -> None:
    """A plan whose adapter layers stand anywhere; tuned in an emulator without the layers between them."""
    full = tiny_language_model("llama")
    roles = [
        LayerRole.REPLACED,
        LayerRole.ADAPTER,
        LayerRole.DROPPED,
        LayerRole.KEPT,
        LayerRole.ADAPTER,
        LayerRole.KEPT,
    ]
    emulator = build(full, LayerPlan(tuple(PlannedLayer(i, role) for i, role in enumerate(roles))))
    of = spec(kind, emulator.plan.adapter_layers)
    state = moved(full, of)
    assert {name.split(".")[0] for name in state} == {"1", "4"}
    shuffled = dict(reversed(state.items()))
    swapped = {f"{5 - int(name[0])}{name[1:]}": tensor for name, tensor in state.items()}
    with plugged_in(full.model, full.layout, of, state) as model:
        expected = model(IDS).logits
    with plugged_in(full.model, full.layout, of, shuffled) as model:
        assert torch.equal(model(IDS).logits, expected)
    with plugged_in(full.model, full.layout, of, swapped) as model:
        assert not torch.allclose(model(IDS).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_only_the_adapter_learns_and_harmonizers_are_never_matched(model_type: str, kind: AdapterKind) -> None:
    full = tiny_language_model(model_type)
    emulator = build(full, scaleot_plan(0.5, 0.5))
    attached = attach_adapter(emulator.model, emulator.layout, spec(kind, emulator.plan.adapter_layers))
    trainable = {id(parameter) for parameter in attached.trainable().values()}
    assert {id(p) for p in emulator.model.parameters() if p.requires_grad} == trainable
    for index in emulator.plan.indices(LayerRole.REPLACED):
        stand_in = emulator.layout.layer(emulator.model, index)
        assert {type(module).__name__ for module in stand_in.modules()} == {"Harmonizer", "Linear"}
    examples = [EncodedExample(tuple(row), 4) for row in IDS.tolist()]
    target_loss(attached.model, collate(examples, 0, torch.device("cpu"))).backward()
    gradients = {name: p.grad for name, p in attached.trainable().items()}
    moving = [name for name, grad in gradients.items() if grad is not None and grad.abs().sum() > 0]
    assert {name.split(".")[0] for name in moving} == {str(i) for i in emulator.plan.adapter_layers}


def test_lora_covers_every_linear_map_of_the_adapter_layers_and_no_other() -> None:
    full = tiny_language_model("llama")
    state = attach_adapter(full.model, full.layout, spec(AdapterKind.LORA, (1,))).state()
    linears = (*full.layout.attention_linears, *full.layout.mlp_linears)
    assert set(state) == {f"1.{linear}.lora_{part}" for linear in linears for part in "AB"}


def test_layer_indices_are_matched_whole() -> None:
    """Layer 1 asked for, layer 11 must stay untouched."""
    full = tiny_language_model("llama", layers=12)
    attach_adapter(full.model, full.layout, spec(AdapterKind.LORA, (1,)))
    tuned = {name for name, p in full.model.named_parameters() if p.requires_grad}
    assert tuned
    assert all(name.startswith("model.layers.1.") for name in tuned)


def test_starting_values_come_from_the_seed_alone() -> None:
    states = []
    for seed in (5, 5, 6):
        torch.rand(3)  # the global stream moves on
        full = tiny_language_model("llama")
        states.append(attach_adapter(full.model, full.layout, AdapterSpec(AdapterKind.LORA, (1,), 3, seed)).state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["1.mlp.up_proj.lora_A"], states[2]["1.mlp.up_proj.lora_A"])


def test_ffa_trains_and_sends_the_way_up_alone() -> None:
    full = tiny_language_model("llama")
    both = attach_adapter(tiny_language_model("llama").model, full.layout, spec(AdapterKind.LORA)).state()
    frozen = attach_adapter(full.model, full.layout, spec(AdapterKind.LORA, freezes_down=True))
    assert set(frozen.state()) == {name for name in both if name.endswith("lora_B")}
    path = f"{full.layout.layer_path(1)}.mlp.up_proj"
    lora_a = full.model.get_submodule(path).lora_A["scaleot"].weight
    assert torch.equal(lora_a, both["1.mlp.up_proj.lora_A"])
    assert not lora_a.requires_grad


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_a_state_that_does_not_fit_is_refused(fault: str) -> None:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, spec(AdapterKind.LORA))
    state = attached.state()
    name = next(iter(state))
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        state["1.self_attn.q_proj.lora_C"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1, 1)
    with pytest.raises(ModelError, match="does not fit"):
        attached.load(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_not_the_models_own_cannot_carry_an_adapter(kind: AdapterKind) -> None:
    full = tiny_language_model("llama")
    emulator = build(full, scaleot_plan(0.5, 0.5))
    for role in (LayerRole.REPLACED, LayerRole.KEPT):
        index = emulator.plan.indices(role)[0]
        with pytest.raises(ModelError, match=f"layer {index} cannot carry"):
            attach_adapter(emulator.model, emulator.layout, spec(kind, (index,)))
    with pytest.raises(ModelError, match="out of range"):
        attach_adapter(full.model, full.layout, spec(kind, (6,)))


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("freezes_down", [False, True])
def test_peft_loads_what_was_saved(model_type: str, freezes_down: bool, tmp_path: Path) -> None:
    full = tiny_language_model(model_type)
    of = spec(AdapterKind.LORA, freezes_down=freezes_down)
    state = moved(full, of)
    with plugged_in(full.model, full.layout, of, state) as model:
        expected = model(IDS).logits
    save_adapter(full.model, full.layout, of, state, tmp_path)
    loaded = PeftModel.from_pretrained(full.model, tmp_path)
    torch.testing.assert_close(loaded(IDS).logits, expected)


@pytest.mark.parametrize("kind", [AdapterKind.LAYERS, AdapterKind.BOTTLENECK])
def test_the_other_kinds_are_saved_with_what_rebuilds_them(kind: AdapterKind, tmp_path: Path) -> None:
    import json

    full = tiny_language_model("llama")
    state = moved(full, spec(kind))
    save_adapter(full.model, full.layout, spec(kind), state, tmp_path)
    assert AdapterSpec.from_json(json.loads((tmp_path / "adapter.json").read_text())) == spec(kind)
    read = load_file(tmp_path / "adapter.safetensors")
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_loss_is_taken_on_targets_only_and_padding_does_not_count() -> None:
    full = tiny_language_model("gpt2")
    attached = attach_adapter(full.model, full.layout, spec(AdapterKind.LORA))
    examples = [EncodedExample((5, 6, 7, 8, 9), 3), EncodedExample((10, 11, 12), 2)]
    expected = []
    for example in examples:
        log_probabilities = full.model(torch.tensor([example.token_ids])).logits[0].log_softmax(-1)
        places = range(example.target_start, len(example.token_ids))
        expected += [-log_probabilities[place - 1, example.token_ids[place]] for place in places]
    loss = target_loss(attached.model, collate(examples, 0, torch.device("cpu")))
    torch.testing.assert_close(loss, torch.stack(expected).mean())
