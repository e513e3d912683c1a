import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from scaleot_core.adapters.adapter import AttachedAdapter
from scaleot_core.models.layout import replace_submodule
from scaleot_core.privacy.gradient_way import choose_forward_way, choose_gradient_way
from tests.support.private_tasks import ADAPTERS, attached_adapter
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_language_model


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_hooks_serve_every_adapter_of_linear_maps_and_the_loop_serves_whole_layers(
    model_type: str, adapter: str
) -> None:
    way = choose_gradient_way(attached_adapter(model_type, adapter), rows=3, pad_token_id=0)
    assert way.uses_hooks == (adapter != "layers")
    assert way.rows == (1 if adapter == "layers" else 3)
    assert ("parametrizations" in way.reason) == (adapter == "layers")


def test_dora_goes_through_the_loop_and_is_said_to() -> None:
    full = tiny_language_model("llama", layers=2)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), full.model)
    trained = {name: one for name, one in full.model.named_parameters() if "lora" in name}
    way = choose_gradient_way(AttachedAdapter(full.model, trained, lambda: None), rows=2, pad_token_id=0)
    assert not way.uses_hooks
    assert "lora_magnitude_vector" in way.reason


def test_recomputed_activations_go_through_the_loop() -> None:
    way = choose_gradient_way(attached_adapter(), rows=2, pad_token_id=0, recomputes_activations=True)
    assert (way.uses_hooks, way.rows, way.recomputes_activations) == (False, 1, True)
    assert "recomputed" in way.reason


class BatchMean(nn.Module):
    """A layer that mixes the examples of a batch, as a batch norm does."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x)
        return output + output.mean(dim=0, keepdim=True)


def test_a_model_that_mixes_examples_is_found_out() -> None:
    attached = attached_adapter()
    path = "model.layers.0.mlp.down_proj"
    replace_submodule(attached.model, path, BatchMean(attached.model.get_submodule(path)))
    gradients = choose_gradient_way(attached, rows=4, pad_token_id=0)
    assert (gradients.uses_hooks, gradients.rows) == (False, 1)
    assert "not the loop's" in gradients.reason
    forward = choose_forward_way(attached, rows=4, pad_token_id=0)
    assert forward.rows == 1
    assert "company" in forward.reason


class MeanOfLong(BatchMean):
    """Mixes the examples of a batch where its rows are long, as a kernel may that is chosen by the shape."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x) if x.shape[1] > 100 else self.linear(x)
        return output


def test_company_that_tells_in_long_batches_alone_is_found_out() -> None:
    attached = attached_adapter()
    path = "model.layers.0.mlp.down_proj"
    replace_submodule(attached.model, path, MeanOfLong(attached.model.get_submodule(path)))
    for way in (
        choose_gradient_way(attached, rows=8, pad_token_id=0),
        choose_forward_way(attached, rows=8, pad_token_id=0),
    ):
        assert (way.uses_hooks, way.rows) == (False, 1)
        assert "company" in way.reason


class UsedByHand(nn.Module):
    """A linear map whose weight is used without calling it, so that no hook fires."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def test_a_weight_that_is_used_by_hand_goes_through_the_loop() -> None:
    attached = attached_adapter("llama", "bottleneck")
    bottleneck = attached.model.get_submodule("model.layers.1.mlp.down_proj.bottleneck")
    bottleneck.up = UsedByHand(bottleneck.up)  # type: ignore[arg-type]
    way = choose_gradient_way(attached, rows=3, pad_token_id=0)
    assert not way.uses_hooks
    assert "fail" in way.reason


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_trial_leaves_adapter_and_global_generator_as_they_were(adapter: str) -> None:
    attached = attached_adapter("llama", adapter)
    state, generator = attached.state(), torch.get_rng_state()
    choose_gradient_way(attached, rows=3, pad_token_id=0)
    choose_forward_way(attached, rows=3, pad_token_id=0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in attached.state().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_passes_take_as_many_rows_as_asked_for(dtype: torch.dtype) -> None:
    way = choose_forward_way(attached_adapter(dtype=dtype), rows=5, pad_token_id=0)
    assert (way.rows, way.uses_hooks) == (5, False)
