import copy
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.compression.activations import observe_layers
from scaleot_core.compression.cka import LinearCka
from scaleot_core.compression.closed_form import fit_harmonizers
from scaleot_core.compression.emulator import build_emulator, describe_emulator
from scaleot_core.compression.importance import SwappableLayers
from scaleot_core.compression.plan import plan_layers
from scaleot_core.compression.public_text import next_token_loss
from scaleot_core.errors import ModelError
from scaleot_core.models.loading import LanguageModel, load_model, random_model
from scaleot_core.models.placement import place_like, spread_layers
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.progress import SilentReporter
from scaleot_core.scoring import Score, score_examples
from scaleot_core.training.data import EncodedExample
from tests.support.importance import importance_settings
from tests.support.spread_models import even_placement, spread_model, two_devices
from tests.support.tiny_models import FAMILY_CONFIGS, save_tiny_model, tiny_language_model

CPU, OTHER = torch.device("cpu"), torch.device("meta")
IDS = torch.arange(24).view(2, 12)
SETTINGS = importance_settings(steps=1, candidates=2, group_size=2, score_every_steps=1, hidden_state_weight=1.0)


@pytest.mark.parametrize(
    ("rest", "free", "expected"),
    [
        (0, [40], None),  # one device is all there is
        (0, [80, 80], None),  # 4 layers of 10 take half of the first
        (0, [79, 80], (0, 0, 1, 1)),
        (20, [50, 50], (0, 1, 1, 1)),  # 30 each, of which the first has 20 that are no layer
        (40, [30, 100], (1, 1, 1, 1)),  # no room for a layer beside the embeddings
        (0, [20, 20, 20, 20], (0, 1, 2, 3)),
        (0, [30, 10], (0, 0, 0, 1)),
    ],
)
def test_layers_go_in_runs_that_fill_every_device_alike(
    rest: int, free: list[int], expected: tuple[int, ...] | None
) -> None:
    assert spread_layers(10, rest, 4, free) == expected


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_placement_names_every_parameter_of_every_family_once_and_spreads_nothing_but_layers(model_type: str) -> None:
    full = tiny_language_model(model_type)
    placement = even_placement(full)
    for name, _ in full.model.named_parameters(remove_duplicate=False):
        assert len([part for part in placement if name.startswith(f"{part}.")]) == 1, name
    layers = [placement.pop(full.layout.layer_path(index)) for index in range(6)]
    assert layers == [0, 0, 0, 1, 1, 1]
    assert set(placement.values()) == {0}


def test_a_model_that_the_first_device_has_room_for_stays_there(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    alone = load_model(tmp_path, dtype=torch.float32, device=CPU)
    beside = load_model(tmp_path, dtype=torch.float32, device=CPU, spare_devices=[CPU])
    assert beside.digest == alone.digest
    assert torch.equal(beside.model(input_ids=IDS).logits, alone.model(input_ids=IDS).logits)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom"])
def test_a_spread_model_reads_text_and_gives_logits_where_the_token_ids_were(model_type: str) -> None:
    full = spread_model(model_type)
    assert full.model.device == CPU
    assert {full.layout.layer_device(full.model, index) for index in range(6)} == {CPU, OTHER}
    with two_devices():
        assert full.model(input_ids=IDS).logits.device == CPU
        assert next_token_loss(full.model, IDS).device == CPU


def test_tensors_of_two_devices_do_not_mix_unnoticed() -> None:
    full = spread_model()
    remove_hook_from_submodules(full.model)
    with two_devices(), pytest.raises(RuntimeError, match="device"):
        full.model(input_ids=IDS)


@pytest.mark.parametrize("kind", AdapterKind)
@pytest.mark.parametrize("recomputes", [False, True])
def test_an_adapter_in_a_spread_model_lies_and_learns_beside_its_layers(kind: AdapterKind, recomputes: bool) -> None:
    full = spread_model()
    hooked = full.layout.layer(full.model, 4).forward
    attached = attach_adapter(full.model, full.layout, AdapterSpec(kind, (1, 4), 2, seed=0))
    with two_devices():
        if recomputes:
            with recomputed_activations(full.model, full.layout):
                next_token_loss(full.model, IDS).backward()
        else:
            next_token_loss(full.model, IDS).backward()
    for name, parameter in attached.trainable().items():
        assert parameter.device == parameter.grad.device == (CPU if name.startswith("1.") else OTHER), name
    attached.detach()
    assert full.layout.layer(full.model, 4).forward is hooked


@pytest.mark.parametrize("replaced", [{0, 5}, {2, 3}, {1, 4}])
def test_harmonizers_of_a_spread_model_lie_beside_the_layers_they_stand_in_for(replaced: set[int]) -> None:
    full = spread_model()
    swappable = SwappableLayers(full, SETTINGS)
    devices = [harmonizer.down.weight.device for harmonizer in swappable.harmonizers]
    assert devices == [full.layout.layer_device(full.model, index) for index in range(6)]
    with swappable, two_devices():
        swappable.loss_with_hidden_states(frozenset(replaced), IDS, 1.0).backward()
        for index in replaced:
            assert swappable.harmonizers[index].up.weight.grad.device == devices[index]


def test_what_layers_of_a_spread_model_read_and_write_is_summed_up_where_they_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors on the second device have no values here, so that none can be checked."""
    monkeypatch.setattr("scaleot_core.compression.closed_form.check_finite", lambda *_: None)
    full = spread_model()
    alignments = [LinearCka(full.layout.hidden_size, full.layout.layer_device(full.model, i)) for i in range(6)]
    with two_devices():
        observe_layers(
            full, IDS, lambda i, x, y: alignments[i].add(x, y), batch_size=2, reporter=SilentReporter(), stage=""
        )
        fitted = fit_harmonizers(full, IDS, 4, batch_size=2, reporter=SilentReporter())
    assert [down.device for down, _ in fitted] == [full.layout.layer_device(full.model, i) for i in range(6)]


def test_the_emulator_of_a_hooked_model_has_no_hooks_and_is_the_one_of_the_plain_model() -> None:
    plan = plan_layers(
        [0.5, 0.1, 0.4, 0.0, 0.3, 0.2], adapter={0, 2}, replaced_layer_share=0.25, removed_rank_share=0.5
    )
    harmonizers = {"3.down.weight": torch.ones(4, 16), "3.up.weight": torch.ones(16, 4)}
    plain, hooked = tiny_language_model("llama"), tiny_language_model("llama")
    before = hooked.model(input_ids=IDS).logits
    dispatch_model(hooked.model, {"model": "cpu", "lm_head": "cpu"}, "cpu", force_hooks=True)
    built = build_emulator(hooked, plan, harmonizers, harmonizer_rank=4)
    expected = build_emulator(plain, plan, harmonizers, harmonizer_rank=4)
    traces = {"_hf_hook", "hf_device_map", "forward", "_old_forward", "to"}
    assert not any(traces & set(vars(module)) for module in built.model.modules())
    assert torch.equal(built.model(input_ids=IDS).logits, expected.model(input_ids=IDS).logits)
    assert describe_emulator(built, hooked) == describe_emulator(expected, plain)
    assert hasattr(hooked.model.model.layers[0], "_hf_hook")
    assert torch.equal(hooked.model(input_ids=IDS).logits, before)


def test_a_second_model_goes_where_the_spread_one_stands() -> None:
    full, fresh = spread_model(), tiny_language_model("llama", seed=1)
    placed = place_like(fresh.model, full.model)
    assert {name: p.device for name, p in placed.named_parameters()} == {
        name: p.device for name, p in full.model.named_parameters()
    }
    with two_devices():
        assert placed(input_ids=IDS).logits.device == CPU


def test_a_random_model_needs_a_configuration_alone_and_is_always_the_same(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "whole")
    (tmp_path / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    one, two = (random_model(tmp_path, dtype=torch.bfloat16, device=CPU) for _ in range(2))
    assert one.model.dtype is torch.bfloat16 and not one.model.training
    assert one.layout == load_model(tmp_path / "whole", dtype=torch.float32, device=CPU).layout
    assert torch.equal(one.model(input_ids=IDS).logits, two.model(input_ids=IDS).logits)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="no model directory"):
        random_model(tmp_path, dtype=torch.bfloat16, device=CPU)


@pytest.mark.gpu
def test_a_model_loaded_over_all_gpus_computes_what_it_does_on_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    full = tiny_language_model("llama")
    expected = _scores(full)
    spread = copy.deepcopy(full)
    dispatch_model(spread.model, even_placement(full), 0, skip_keys=full.model._skip_keys_device_placement)
    assert {parameter.device.index for parameter in spread.model.parameters()} == {0, 1}
    for got, wanted in zip(_scores(spread), expected, strict=True):
        assert got.log_probability == pytest.approx(wanted.log_probability, abs=1e-3)


def _scores(full: LanguageModel) -> tuple[Score, ...]:
    context = tuple(range(8))
    examples = [EncodedExample((*context, choice, 3), 8) for choice in (9, 10, 11)]
    return score_examples(full.model, examples, batch_tokens=64, reporter=SilentReporter())
