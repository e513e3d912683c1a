"""What every builder is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from scaleot_core.compression.emulator import Emulator
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import RankTarget
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TokenBlocks

RankCriterion = Literal["weight", "activation"]


@dataclass(frozen=True)
class Distillation:
    """How ``distilled`` trains what it kept."""

    steps: int
    learning_rate: float
    hidden_state_weight: float
    """The weight of the hidden-state loss beside the language model's."""
    gradient_checkpointing: bool = False
    """Less memory for more time: see ``recomputed_activations``."""


@dataclass(frozen=True)
class EmulatorRequest:
    """The model owner's choice; a builder ignores what its method does not know."""

    adapter: frozenset[int]
    """The original indices of the layers that carry the adapter."""
    control_scores: tuple[float, ...] | None
    """A control's scores, to rank the layers by in place of the learnt ones; none where these count."""
    replaced_layer_share: float
    """The paper's alpha: share of the other layers that do not stay."""
    removed_rank_share: float
    """The paper's beta: share of rank that is removed from the layers that stay."""
    rank_target: RankTarget
    rank_criterion: RankCriterion
    """What a low-rank map is nearest in: its weights, as in the paper, or its outputs on public text."""
    loss_increase_weight: float
    """GradOT's lambda: what a higher loss of the emulator counts beside a gradient that stays."""
    distillation: Distillation
    num_blocks: int
    """Blocks of public text that one reading takes, from the start."""
    batch_size: int
    """Blocks of public text in a batch."""
    seed: int


@dataclass(frozen=True)
class PublicKnowledge:
    """What can be learnt about the full model from public text alone."""

    blocks: Callable[[], TokenBlocks]
    """The text itself as token ids (blocks, tokens), read when a builder asks for it."""
    importance: Callable[[], ImportanceReport]
    """Scores and harmonizers; computed, or found, when a builder asks for them."""


@dataclass(frozen=True)
class Ranking:
    """What ranks the layers for a builder that leaves out the least important."""

    scores: tuple[float, ...]
    group_size: int | None
    """Of the fixed groups within which alone the scores compare; none where they compare over all layers."""


def layer_ranking(request: EmulatorRequest, public: PublicKnowledge) -> Ranking:
    """Returns the control's scores that the request brings, or else those of Dynamic LayerReplace."""
    if request.control_scores is not None:
        return Ranking(request.control_scores, None)
    importance = public.importance()
    return Ranking(importance.scores, importance.settings.fixed_group_size)


@runtime_checkable
class Builder(Protocol):
    """Compresses a full model to an emulator and leaves it as it was.

    Raises ``ModelError`` where the request cannot be met.
    """

    def __call__(
        self, full: LanguageModel, request: EmulatorRequest, public: PublicKnowledge, *, reporter: Reporter
    ) -> Emulator:
        """Returns the emulator."""
        ...
