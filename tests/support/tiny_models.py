"""Tiny real models of every family of the table, built in code with transformers' own classes."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from scaleot_core.models.layout import layout_for
from scaleot_core.models.loading import LanguageModel
from tests.support.tiny_tokenizer import VOCABULARY_SIZE, tiny_tokenizer

__all__ = ["FAMILY_CONFIGS", "save_tiny_model", "tiny_language_model", "tiny_model", "tiny_tokenizer"]

_COMMON = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 4}

FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 8},
    "qwen2": {**_GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen3": _GROUPED,
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 3},
    "phi": _COMMON,
    "gpt_neox": _COMMON,
    "opt": {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_attention_heads": 4,
        "ffn_dim": 24,
        "max_position_embeddings": 128,
    },
    "gpt2": {"vocab_size": VOCABULARY_SIZE, "n_embd": 16, "n_head": 4, "n_positions": 128},
    "bloom": {"vocab_size": VOCABULARY_SIZE, "hidden_size": 16, "n_head": 4},
}
"""One small configuration for each row of the table; grouped queries and sliding layers where a family has them."""


def tiny_model(model_type: str, *, tied: bool | None = None, layers: int = 6, seed: int = 0) -> PreTrainedModel:
    """Returns a random model of this family, float32, in eval mode, frozen; ``tied`` overrides the family's head."""
    values = {**FAMILY_CONFIGS[model_type], "num_hidden_layers": layers}
    if tied is not None:
        values["tie_word_embeddings"] = tied
    config = AutoConfig.for_model(model_type, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # transformers starts so small that layers hardly matter
            if parameter.dim() > 1:
                parameter.data.mul_(5)
            else:  # biases start at zero, and a fault in carrying them would not show
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval().requires_grad_(False)


def tiny_language_model(model_type: str, *, tied: bool | None = None, layers: int = 6, seed: int = 0) -> LanguageModel:
    """Returns ``tiny_model`` with its tokenizer and layout."""
    model = tiny_model(model_type, tied=tied, layers=layers, seed=seed)
    return LanguageModel(model, tiny_tokenizer(), layout_for(model.config), "0" * 64)


def save_tiny_model(directory: Path, model_type: str = "llama") -> Path:
    """Saves ``tiny_model`` and its tokenizer as a directory in Hugging Face format, and returns it."""
    tiny_model(model_type).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
