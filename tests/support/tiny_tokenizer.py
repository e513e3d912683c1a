"""A real fast tokenizer, trained in code on a few lines: byte-level BPE, so that any text can be encoded."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 320
"""256 bytes, three special tokens, and the merges that the lines below give."""

_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
_LINES = (
    "the film is good and the story is true",
    "the film is bad and the story is false",
    "Question: is this sentence positive or negative? Answer: positive",
    "Question: is this sentence positive or negative? Answer: negative",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a new tokenizer that puts no special token into a text by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES * 4, trainer)
    special = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
