"""GGUF files of random weights, quantised as real files are, with llama.cpp's own library."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 64, 4, 2, 96
LETTERS = tuple(chr(letter) for letter in range(33, 127))
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6

LLAMA_LAYERS = 2
LLAMA_TOKENS = ["<|end|>", "<|start|>", *LETTERS, "Ġ", "Ċ", "th", "the", "12"]
LLAMA_KINDS = [CONTROL] * 2 + [NORMAL] * (len(LLAMA_TOKENS) - 2)
LLAMA_MERGES = ["t h", "th e", "1 2"]

GEMMA3_LAYERS, GEMMA3_WINDOW = 7, 8
GEMMA3_HEAD = 256  # transformers' reading scales the attention of any file by the root of 256
_GEMMA3_TOKENS = {
    CONTROL: ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"],
    USER_DEFINED: ["<table>", "\n\n", "  ", "   "],
    BYTE: [f"<0x{byte:02X}>" for byte in range(256)],
    NORMAL: ["th", "the", "▁the", "▁t", "he", "em", "\n", "▁", *LETTERS, "é"],
}
GEMMA3_TOKENS = [token for tokens in _GEMMA3_TOKENS.values() for token in tokens]
GEMMA3_KINDS = [kind for kind, tokens in _GEMMA3_TOKENS.items() for _ in tokens]


def write_llama(path: Path, *, is_tied: bool = True) -> None:
    writer = _writer(path, "llama", LLAMA_LAYERS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    _add_tokens(writer, "gpt2", LLAMA_TOKENS, LLAMA_KINDS, pad=0, eos=0, bos=1, unk=0)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_merges(LLAMA_MERGES)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = _layer_shapes(LLAMA_LAYERS, HIDDEN // HEADS)
    _finish(writer, shapes, num_tokens=len(LLAMA_TOKENS), is_tied=is_tied)


def write_gemma3(path: Path, *, is_tied: bool = True) -> None:
    writer = _writer(path, "gemma3", GEMMA3_LAYERS)
    writer.add_key_length(GEMMA3_HEAD)
    writer.add_value_length(GEMMA3_HEAD)
    writer.add_sliding_window(GEMMA3_WINDOW)
    _add_tokens(writer, "llama", GEMMA3_TOKENS, GEMMA3_KINDS, pad=0, eos=1, bos=2, unk=3)
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(index) for index in range(len(GEMMA3_TOKENS))])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    shapes = _layer_shapes(GEMMA3_LAYERS, GEMMA3_HEAD)
    for index in range(GEMMA3_LAYERS):
        shapes |= {f"blk.{index}.{name}.weight": (HIDDEN,) for name in ("post_attention_norm", "post_ffw_norm")}
        shapes |= {f"blk.{index}.{name}.weight": (GEMMA3_HEAD,) for name in ("attn_q_norm", "attn_k_norm")}
    _finish(writer, shapes, num_tokens=len(GEMMA3_TOKENS), is_tied=is_tied)


WRITERS: dict[str, Callable[..., None]] = {"llama": write_llama, "gemma3": write_gemma3}
"""Of each architecture that is read."""


def _writer(path: Path, architecture: str, num_layers: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _add_tokens(
    writer: gguf.GGUFWriter, model: str, tokens: list[str], kinds: list[int], *, pad: int, eos: int, bos: int, unk: int
) -> None:
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_pad_token_id(pad)
    writer.add_eos_token_id(eos)
    writer.add_bos_token_id(bos)
    writer.add_unk_token_id(unk)


def _layer_shapes(num_layers: int, head_width: int) -> dict[str, tuple[int, ...]]:
    queries, keys = HEADS * head_width, KV_HEADS * head_width
    parts = {
        "attn_norm": (HIDDEN,),
        "attn_q": (queries, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, queries),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (FEED_FORWARD, HIDDEN),
        "ffn_up": (FEED_FORWARD, HIDDEN),
        "ffn_down": (HIDDEN, FEED_FORWARD),
    }
    return {f"blk.{index}.{part}.weight": shape for index in range(num_layers) for part, shape in parts.items()}


def _finish(writer: gguf.GGUFWriter, shapes: dict[str, tuple[int, ...]], *, num_tokens: int, is_tied: bool) -> None:
    shapes = {"token_embd.weight": (num_tokens, HIDDEN), "output_norm.weight": (HIDDEN,), **shapes}
    if not is_tied:
        shapes["output.weight"] = (num_tokens, HIDDEN)
    for number, (name, shape) in enumerate(shapes.items()):
        weight = np.random.default_rng(number).normal(scale=0.1, size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weight + 1)
        else:
            quantised = gguf.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
