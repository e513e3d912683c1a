import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from scaleot_core.assets.gguf_model import write_model_directory

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 64, 4, 2, 96, 2
TOKENS = ["<|end|>", "<|start|>", *(chr(letter) for letter in range(33, 127)), "Ġ", "Ċ", "th", "the", "12"]
MERGES = ["t h", "th e", "1 2"]


def write_gguf(path: Path, *, is_tied: bool) -> None:
    """Writes a LLaMA of random weights, quantised as real files are, with llama.cpp's own library."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, shape in tensor_shapes(is_tied=is_tied).items():
        weight = np.random.default_rng(len(name)).normal(scale=0.1, size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weight + 1)
        else:
            quantised = gguf.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_shapes(*, is_tied: bool) -> dict[str, tuple[int, ...]]:
    kv_width = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not is_tied:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    for index in range(LAYERS):
        shapes |= {
            f"blk.{index}.attn_norm.weight": (HIDDEN,),
            f"blk.{index}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{index}.attn_k.weight": (kv_width, HIDDEN),
            f"blk.{index}.attn_v.weight": (kv_width, HIDDEN),
            f"blk.{index}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{index}.ffn_norm.weight": (HIDDEN,),
            f"blk.{index}.ffn_gate.weight": (FEED_FORWARD, HIDDEN),
            f"blk.{index}.ffn_up.weight": (FEED_FORWARD, HIDDEN),
            f"blk.{index}.ffn_down.weight": (HIDDEN, FEED_FORWARD),
        }
    return shapes


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_model_computes_what_transformers_own_reading_of_the_file_computes(tmp_path: Path, is_tied: bool) -> None:
    write_gguf(tmp_path / "model.gguf", is_tied=is_tied)
    write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert ours.config.tie_word_embeddings is is_tied
    assert torch.equal(logits(ours), logits(theirs))


def test_the_same_file_gives_the_same_bytes_and_no_library_version_among_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", is_tied=True)
    for name in ("once", "twice"):
        write_model_directory(tmp_path / "model.gguf", tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert "transformers_version" not in json.loads((tmp_path / "once" / "config.json").read_text())
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "once" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}


def test_the_tokenizer_merges_splits_digits_and_keeps_special_tokens_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", is_tied=True)
    write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.tokenize("the 12<|end|>") == ["the", "Ġ", "1", "2", "<|end|>"]
    assert tokenizer.decode(tokenizer("the 12\nthem")["input_ids"]) == "the 12\nthem"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
