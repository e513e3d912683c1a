"""A model from GGUF to a directory in Hugging Face format, in bfloat16, the same bytes on every machine.

transformers reads GGUF too and gets the same weights, but refuses to save what it read, and its configuration names its
own version: the model's digest would change with every upgrade.
"""

import json
from pathlib import Path
from typing import Any

from scaleot_core.assets.gguf_architecture import Fields, GgufArchitecture
from scaleot_core.assets.gguf_gemma3 import GEMMA3
from scaleot_core.assets.gguf_llama import LLAMA
from scaleot_core.errors import AssetError

_ARCHITECTURES = {"llama": LLAMA, "gemma3": GEMMA3}
_MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_CHAT_TEMPLATE = "tokenizer.chat_template"


def write_model_directory(gguf: Path, destination: Path) -> None:
    """Writes configuration, weights and tokenizer of a GGUF file of one of the known architectures.

    Quantised weights are multiplied out in float32 and rounded to bfloat16 once.

    Raises:
        AssetError: the architecture is unknown, or the weights cannot be written.
    """
    from gguf import GGUFReader  # reads a 100 MB file's index in three seconds

    reader = GGUFReader(gguf)
    name = reader.fields["general.architecture"].contents()
    if name not in _ARCHITECTURES:
        raise AssetError(f"{gguf.name} is of architecture {name}: expected one of {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[name]
    fields = {key.removeprefix(f"{name}."): field.contents() for key, field in reader.fields.items()}
    is_tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    destination.mkdir()
    configuration = {**_configuration(fields, is_tied=is_tied), **architecture.configuration(fields)}
    _write_json(configuration, destination / "config.json")
    _write_weights(reader, architecture, fields, destination / "model.safetensors")
    tokenizer = architecture.tokenizer(fields).to_str(pretty=True)
    (destination / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    settings = {**_tokenizer_settings(fields), **architecture.tokenizer_settings}
    _write_json(settings, destination / "tokenizer_config.json")


def _configuration(fields: Fields, *, is_tied: bool) -> dict[str, object]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "max_position_embeddings": fields["context_length"],
        "num_attention_heads": fields["attention.head_count"],
        "num_hidden_layers": fields["block_count"],
        "num_key_value_heads": fields["attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": fields["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": is_tied,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


def _write_weights(reader: Any, architecture: GgufArchitecture, fields: Fields, destination: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for stored in reader.tensors:
        name = _tensor_name(stored.name, architecture)
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        tensors[name] = architecture.convert_weight(name, weight, fields).to(torch.bfloat16).contiguous()
    try:
        save_file(tensors, destination, metadata={"format": "pt"})
    except SafetensorError as error:
        raise AssetError(f"{destination} cannot be written: {error}") from error


def _tensor_name(stored_name: str, architecture: GgufArchitecture) -> str:
    if stored_name in _MODEL_TENSORS:
        return _MODEL_TENSORS[stored_name]
    _, index, part = stored_name.split(".", 2)
    return f"model.layers.{index}.{architecture.layer_tensors[part]}"


def _tokenizer_settings(fields: Fields) -> dict[str, object]:
    tokens = fields["tokenizer.ggml.tokens"]
    settings = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in _SPECIAL_TOKENS.items()}
    if _CHAT_TEMPLATE in fields:  # a base model has none
        settings["chat_template"] = fields[_CHAT_TEMPLATE]
    return {
        **settings,
        "model_max_length": fields["context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(value: object, destination: Path) -> None:
    destination.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
