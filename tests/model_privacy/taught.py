"""A tiny full model that was taught a classification and a generative task, so that it has a score worth recovering."""

import dataclasses
from dataclasses import dataclass
from itertools import islice

import torch

from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.plan import LayerPlan, LayerRole, PlannedLayer
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict, TokenBlocks
from scaleot_core.training.data import (
    ChoiceRecord,
    CompletionRecord,
    Record,
    TextRecord,
    encode_for_training,
    text_blocks,
)
from scaleot_core.training.local import LocalTraining, take_steps
from tests.support.tiny_models import tiny_language_model

NOUNS = ("film", "story", "sentence", "question", "answer", "word")
WORDS = {"good": "positive", "true": "positive", "fine": "positive", "bad": "negative", "false": "negative"}
HARMONIZER_RANK = 4
SILENT = SilentReporter()


def question(noun: str, word: str) -> str:
    return f"the {noun} is {word}. Answer:"


CHOICES: tuple[Record, ...] = tuple(
    ChoiceRecord(question(noun, word), ("negative", "positive"), int(label == "positive"))
    for noun in NOUNS
    for word, label in WORDS.items()
)
COMPLETIONS: tuple[Record, ...] = tuple(
    CompletionRecord(question(noun, word), label) for noun in NOUNS for word, label in WORDS.items()
)
PUBLIC = " ".join(
    f"{question(noun, word)} {label}" for noun in ("house", "road", "sea") for word, label in WORDS.items()
)
"""Text of the same kind about other things."""


@dataclass(frozen=True)
class Taught:
    """The full model and public text that it has read, too."""

    full: LanguageModel
    public_blocks: TokenBlocks

    def measure(self, held: LanguageModel | Emulator, records: tuple[Record, ...]) -> Metrics:
        return evaluate(held.model, held.tokenizer, records, reporter=SILENT)

    def emulator(self, *roles: LayerRole, kept_rank_share: float = 1.0) -> Emulator:
        """Builds an emulator of these roles; its harmonizers are as they start, the identity."""
        planned = [PlannedLayer(i, role, kept_rank_share) for i, role in enumerate(roles)]
        return emulator_of(self.full, LayerPlan(tuple(planned)))


def emulator_of(full: LanguageModel, plan: LayerPlan) -> Emulator:
    return build_emulator(full, plan, _identities(full, plan), harmonizer_rank=HARMONIZER_RANK)


def _identities(full: LanguageModel, plan: LayerPlan) -> TensorDict:
    hidden, generator = full.layout.hidden_size, torch.Generator().manual_seed(0)
    return {
        f"{index}.{name}.weight": tensor
        for index in plan.indices(LayerRole.REPLACED)
        for name, tensor in (
            ("down", 0.3 * torch.randn(HARMONIZER_RANK, hidden, generator=generator)),
            ("up", torch.zeros(hidden, HARMONIZER_RANK)),
        )
    }


def teach() -> Taught:
    full = tiny_language_model("llama", layers=4)
    full = dataclasses.replace(full, digest="ab" * 32)
    text = text_blocks([TextRecord(PUBLIC)], full.tokenizer, block_tokens=24)
    examples = (*encode_for_training(CHOICES, full.tokenizer, max_tokens=48), *text)
    full.model.requires_grad_(True)
    parameters = list(full.model.parameters())
    settings = LocalTraining(steps=150, batch_size=16, learning_rate=5e-3)
    for _ in islice(take_steps(full.model, parameters, examples, settings, pad_token_id=0, seed=0), settings.steps):
        pass
    full.model.requires_grad_(False).zero_grad(set_to_none=True)
    return Taught(full, torch.tensor([block.token_ids for block in text]))
