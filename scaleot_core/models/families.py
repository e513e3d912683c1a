"""The table of model families: where each keeps its decoder layers, attention and feed-forward parts.

A new family is a new row. All paths are those of transformers 5; a family's own forward is used as it is.
"""

from dataclasses import dataclass
from enum import Enum

from scaleot_core.errors import ModelError

FUSED_BLOCKS = 3
"""Query, key and value."""


class Fusion(Enum):
    """How one linear map holds the query, key and value projections together."""

    CONTIGUOUS = "all queries, then all keys, then all values"
    PER_HEAD = "query, key and value of the first head, then of the second, ..."


@dataclass(frozen=True)
class DecoderFamily:
    """One row of the table; the dotted names of ``attention`` and ``mlp`` stand inside a decoder layer."""

    model_type: str
    """The ``model_type`` of the configuration in transformers."""
    layers: str
    """Dotted path of the list of decoder layers inside the causal language model."""
    attention: tuple[str, ...]
    """The linear maps of the attention: query, key, value, output; or the fused one, then the output."""
    mlp: tuple[str, ...]
    """The linear maps of the feed-forward part."""
    fusion: Fusion | None = None
    """How query, key and value share the first map of ``attention``; ``None`` when each has its own."""
    transposed: bool = False
    """Whether the linear maps store their weights as (in, out)."""
    returns_tuple: bool = False
    """Whether a decoder layer returns ``(hidden states, attention weights)`` and not the hidden states alone."""


_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_WIDENED = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

FAMILIES: dict[str, DecoderFamily] = {
    row.model_type: row
    for row in (
        DecoderFamily("llama", "model.layers", _SEPARATE, _GATED),
        DecoderFamily("mistral", "model.layers", _SEPARATE, _GATED),
        DecoderFamily("qwen2", "model.layers", _SEPARATE, _GATED),
        DecoderFamily("qwen3", "model.layers", _SEPARATE, _GATED),
        DecoderFamily("gemma3_text", "model.layers", _SEPARATE, _GATED),
        DecoderFamily("phi", "model.layers", (*_SEPARATE[:3], "self_attn.dense"), ("mlp.fc1", "mlp.fc2")),
        DecoderFamily("opt", "model.decoder.layers", (*_SEPARATE[:3], "self_attn.out_proj"), ("fc1", "fc2")),
        DecoderFamily(
            "gpt2",
            "transformer.h",
            ("attn.c_attn", "attn.c_proj"),
            ("mlp.c_fc", "mlp.c_proj"),
            Fusion.CONTIGUOUS,
            transposed=True,
        ),
        DecoderFamily(
            "gpt_neox",
            "gpt_neox.layers",
            ("attention.query_key_value", "attention.dense"),
            _WIDENED,
            Fusion.PER_HEAD,
        ),
        DecoderFamily(
            "bloom",
            "transformer.h",
            ("self_attention.query_key_value", "self_attention.dense"),
            _WIDENED,
            Fusion.PER_HEAD,
            returns_tuple=True,
        ),
    )
}


def family_of(model_type: str) -> DecoderFamily:
    """Returns the row of a model type.

    Raises:
        ModelError: no row has that type; the message lists the known ones.
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"unknown model family {model_type!r}: expected one of {known}")
    return FAMILIES[model_type]
