"""A model, its tokenizer and its layout, from a local directory in Hugging Face format; never from a hub."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scaleot_core.errors import ModelError
from scaleot_core.models.families import family_of
from scaleot_core.models.layout import DecoderLayout, layout_for
from scaleot_core.models.memory import check_memory, free_bytes
from scaleot_core.models.placement import plan_placement
from scaleot_core.out_of_memory import is_out_of_memory

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""Where transformers 5 saves what used to stand in ``tokenizer_config.json``."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_DIGEST_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class LanguageModel:
    """A full model as its owner holds it: frozen, in eval mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    layout: DecoderLayout
    digest: str
    """SHA-256, in hex, over the names and bytes of the configuration and weight files."""


def load_model(
    directory: Path, *, dtype: torch.dtype, device: torch.device, spare_devices: Sequence[torch.device] = ()
) -> LanguageModel:
    """Loads the model of a directory with ``config.json``, safetensors weights and ``tokenizer.json``.

    Pickled weights are refused, code in the directory is never run, and nothing is asked of a hub. Where ``device``
    has not room for the model twice, decoder layers go to ``spare_devices``, CUDA devices as ``device`` is, too.

    Raises:
        ModelError: the directory, its configuration, weights or tokenizer are missing, of a kind that is
            refused, or of an unknown family.
    """
    family_of(_model_type(directory))
    weights = _weight_files(directory)
    devices = (device, *spare_devices)
    check_memory(weights, dtype=dtype, devices=devices)
    device_map = _device_map(directory, dtype, devices) if spare_devices else None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"the model in {directory} cannot be loaded: {error}") from error
    if device_map is None:
        model.to(device)
    model.eval().requires_grad_(False)
    tokenizer = load_tokenizer(_tokenizer_paths(directory))
    template = directory / CHAT_TEMPLATE_FILE
    if template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    files = [directory / "config.json", *weights]
    return LanguageModel(model, tokenizer, layout_for(model.config), _digest(files))


def read_layout(directory: Path) -> DecoderLayout:
    """Returns the layout of the model in a directory, from its configuration alone.

    Raises:
        ModelError: the configuration is missing, malformed, or of an unknown family.
    """
    return layout_for(_read_config(directory))


def random_model(directory: Path, *, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Returns a model of the directory's ``config.json`` with random weights: good for measuring speed, and no more.

    No other file is read; the tokenizer knows a single token.

    Raises:
        ModelError: the configuration is missing, malformed, or of an unknown family.
    """
    config = _read_config(directory)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "?")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0})), **special)
    return LanguageModel(model.to(device).eval().requires_grad_(False), tokenizer, layout_for(config), digest="")


def load_tokenizer(files: dict[str, Path]) -> PreTrainedTokenizerFast:
    """Loads a tokenizer from its two JSON files, whatever their real names are (a descriptor's path, say).

    Raises:
        ModelError: a file is missing or malformed.
    """
    try:
        settings = dict(json.loads(files["tokenizer_config.json"].read_bytes()))
        definition = files["tokenizer.json"].read_text(encoding="utf-8")
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"the tokenizer cannot be read: {error}") from error
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # a bare Exception is all that the tokenizers library raises on a malformed file
        raise ModelError(f"tokenizer.json cannot be read: {error}") from error
    special = {name: _token_text(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)}
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=settings.get("chat_template"), **special)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    return loaded


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Returns the text of the two JSON files that ``load_tokenizer`` reads back to an equal tokenizer."""
    settings = {name: str(getattr(tokenizer, name)) for name in _SPECIAL_TOKENS if getattr(tokenizer, name)}
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    return {
        "tokenizer.json": tokenizer.backend_tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(settings, sort_keys=True),
    }


def _read_config(directory: Path) -> PretrainedConfig:
    family_of(_model_type(directory))
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{directory / 'config.json'} cannot be read: {error}") from error


def _device_map(directory: Path, dtype: torch.dtype, devices: Sequence[torch.device]) -> dict[str, int] | None:
    """Returns which CUDA device, by its index, each part of the model goes to; ``None``: all to the first."""
    config = _read_config(directory)
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config)
    free = [free_bytes(device) for device in devices]
    placement = plan_placement(empty, layout_for(config), dtype=dtype, free_bytes=free)
    return placement and {name: devices[number].index for name, number in placement.items()}


def _model_type(directory: Path) -> str:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(f"{directory} is no model directory: expected config.json in it ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{directory / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{directory / 'config.json'} names no model_type")
    if "auto_map" in config:
        raise ModelError(f"{directory / 'config.json'} asks to run code of its own (auto_map): refused")
    return str(config["model_type"])


def _weight_files(directory: Path) -> list[Path]:
    """Returns the files that the library reads, and not what else lies there, as another format's copy of them all."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [directory / name for name in sorted(set(named))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is no index of weights: {error!r}") from error
    weights = sorted(directory.glob("*.safetensors"))
    whole = directory / "model.safetensors"
    if weights:
        return [whole] if whole in weights else weights
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise ModelError(
            f"{directory} has pickled weights only ({', '.join(pickled)}): expected *.safetensors. Pickles can run "
            "code and are refused; convert them with transformers' save_pretrained on a machine you trust"
        )
    raise ModelError(f"{directory} has no weights: expected *.safetensors beside config.json")


def _tokenizer_paths(directory: Path) -> dict[str, Path]:
    for name in TOKENIZER_FILES:
        if not (directory / name).is_file():
            raise ModelError(f"{directory} has no {name}: expected the files of a fast tokenizer")
    return {name: directory / name for name in TOKENIZER_FILES}


def _token_text(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            while block := stream.read(_DIGEST_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
