"""What differs from one of GGUF's architectures to the next: a row has its names, its configuration, its tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from torch import Tensor

Fields = Mapping[str, Any]
"""A GGUF file's fields; those of its architecture go without its name in front."""

CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4
"""Values of the field ``tokenizer.ggml.token_type``."""


@dataclass(frozen=True)
class GgufArchitecture:
    """One row: how a file of one architecture is told in Hugging Face's terms."""

    layer_tensors: Mapping[str, str]
    """The name of a tensor inside a decoder layer, by its name in the file."""
    configuration: Callable[[Fields], Mapping[str, object]]
    """The values of ``config.json`` that are this architecture's own."""
    convert_weight: Callable[[str, "Tensor", Fields], "Tensor"]
    """Undoes what llama.cpp did to a float32 weight of that Hugging Face name when it wrote the file."""
    tokenizer: Callable[[Fields], "Tokenizer"]
    tokenizer_settings: Mapping[str, object]
    """The values of ``tokenizer_config.json`` that are this architecture's own."""


def tokens_of_kind(fields: Fields, kind: int) -> "list[AddedToken]":
    """Returns the tokens that text is searched for whole, in the file's order; control tokens are special."""
    from tokenizers import AddedToken

    kinds = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    is_special = kind == CONTROL_TOKEN
    return [AddedToken(token, special=is_special, normalized=False) for token, got in kinds if got == kind]
