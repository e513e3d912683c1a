"""The examples that a mechanism of privacy tunes on: one for each record, which the emulator can read."""

from collections.abc import Sequence

from scaleot_core.compression.emulator import Emulator
from scaleot_core.models.positions import readable_tokens
from scaleot_core.training.data import EncodedExample, Record, encode_first_examples


def private_examples(records: Sequence[Record], emulator: Emulator, *, max_tokens: int) -> tuple[EncodedExample, ...]:
    """Returns one example for each record; see ``encode_first_examples``, which raises as this does.

    A record longer than the emulator's positions would end the round, and tell that there is one: it is cut. One whose
    tokens the emulator has not got becomes ``STAND_IN``.
    """
    return encode_first_examples(
        records,
        emulator.tokenizer,
        max_tokens=readable_tokens(emulator.model, max_tokens),
        vocabulary_size=emulator.model.config.vocab_size,
    )
