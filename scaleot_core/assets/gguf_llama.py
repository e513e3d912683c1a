"""LLaMA's row: rotary halves that GGUF interleaves, and a byte-level BPE tokenizer."""

from typing import TYPE_CHECKING

from scaleot_core.assets.gguf_architecture import CONTROL_TOKEN, Fields, GgufArchitecture, tokens_of_kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

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
_ROTARY_HEADS = {
    "self_attn.q_proj.weight": "attention.head_count",
    "self_attn.k_proj.weight": "attention.head_count_kv",
}


def _configuration(fields: Fields) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": fields["embedding_length"] // fields["attention.head_count"],
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_parameters": {"rope_theta": fields["rope.freq_base"], "rope_type": "default"},
    }


def _convert_weight(name: str, weight: "Tensor", fields: Fields) -> "Tensor":
    for suffix, heads in _ROTARY_HEADS.items():
        if name.endswith(suffix):
            return _unpermute_rotary(weight, fields[heads])
    return weight


def _unpermute_rotary(weight: "Tensor", num_heads: int) -> "Tensor":
    """Undoes GGUF's order of a head's rows, in which the two halves that rotate together stand interleaved."""
    pairs = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, pairs, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(fields: Fields) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens_of_kind(fields, CONTROL_TOKEN))
    return tokenizer


LLAMA = GgufArchitecture(_LAYER_TENSORS, _configuration, _convert_weight, _tokenizer, tokenizer_settings={})
