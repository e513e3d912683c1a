"""The examples that a model tunes on: what it can read of the records."""

from collections.abc import Sequence

from scaleot_core.compression.emulator import Emulator
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.positions import readable_tokens
from scaleot_core.training.data import EncodedExample, Record, encode_for_training


def readable_examples(
    held: LanguageModel | Emulator, records: Sequence[Record], *, max_tokens: int
) -> tuple[EncodedExample, ...]:
    """Returns what ``encode_for_training`` makes of the records, none longer than the model's positions; raises as it.

    Under a mechanism of privacy it is ``private_examples`` that keeps to the positions.
    """
    return encode_for_training(records, held.tokenizer, max_tokens=readable_tokens(held.model, max_tokens))
