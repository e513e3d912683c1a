"""A LLaMA model from GGUF to a directory in Hugging Face format, in bfloat16, the same bytes on every machine.

transformers reads GGUF too and gets the same weights, but refuses to save what it read, and its configuration names its
own version: the model's digest would change with every upgrade.
"""

import json
from pathlib import Path
from typing import Any

from scaleot_core.errors import AssetError

_MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_CONTROL_TOKEN = 3
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_model_directory(gguf: Path, destination: Path) -> None:
    """Writes configuration, weights and tokenizer of a GGUF file of LLaMA's kind with a byte-level BPE tokenizer.

    Quantised weights are multiplied out in float32 and rounded to bfloat16 once.

    Raises:
        AssetError: the weights cannot be written.
    """
    from gguf import GGUFReader  # reads a 100 MB file's index in three seconds

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensor_names = {tensor.name for tensor in reader.tensors}
    destination.mkdir()
    _write_json(_configuration(fields, is_tied="output.weight" not in tensor_names), destination / "config.json")
    _write_weights(reader, fields, destination / "model.safetensors")
    (destination / "tokenizer.json").write_text(_tokenizer(fields), encoding="utf-8")
    _write_json(_tokenizer_settings(fields), destination / "tokenizer_config.json")


def _configuration(fields: dict[str, Any], *, is_tied: bool) -> dict[str, Any]:
    heads, hidden = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": fields["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": is_tied,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


def _write_weights(reader: Any, fields: dict[str, Any], destination: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    heads = {
        "self_attn.q_proj.weight": fields["llama.attention.head_count"],
        "self_attn.k_proj.weight": fields["llama.attention.head_count_kv"],
    }
    tensors = {}
    for stored in reader.tensors:
        name = _tensor_name(stored.name)
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        for suffix, num_heads in heads.items():
            if name.endswith(suffix):
                weight = _unpermute_rotary(weight, num_heads)
        tensors[name] = weight.to(torch.bfloat16).contiguous()
    try:
        save_file(tensors, destination, metadata={"format": "pt"})
    except SafetensorError as error:
        raise AssetError(f"{destination} cannot be written: {error}") from error


def _tensor_name(stored_name: str) -> str:
    if stored_name in _MODEL_TENSORS:
        return _MODEL_TENSORS[stored_name]
    _, index, part = stored_name.split(".", 2)
    return f"model.layers.{index}.{_LAYER_TENSORS[part]}"


def _unpermute_rotary(weight: Any, num_heads: int) -> Any:
    """Undoes GGUF's order of a head's rows, in which the two halves that rotate together stand interleaved."""
    pairs = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, pairs, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(fields: dict[str, Any]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return str(tokenizer.to_str(pretty=True))


def _tokenizer_settings(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    special = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in _SPECIAL_TOKENS.items()}
    return {
        **special,
        "chat_template": fields["tokenizer.chat_template"],
        "model_max_length": fields["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(value: object, destination: Path) -> None:
    destination.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
