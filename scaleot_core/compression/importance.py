"""Dynamic LayerReplace: importance scores by reinforcement learning, harmonizers by gradient descent.

The two alternate on public text while the model stays frozen. Source: ScaleOT (Yao, Tan, Ye, Li, Zhao, Liu, Wang,
Zhu, AAAI 2025, arXiv 2412.09812), stage 1. What the paper leaves open is a field of ``ImportanceSettings``.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scaleot_core.compression.activations import layer_outputs
from scaleot_core.compression.closed_form import fit_harmonizers
from scaleot_core.compression.finiteness import check_finite
from scaleot_core.compression.harmonizer import Harmonizer
from scaleot_core.compression.layer_groups import layer_groups
from scaleot_core.compression.public_text import endless_batches, next_token_loss, relative_distance
from scaleot_core.errors import ModelError
from scaleot_core.models.attention import attention_for_training
from scaleot_core.models.layout import DecoderLayout
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.logits import no_logits
from scaleot_core.models.recomputation import recomputed_activations
from scaleot_core.progress import Reporter
from scaleot_core.seeds import generator_for
from scaleot_core.shapes import Scores, TensorDict, TokenBlocks, TokenIds

RewardKind = Literal["raw", "normalised"]
WEIGHT_DECAY = 0.01
"""Of AdamW while harmonizers learn."""
MAX_DRAWS = 1000
"""Draws after which the search for distinct candidates gives up: only models of very few layers come near."""


@dataclass(frozen=True)
class ImportanceSettings:
    """What Dynamic LayerReplace needs to know; ``[open]`` marks what the paper does not fix."""

    steps: int
    """Training steps T of the harmonizers."""
    candidates: int
    """Candidates N_c compared at each update of the scores; at least 2."""
    harmonizer_rank: int
    """[open] The paper uses 64 near a billion parameters."""
    batch_size: int
    """Blocks of public text in one batch."""
    harmonizer_learning_rate: float
    """[open] Learning rate of AdamW for the harmonizers; falls to zero along half a cosine."""
    score_learning_rate: float
    """[open] The paper's eta."""
    score_every_steps: int
    """[open] Training steps between two updates of the scores."""
    group_size: int
    """[open] Layers in a group, of which half are kept; one that is left over joins the last group."""
    regroup: Literal["random", "fixed"]
    """[open] Groups drawn afresh for every sample, or contiguous and fixed."""
    reward: RewardKind
    """[open] The paper's reward as it is, or divided by the candidates' standard deviation."""
    harmonizer_start: Literal["identity", "closed_form"]
    """[open] The paper starts from the identity; the closed form starts from a regression on public text."""
    closed_form_blocks: int
    """Blocks of public text behind the closed form."""
    hidden_state_weight: float
    """[open] Weight, beside the cross-entropy, of the relative distance of the last layer's output from the full
    model's; the paper has none. It costs a second forward pass a step."""
    seed: int

    @property
    def fixed_group_size(self) -> int | None:
        """Layers in a group, where groups stay: scores of two groups were then never compared."""
        return self.group_size if self.regroup == "fixed" else None


@dataclass(frozen=True)
class ScoreUpdate:
    """One update of the scores: which layers each candidate kept, its loss and its reward."""

    step: int
    losses: tuple[float, ...]
    rewards: tuple[float, ...]
    kept: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ImportanceReport:
    """Scores and harmonizers of every layer of one model, good for every (N_a, alpha, beta)."""

    scores: tuple[float, ...]
    harmonizers: TensorDict
    """``<index>.down.weight`` (rank, hidden) and ``<index>.up.weight`` (hidden, rank), float32, on the CPU."""
    settings: ImportanceSettings
    training_losses: tuple[float, ...]
    history: tuple[ScoreUpdate, ...]
    seconds: float | None = None
    """How long the estimate took; ``None`` where nobody measured."""

    def to_json(self) -> dict[str, Any]:
        """Returns all but the harmonizers as plain JSON values."""
        return {
            "scores": list(self.scores),
            "settings": asdict(self.settings),
            "training_losses": list(self.training_losses),
            "history": [asdict(update) for update in self.history],
            "seconds": self.seconds,
        }


def estimate_importance(
    full: LanguageModel,
    public_blocks: TokenBlocks,
    settings: ImportanceSettings,
    *,
    gradient_checkpointing: bool = False,
    reporter: Reporter,
) -> ImportanceReport:
    """Learns a harmonizer for every layer and scores how much each layer matters; a high score means important.

    ``public_blocks`` (blocks, tokens) is public text; nine tenths train the harmonizers (the paper's D_T), a
    disjoint tenth scores the candidates (D_V). The model stays as it is, in eval mode, and comes back untouched.
    ``gradient_checkpointing`` recomputes activations going backward, for the same report in less memory.

    [open] AdamW's weight decay, here ``WEIGHT_DECAY``.

    Differs from the paper: groups are drawn afresh, scores move every ``score_every_steps`` and the reward can be
    normalised, as the settings say; gradients are clipped to norm 1.

    Raises:
        ModelError: fewer than ten blocks of text, settings out of range, or a loss or harmonizer that is not finite.
    """
    check_settings(settings, full.layout.num_layers)
    check_blocks(public_blocks)
    train_blocks, score_blocks = _split(public_blocks, settings.seed)
    train = endless_batches(train_blocks, settings.batch_size, generator_for(settings.seed, "train"))
    score = endless_batches(score_blocks, settings.batch_size, generator_for(settings.seed, "score"))
    policy = generator_for(settings.seed, "policy")
    swappable = SwappableLayers(full, settings, gradient_checkpointing=gradient_checkpointing)
    scores = torch.zeros(full.layout.num_layers)
    if settings.harmonizer_start == "closed_form":
        swappable.start_from_closed_form(train_blocks, settings, reporter)
    optimizer = harmonizer_optimizer(swappable.harmonizers, settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    losses: list[float] = []
    history: list[ScoreUpdate] = []
    with swappable, reporter.stage("importance", steps=settings.steps) as stage:
        for step in range(1, settings.steps + 1):
            replaced = sample_replaced(scores, settings.group_size, settings.regroup, policy)
            losses.append(train_step(swappable, replaced, next(train), optimizer, settings.hidden_state_weight))
            _check_finite(losses[-1:], "the training loss", step, settings)
            schedule.step()
            if step % settings.score_every_steps == 0:
                candidates = _distinct_candidates(scores, settings, policy)
                history.append(_compare(swappable, candidates, next(score), step, settings))
                scores = updated_scores(scores, history[-1], settings.score_learning_rate)
            stage.advance(loss=losses[-1])
    state = {name: t.detach().float().cpu().clone() for name, t in swappable.harmonizers.state_dict().items()}
    _check_finite((float(t.abs().amax()) for t in state.values()), "a harmonizer's weight", settings.steps, settings)
    return ImportanceReport(tuple(scores.tolist()), state, settings, tuple(losses), tuple(history))


def sample_replaced(
    scores: Scores, group_size: int, regroup: Literal["random", "fixed"], generator: torch.Generator
) -> frozenset[int]:
    """Draws which layers are replaced: of every group the half with the smaller ``pi_i ~ U(0, sigmoid(s_i))``.

    A group of odd length keeps one more than it replaces. The groups are those of ``layer_groups``.
    """
    num_layers = scores.shape[0]
    order = torch.randperm(num_layers, generator=generator) if regroup == "random" else torch.arange(num_layers)
    pi = torch.rand(num_layers, generator=generator) * torch.sigmoid(scores)
    replaced: list[int] = []
    for positions in layer_groups(num_layers, group_size):
        group = order[positions.start : positions.stop]
        ascending = group[pi[group].argsort()]
        replaced.extend(ascending[: len(group) // 2].tolist())
    return frozenset(replaced)


def updated_scores(scores: Scores, update: ScoreUpdate, learning_rate: float) -> Scores:
    """Returns ``s_i + eta r_j p_i (1 - p_i)``, with ``p = sigmoid(s)``, summed over the candidates j that kept i."""
    probability = torch.sigmoid(scores)
    step = torch.zeros_like(scores)
    for reward, kept in zip(update.rewards, update.kept, strict=True):
        step[list(kept)] += learning_rate * reward
    return scores + step * probability * (1 - probability)


def rewards_of(losses: Sequence[float], kind: RewardKind) -> tuple[float, ...]:
    """Returns ``exp(-L_j)`` less the candidates' mean of it; ``normalised`` divides by their standard deviation."""
    gains = torch.tensor(losses, dtype=torch.float64).neg().exp()
    rewards = gains - gains.mean()
    if kind == "normalised":
        rewards = rewards / gains.std().clamp_min(torch.finfo(torch.float64).tiny)
    return tuple(rewards.tolist())


class SwappableLayers:
    """A model whose layers give way to their harmonizers on demand; leaving the context restores it."""

    def __init__(
        self, full: LanguageModel, settings: ImportanceSettings, *, gradient_checkpointing: bool = False
    ) -> None:
        self._full, self._layout = full, full.layout
        self._gradient_checkpointing = gradient_checkpointing
        self._layers = [full.layout.layer(full.model, index) for index in range(full.layout.num_layers)]
        self.harmonizers = _fresh_harmonizers(full.layout, settings)
        for index, harmonizer in enumerate(self.harmonizers):
            harmonizer.to(full.layout.layer_device(full.model, index))

    def __enter__(self) -> "SwappableLayers":
        return self

    def __exit__(self, *_: object) -> None:
        self._place(frozenset())

    def start_from_closed_form(self, blocks: TokenBlocks, settings: ImportanceSettings, reporter: Reporter) -> None:
        """Sets every harmonizer to the regression of its layer over the first of ``blocks``."""
        blocks = blocks[: settings.closed_form_blocks]
        fitted = fit_harmonizers(
            self._full, blocks, settings.harmonizer_rank, batch_size=settings.batch_size, reporter=reporter
        )
        for harmonizer, (down, up) in zip(self.harmonizers, fitted, strict=True):
            harmonizer.load_state_dict({"down.weight": down, "up.weight": up})

    def loss(self, replaced: frozenset[int], token_ids: TokenIds) -> Tensor:
        """Returns the mean next-token cross-entropy with the layers ``replaced`` given way to their harmonizers."""
        self._place(replaced)
        return next_token_loss(self._full.model, token_ids)

    def loss_with_hidden_states(self, replaced: frozenset[int], token_ids: TokenIds, weight: float) -> Tensor:
        """Returns ``loss`` plus ``weight`` times the relative distance of the last layer's output from the full's."""
        model, last = self._full.model, self._layout.num_layers - 1
        self._place(frozenset())
        with torch.no_grad(), layer_outputs(model, self._layout, [last]) as full_states:
            model(input_ids=token_ids.to(model.device), use_cache=False, logits_to_keep=no_logits())
        self._place(replaced)
        with layer_outputs(model, self._layout, [last]) as states:
            loss = next_token_loss(model, token_ids)
        return loss + weight * relative_distance(full_states[last], states[last])

    def add_gradients(self, replaced: frozenset[int], token_ids: TokenIds, hidden_state_weight: float) -> float:
        """Adds the gradients of a training step's loss to the harmonizers' own, and returns the loss."""
        model = self._full.model
        self._place(replaced)
        with recomputed_activations(model, self._layout) if self._gradient_checkpointing else nullcontext():
            if hidden_state_weight:
                loss = self.loss_with_hidden_states(replaced, token_ids, hidden_state_weight)
            else:
                loss = self.loss(replaced, token_ids)
            with attention_for_training(model, token_ids):  # what is recomputed takes the kernel of the way forward
                loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _place(self, replaced: frozenset[int]) -> None:
        for index, layer in enumerate(self._layers):
            standing = self.harmonizers[index] if index in replaced else layer
            self._layout.replace_layer(self._full.model, index, standing)


def _fresh_harmonizers(layout: DecoderLayout, settings: ImportanceSettings) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(settings.seed, "harmonizers").initial_seed())
        return nn.ModuleList(
            Harmonizer(
                layout.hidden_size,
                settings.harmonizer_rank,
                layer_index=index,
                returns_tuple=layout.family.returns_tuple,
            )
            for index in range(layout.num_layers)
        )


def harmonizer_optimizer(harmonizers: nn.ModuleList, settings: ImportanceSettings) -> torch.optim.AdamW:
    """Returns the optimizer of all harmonizers; a step leaves those as they are that had no part in the loss."""
    parameters, rate = harmonizers.parameters(), settings.harmonizer_learning_rate
    return torch.optim.AdamW(parameters, rate, weight_decay=WEIGHT_DECAY, fused=True)


def train_step(
    swappable: SwappableLayers,
    replaced: frozenset[int],
    batch: TokenBlocks,
    optimizer: torch.optim.Optimizer,
    hidden_state_weight: float,
) -> float:
    """Takes one step of gradient descent on the harmonizers of the layers ``replaced``; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = swappable.add_gradients(replaced, batch, hidden_state_weight)
    nn.utils.clip_grad_norm_([p for p in swappable.harmonizers.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    return loss


def _compare(
    swappable: SwappableLayers,
    candidates: Sequence[frozenset[int]],
    batch: TokenBlocks,
    step: int,
    settings: ImportanceSettings,
) -> ScoreUpdate:
    """Returns the candidates' losses on one batch, forward only, and their rewards."""
    with torch.no_grad():
        losses = tuple(float(swappable.loss(replaced, batch)) for replaced in candidates)
    _check_finite(losses, "a candidate's loss", step, settings)
    kept = _kept_layers(candidates, len(swappable.harmonizers))
    return ScoreUpdate(step, losses, rewards_of(losses, settings.reward), kept)


def _kept_layers(candidates: Sequence[frozenset[int]], num_layers: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(i for i in range(num_layers) if i not in replaced) for replaced in candidates)


def _distinct_candidates(
    scores: Scores, settings: ImportanceSettings, generator: torch.Generator
) -> list[frozenset[int]]:
    candidates: list[frozenset[int]] = []
    for _ in range(MAX_DRAWS):
        drawn = sample_replaced(scores, settings.group_size, settings.regroup, generator)
        if drawn not in candidates:
            candidates.append(drawn)
        if len(candidates) == settings.candidates:
            return candidates
    raise ModelError(
        f"{scores.shape[0]} layers in groups of {settings.group_size} give no {settings.candidates} distinct "
        f"candidates in {MAX_DRAWS} draws: ask for fewer candidates or larger groups"
    )


def _split(blocks: TokenBlocks, seed: int) -> tuple[TokenBlocks, TokenBlocks]:
    order = torch.randperm(blocks.shape[0], generator=generator_for(seed, "split"))
    count = max(1, blocks.shape[0] // 10)
    return blocks[order[count:]], blocks[order[:count]]


def check_blocks(blocks: TokenBlocks) -> None:
    """Checks that there is enough public text (blocks, tokens) to learn from; raises ``ModelError``."""
    if blocks.shape[0] < 10:
        raise ModelError(f"importance needs at least 10 blocks of public text, got {blocks.shape[0]}: give more text")


def check_settings(settings: ImportanceSettings, num_layers: int) -> None:
    """Checks that a model of ``num_layers`` can be scored with these settings; raises ``ModelError``."""
    if num_layers < 2:
        raise ModelError("importance compares layers, and the model has one alone: no layer can be replaced")
    if settings.candidates < 2:
        raise ModelError(f"importance compares at least 2 candidates, got {settings.candidates}")
    if settings.group_size < 2:
        raise ModelError(f"a group holds at least 2 layers, got {settings.group_size}")
    _distinct_candidates(torch.zeros(num_layers), settings, generator_for(settings.seed, "policy"))


def _check_finite(values: Iterable[float], what: str, step: int, settings: ImportanceSettings) -> None:
    where = f"at step {step} of {settings.steps} of the importance estimate"
    cure = f"a smaller harmonizer_learning_rate (it is {settings.harmonizer_learning_rate:g}), or "
    check_finite(values, what, where, first_cure=cure)
