"""Gemma 3's row: norms around both parts of a layer, windows of two kinds, and SentencePiece's BPE tokenizer."""

from typing import TYPE_CHECKING

from scaleot_core.assets.gguf_architecture import (
    CONTROL_TOKEN,
    USER_DEFINED_TOKEN,
    Fields,
    GgufArchitecture,
    tokens_of_kind,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

_LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# GGUF has no field for these two, llama.cpp's code fixes them.
_LAYERS_PER_FULL_ATTENTION = 6
_SLIDING_ROPE_THETA = 10_000.0
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space inside a token."""


def _configuration(fields: Fields) -> dict[str, object]:
    is_full = [(index + 1) % _LAYERS_PER_FULL_ATTENTION == 0 for index in range(fields["block_count"])]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,  # Gemma 2 caps logits, Gemma 3 normalises queries and keys
        "final_logit_softcapping": None,
        "head_dim": fields["attention.key_length"],
        "hidden_activation": "gelu_pytorch_tanh",  # of the architecture
        "layer_types": ["full_attention" if full else "sliding_attention" for full in is_full],
        "query_pre_attn_scalar": fields["attention.key_length"],  # as llama.cpp, of all sizes but 27B
        "rope_parameters": {
            "full_attention": {"rope_theta": fields["rope.freq_base"], "rope_type": "default"},
            "sliding_attention": {"rope_theta": _SLIDING_ROPE_THETA, "rope_type": "default"},
        },
        "sliding_window": fields["attention.sliding_window"],
        "use_bidirectional_attention": False,
    }


def _convert_weight(name: str, weight: "Tensor", _: Fields) -> "Tensor":
    return weight - 1 if name.endswith("norm.weight") else weight  # GGUF has what multiplies, the model adds the 1


def _tokenizer(fields: Fields) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = _vocabulary(fields)
    unknown, begin = (
        fields["tokenizer.ggml.tokens"][fields[f"tokenizer.ggml.{key}_token_id"]] for key in ("unknown", "bos")
    )
    model = models.BPE(vocabulary, _merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # of the original; finds nothing
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0",
        pair=f"{begin}:0 $A:0 {begin}:1 $B:1",
        special_tokens=[(begin, fields["tokenizer.ggml.bos_token_id"])],
    )
    tokenizer.add_special_tokens(tokens_of_kind(fields, CONTROL_TOKEN))
    whole = tokens_of_kind(fields, USER_DEFINED_TOKEN)
    tokenizer.add_tokens([token for token in whole if token.content in vocabulary])  # not the spaces
    return tokenizer


def _vocabulary(fields: Fields) -> dict[str, int]:
    """Returns every token with its number; a run of spaces, which GGUF writes as such, as SentencePiece writes it."""
    tokens = fields["tokenizer.ggml.tokens"]
    return {_SPACE * len(token) if not token.strip(" ") else token: index for index, token in enumerate(tokens)}


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Returns every cut of a token in two tokens, in the vocabulary's order: GGUF keeps no merges.

    Gemma's scores do not follow the order of its merges, the numbers of its tokens do. Of one token's cuts that with
    the longest left part comes first, as in transformers' reading.
    """
    cuts = ((token[:cut], token[cut:]) for token in vocabulary for cut in range(len(token) - 1, 0, -1))
    return [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]


GEMMA3 = GgufArchitecture(
    _LAYER_TENSORS, _configuration, _convert_weight, _tokenizer, tokenizer_settings={"add_bos_token": True}
)
