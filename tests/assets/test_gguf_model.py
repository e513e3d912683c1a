import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from scaleot_core.assets.gguf_model import write_model_directory
from scaleot_core.errors import AssetError
from tests.support.tiny_gguf import WRITERS


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("architecture", WRITERS)
def test_the_model_computes_what_transformers_own_reading_of_the_file_computes(
    tmp_path: Path, architecture: str, is_tied: bool
) -> None:
    WRITERS[architecture](tmp_path / "model.gguf", is_tied=is_tied)
    write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert ours.config.tie_word_embeddings is is_tied
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("architecture", WRITERS)
def test_the_same_file_gives_the_same_bytes_and_no_library_version_among_them(
    tmp_path: Path, architecture: str
) -> None:
    WRITERS[architecture](tmp_path / "model.gguf")
    for name in ("once", "twice"):
        write_model_directory(tmp_path / "model.gguf", tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert "transformers_version" not in json.loads((tmp_path / "once" / "config.json").read_text())
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "once" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


def test_an_unknown_architecture_gets_the_known_ones_listed(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AssetError, match=r"model\.gguf is of architecture rwkv6: expected one of llama, gemma3"):
        write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
