"""Compiled layers compute what the layers compute, and whoever cannot compile is told."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import TritonMissing

from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.compression.closed_form import fit_harmonizers
from scaleot_core.errors import ModelError
from scaleot_core.models.compilation import check_compiler, compiled_layers
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.progress import SilentReporter
from tests.support.compilers import needs_compiler
from tests.support.spread_models import spread_model, two_devices
from tests.support.tiny_models import save_tiny_model, tiny_language_model

IDS = torch.arange(24).view(2, 12)
SPEC = AdapterSpec(AdapterKind.LORA, (1, 4), 2, seed=0)


@pytest.fixture(autouse=True)
def forgotten_afterwards() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def logits(full: LanguageModel, **settings: bool) -> Tensor:
    with torch.inference_mode():
        return torch.as_tensor(full.model(input_ids=IDS, **{"use_cache": False, **settings}).logits)


def losses_and_gradients(full: LanguageModel) -> dict[str, Tensor]:
    attached = attach_adapter(full.model, full.layout, SPEC)
    try:
        generator = torch.Generator().manual_seed(0)
        for parameter in attached.trainable().values():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        loss = full.model(input_ids=IDS, use_cache=False).logits.float().logsumexp(dim=-1).mean()
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in attached.trainable().items()}
        return {"loss": loss.detach(), **{name: grad for name, grad in gradients.items() if grad is not None}}
    finally:
        attached.detach()


@needs_compiler
def test_the_model_reads_alike_and_is_as_it_was_afterwards() -> None:
    full = tiny_language_model("llama")
    plain, before = logits(full), num_graphs()
    moments = fit_harmonizers(full, IDS, 4, batch_size=2, reporter=SilentReporter())
    with compiled_layers(full.model, full.layout):
        torch.testing.assert_close(logits(full), plain, rtol=1e-4, atol=1e-5)
        assert num_graphs() - before == 1  # layers of one shape share what was compiled
        torch.testing.assert_close(logits(full, use_cache=True), plain, rtol=1e-4, atol=1e-5)
        assert num_graphs() - before == 1  # with a cache nothing is compiled
    with compiled_layers(full.model, full.layout):
        torch.testing.assert_close(logits(full), plain, rtol=1e-4, atol=1e-5)
        assert num_graphs() - before == 1  # what was compiled before is found again
        again = fit_harmonizers(full, IDS, 4, batch_size=2, reporter=SilentReporter())  # by hooks on the layers
        torch.testing.assert_close(again, moments, rtol=1e-3, atol=1e-4)
        attached = attach_adapter(full.model, full.layout, SPEC)
        attached.load({name: tensor + 0.3 for name, tensor in attached.state().items()})
        adapted = logits(full)
    assert all("forward" not in vars(full.layout.layer(full.model, index)) for index in range(full.layout.num_layers))
    torch.testing.assert_close(adapted, logits(full), rtol=1e-3, atol=1e-3)  # the adapter that came later is seen
    assert (adapted - plain).abs().max() > 0.1


def test_a_machine_without_a_compiler_is_told_so_before_any_work(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "from scaleot_core.cli import main; main()", "estimate"]
    settings = [
        "--set",
        "model.compiled=true",
        "--set",
        "model.device=cpu",
        "--set",
        f"model.source={save_tiny_model(tmp_path / 'model')}",
    ]
    finished = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "error: layers cannot be compiled on this machine: " in finished.stderr
    assert "Install a C++ compiler, as g++, or do without: model.compiled = false" in finished.stderr


def test_a_gpu_s_missing_compiler_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(_: object) -> object:
        raise TritonMissing(None)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(ModelError, match=r"cannot be compiled on this machine: .*Install Triton, or do without"):
        check_compiler(torch.device("cuda"))


def test_layers_on_two_devices_run_as_they_are() -> None:
    full, before = spread_model(), num_graphs()
    with two_devices(), compiled_layers(full.model, full.layout), torch.inference_mode():
        out = full.model(input_ids=IDS, use_cache=False).logits
    assert out.device.type == "cpu" and out.shape[:2] == IDS.shape
    assert num_graphs() == before


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_loss_and_gradients_are_those_of_the_layers_as_they_are(family: str) -> None:
    full = tiny_language_model(family)
    plain, before = losses_and_gradients(full), num_graphs()
    with compiled_layers(full.model, full.layout):
        compiled, made = losses_and_gradients(full), num_graphs() - before
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
        with recomputed_activations(full.model, full.layout):
            torch.testing.assert_close(losses_and_gradients(full), plain, rtol=1e-4, atol=1e-6)
    assert 0 < made < full.layout.num_layers
