import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from scaleot_core.errors import ModelError
from scaleot_core.models.loading import load_model, load_tokenizer, tokenizer_files
from tests.support.tiny_models import FAMILY_CONFIGS, save_tiny_model, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model_directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(directory: Path):
    return load_model(directory, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_saved_model_of_every_family_loads_and_computes_the_same(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    loaded = load(save_tiny_model(tmp_path, model_type))
    ids = torch.tensor(tiny_tokenizer()("the film is good")["input_ids"])[None]
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_digest_names_the_weights(model_directory: Path) -> None:
    first = load(model_directory).digest
    assert load(model_directory).digest == first
    tiny_model("llama", seed=1).save_pretrained(model_directory)
    assert load(model_directory).digest != first


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json"):
        load(tmp_path)


def test_a_model_without_weights_is_refused(model_directory: Path) -> None:
    (model_directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load(model_directory)


def test_pickled_weights_only_are_refused(model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        load(model_directory)


def test_a_model_without_a_tokenizer_is_refused(model_directory: Path) -> None:
    (model_directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load(model_directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, r"unknown model family 'mamba': expected one of bloom, gemma3_text, gpt2"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_a_configuration_we_cannot_use_is_refused(
    change: dict[str, object], message: str, model_directory: Path
) -> None:
    path = model_directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        load(model_directory)


def test_a_chat_template_in_a_file_of_its_own_is_found(model_directory: Path) -> None:
    (model_directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load(model_directory).tokenizer.chat_template == "{{ messages[0].content }}"


def test_truncated_weights_are_refused(model_directory: Path) -> None:
    path = model_directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="no readable safetensors file"):
        load(model_directory)


def test_another_copy_of_the_weights_is_neither_read_nor_counted(model_directory: Path) -> None:
    before = load(model_directory).digest
    (model_directory / "consolidated.safetensors").write_bytes(
        (model_directory / "model.safetensors").read_bytes()[:99]
    )
    assert load(model_directory).digest == before


def test_weights_in_several_files_are_those_of_the_index(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    (tmp_path / "consolidated.safetensors").write_bytes(b"no weights")
    loaded = load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelError, match="is no index of weights"):
        load(tmp_path)


def test_weights_that_end_too_early_are_refused(model_directory: Path) -> None:
    path = model_directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(model_directory)


def test_memory_that_runs_out_on_the_way_is_no_fault_of_the_model(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(model_directory)


def test_a_tokenizer_goes_through_its_two_files_unchanged(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for name, text in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_text(text)
    read = load_tokenizer({path.name: path for path in tmp_path.iterdir()})
    text = "Is this sentence positive? Ünïcode ✓"
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (read.eos_token, read.pad_token, read.bos_token) == ("</s>", "<pad>", "<s>")
    assert read.chat_template == tokenizer.chat_template
