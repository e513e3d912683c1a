"""What a model owner asks a builder for, with the values that a test does not care about filled in."""

import dataclasses
from typing import Any

import torch

from scaleot_core.compression.builders import Distillation, EmulatorRequest, PublicKnowledge
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import RankTarget

_REQUEST = EmulatorRequest(
    adapter=frozenset({0, 5}),
    control_scores=None,
    replaced_layer_share=0.5,
    removed_rank_share=0.0,
    rank_target=RankTarget.ATTENTION,
    rank_criterion="weight",
    loss_increase_weight=0.0,
    distillation=Distillation(steps=2, learning_rate=1e-3, hidden_state_weight=30.0),
    num_blocks=16,
    batch_size=4,
    seed=0,
)


def emulator_request(**changes: Any) -> EmulatorRequest:
    return dataclasses.replace(_REQUEST, **changes)


def random_blocks(count: int = 16, tokens: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (count, tokens), generator=torch.Generator().manual_seed(seed))


def text_alone(blocks: torch.Tensor) -> PublicKnowledge:
    """Public text for a builder that has no business with importance scores."""

    def no_importance() -> ImportanceReport:
        raise AssertionError("this builder computes no importance")

    return PublicKnowledge(lambda: blocks, no_importance)
