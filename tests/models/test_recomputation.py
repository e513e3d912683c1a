from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.compression.builders import Distillation, distilled
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.importance import SwappableLayers, estimate_importance
from scaleot_core.compression.plan import LayerRole, plan_of_roles
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.compression.builders.requests import emulator_request, text_alone
from tests.support.importance import importance_settings
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model

ROLES = [LayerRole.SHARED, LayerRole.ADAPTER, LayerRole.REPLACED, LayerRole.DROPPED, LayerRole.KEPT, LayerRole.ADAPTER]
BLOCKS = torch.randint(3, 300, (20, 8), generator=torch.Generator().manual_seed(0))
EXAMPLES = [EncodedExample(tuple(range(n, n + 12)), 4) for n in range(8)]


def every_role(model_type: str) -> Emulator:
    plan = plan_of_roles(dict(enumerate(ROLES)), shared_from={0: 4})
    harmonizers = {"2.down.weight": 0.1 * torch.ones(4, 16), "2.up.weight": 0.1 * torch.ones(16, 4)}
    return build_emulator(tiny_language_model(model_type), plan, harmonizers, harmonizer_rank=4)


def tuned(held: Emulator | LanguageModel, kind: AdapterKind, *, recomputes: bool) -> TensorDict:
    attached = attach_adapter(held.model, held.layout, AdapterSpec(kind, (1, 5), 2, seed=0))
    settings = LocalTraining(2, 4, 1e-2, gradient_checkpointing=recomputes)
    train_adapter(attached, EXAMPLES, settings, pad_token_id=0, seed=0, reporter=SilentReporter())
    state = attached.state()
    attached.detach()
    return state


@contextmanager
def counted_layer_calls(held: Emulator | LanguageModel) -> Iterator[list[int]]:
    calls: list[int] = []
    linears = [held.layout.layer(held.model, i).get_submodule(held.layout.mlp_linears[0]) for i in (1, 5)]
    hooks = [linear.register_forward_hook(lambda *_: calls.append(1)) for linear in linears]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_two_steps_with_recomputed_activations_give_the_same_adapter_whatever_stands_in_the_list_of_layers(
    model_type: str,
) -> None:
    emulator = every_role(model_type)
    plain = tuned(emulator, AdapterKind.LORA, recomputes=False)
    recomputed = tuned(emulator, AdapterKind.LORA, recomputes=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", AdapterKind)
def test_every_kind_of_adapter_learns_the_same_in_the_full_model(kind: AdapterKind) -> None:
    full = tiny_language_model("llama")
    plain, recomputed = (tuned(full, kind, recomputes=recomputes) for recomputes in (False, True))
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("recomputes", "times"), [(False, 2), (True, 4)])
def test_layers_do_run_twice_though_the_model_is_in_eval_mode(recomputes: bool, times: int) -> None:
    full = tiny_language_model("llama")
    with counted_layer_calls(full) as calls:
        tuned(full, AdapterKind.BOTTLENECK, recomputes=recomputes)
    assert len(calls) == 2 * times  # two layers, two steps, forward and once more


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_stage_1_learns_the_same_harmonizers_and_scores(model_type: str) -> None:
    full, settings = tiny_language_model(model_type), importance_settings(steps=4, hidden_state_weight=1.0)
    plain, recomputed = (
        estimate_importance(full, BLOCKS, settings, gradient_checkpointing=recomputes, reporter=SilentReporter())
        for recomputes in (False, True)
    )
    assert recomputed.scores == pytest.approx(plain.scores, rel=1e-4, abs=1e-7)
    for name, tensor in plain.harmonizers.items():
        torch.testing.assert_close(recomputed.harmonizers[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distillation_gives_the_same_emulator(model_type: str, dtype: torch.dtype) -> None:
    full = tiny_language_model(model_type)
    full.model.to(dtype)
    plain, recomputed = (
        distilled.build(
            full,
            emulator_request(distillation=Distillation(2, 1e-3, 30.0, gradient_checkpointing=recomputes)),
            text_alone(BLOCKS),
            reporter=SilentReporter(),
        ).model.state_dict()
        for recomputes in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recomputes", [False, True])
def test_stage_1_and_distillation_do_compute_kept_layers_twice(recomputes: bool) -> None:
    full = tiny_language_model("llama")
    swappable = SwappableLayers(full, importance_settings(), gradient_checkpointing=recomputes)
    with swappable, counted_layer_calls(full) as calls:
        swappable.add_gradients(frozenset({0, 3}), BLOCKS[:4], 1.0)
    assert len(calls) == 2 * (3 if recomputes else 2)  # of layers 1 and 5: once in the full model, and the step's


def test_the_backward_pass_keeps_no_more_than_a_few_tensors_of_a_layer() -> None:
    full = tiny_language_model("llama")
    attached = attach_adapter(full.model, full.layout, AdapterSpec(AdapterKind.LORA, (0,), 2, seed=0))

    def kept_bytes() -> int:
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.setdefault(tensor.data_ptr(), tensor.nbytes) and tensor, lambda tensor: tensor
        ):
            loss = full.model(input_ids=torch.arange(96).view(2, 48), use_cache=False).logits.square().mean()
        del loss
        return sum(kept.values())

    everything = kept_bytes()
    with recomputed_activations(full.model, full.layout):
        assert kept_bytes() < everything / 2
    attached.detach()


def test_leaving_the_context_leaves_nothing_behind_also_after_an_error() -> None:
    emulator = every_role("llama")
    with pytest.raises(KeyError), recomputed_activations(emulator.model, emulator.layout):
        raise KeyError
    assert not any("forward" in vars(module) for module in emulator.model.modules())


@pytest.mark.parametrize("kind", AdapterKind)
def test_a_model_in_half_precision_on_a_cpu_computes_again_with_the_kernel_of_the_first_time(kind: AdapterKind) -> None:
    full = tiny_language_model("llama")
    full.model.to(torch.bfloat16)
    plain, recomputed = (tuned(full, kind, recomputes=recomputes) for recomputes in (False, True))
    for name, tensor in plain.items():
        torch.testing.assert_close(recomputed[name], tensor, rtol=1e-5, atol=1e-7)
