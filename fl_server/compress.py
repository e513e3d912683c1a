"""The model owner's first stage: load the full model, find what matters in it, build the emulator."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from scaleot_core.assets import asset_path, is_asset
from scaleot_core.assets.store import cache_directory
from scaleot_core.compression.adaptation import adaptation_scores
from scaleot_core.compression.adapter_rule import BY_IMPORTANCE, AdapterRule, adapter_layers
from scaleot_core.compression.builders import BUILDERS, Distillation, EmulatorRequest, PublicKnowledge
from scaleot_core.compression.controls import TextControlName, control_scores, random_scores
from scaleot_core.compression.emulator import Emulator
from scaleot_core.compression.importance import ImportanceReport, ImportanceSettings, estimate_importance
from scaleot_core.compression.importance_store import (
    SHIPPED_DIRECTORY,
    find_importance,
    importance_digest,
    save_importance,
)
from scaleot_core.compression.plan import RankTarget
from scaleot_core.errors import DataError
from scaleot_core.models.compilation import check_compiler, compiled_layers
from scaleot_core.models.devices import chosen_devices
from scaleot_core.models.loading import LanguageModel, load_model
from scaleot_core.models.positions import num_positions
from scaleot_core.progress import Reporter
from scaleot_core.run_file import EmulatorSection, ImportanceSection, ModelSection, RunFile
from scaleot_core.shapes import TokenBlocks
from scaleot_core.training.data import Record, TextRecord, read_records, text_blocks

_TimedScores = tuple[tuple[float, ...], float]
"""Scores of all layers, and the seconds that they took."""

_RANKING_BUILDERS = ("scaleot", "importance_drop")
"""The builders that leave out the least important layers."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def asset_or_path(source: str, reporter: Reporter) -> Path:
    """Returns where a run file's source lies: an embedded asset is fetched first, once."""
    return asset_path(source, reporter=reporter) if is_asset(source) else Path(source)


def load_full_model(section: ModelSection, reporter: Reporter) -> LanguageModel:
    """Loads the model that the run file names.

    Raises:
        ModelError: it cannot be loaded, or its layers are to be compiled and cannot be.
        AssetError: it is an embedded asset and could not be fetched.
    """
    device, *spare_devices = chosen_devices(section.device, torch.cuda.device_count())
    if section.compiled:
        check_compiler(device)
    directory = asset_or_path(section.source, reporter)
    return load_model(directory, dtype=DTYPES[section.dtype], device=device, spare_devices=spare_devices)


def compiled_as_asked(section: ModelSection, held: LanguageModel | Emulator) -> AbstractContextManager[None]:
    """Returns the context in which the layers of the full model, or of its emulator, run as the run file has it."""
    return compiled_layers(held.model, held.layout) if section.compiled else nullcontext()


def needs_importance(section: EmulatorSection) -> bool:
    """Tells whether the builder or the adapter rule asks for importance scores."""
    drops_by_it = section.builder == "importance_drop" and section.layer_scores == "importance"
    return section.builder == "scaleot" or drops_by_it or section.adapter_rule in BY_IMPORTANCE


def reads_text_for_control(section: EmulatorSection) -> bool:
    """Tells whether the builder ranks the layers by a control that reads public text."""
    return _control_of(section) not in (None, "random")


def _control_of(section: EmulatorSection) -> TextControlName | Literal["random"] | None:
    """Returns the control whose scores rank the layers for the builder; none where it ranks none, or by importance."""
    if section.builder not in _RANKING_BUILDERS or section.layer_scores == "importance":
        return None
    return section.layer_scores


def disclosure_basis(run: RunFile, reporter: Reporter) -> str:
    """Names what chooses the ranks and channels that a run file's emulator keeps, as ``Revealed.basis`` has it.

    The weights alone, or else SHA-256, in hex, over the public text and the settings that choose with it.
    """
    section, importance = run.emulator, run.importance
    is_pruned = section.builder == "gradot"
    if section.rank_criterion == "weight" and not is_pruned:
        return "weights"
    text = hashlib.sha256(asset_or_path(importance.text, reporter).read_bytes()).hexdigest()
    chosen_by = section.loss_increase_weight if is_pruned else section.rank_criterion
    settings = [text, importance.block_tokens, section.public_blocks, chosen_by]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


class Workbench:
    """One full model and its public text; what builders learn from both is learnt once and kept.

    ``blocks`` and ``importance`` that are given are taken for the text and the report, which are then not looked for.
    """

    def __init__(
        self,
        full: LanguageModel,
        run: RunFile,
        reporter: Reporter,
        *,
        blocks: TokenBlocks | None = None,
        importance: ImportanceReport | None = None,
    ) -> None:
        self._full, self._run, self._reporter = full, run, reporter
        self._importance = importance
        self._scores: dict[tuple[str, int], _TimedScores] = {}
        """Of controls and adapter rules, by their name and the number of blocks read."""
        self._blocks = blocks

    def importance(self) -> ImportanceReport:
        """Returns scores and harmonizers, from the package or the cache if they were computed before."""
        if self._importance is None:
            self._importance = _find_or_estimate(self._full, self.blocks(), self._run, self._reporter)
        return self._importance

    def blocks(self) -> TokenBlocks:
        """Returns the public text as token ids (blocks, tokens)."""
        if self._blocks is None:
            self._blocks = public_blocks(self._full, self._run.importance, self._reporter)
        return self._blocks

    def build(self, section: EmulatorSection) -> Emulator:
        """Builds the emulator of one ``[emulator]`` section."""
        request = EmulatorRequest(
            adapter=self.adapter_layers(section),
            control_scores=self._control_scores(section)[0],
            replaced_layer_share=section.replaced_layer_share,
            removed_rank_share=section.removed_rank_share,
            rank_target=RankTarget(section.rank_target),
            rank_criterion=section.rank_criterion,
            loss_increase_weight=section.loss_increase_weight,
            distillation=Distillation(
                section.distillation_steps,
                section.distillation_learning_rate,
                section.distillation_hidden_state_weight,
                self._run.importance.gradient_checkpointing,
            ),
            num_blocks=section.public_blocks,
            batch_size=self._run.importance.batch_size,
            seed=self._run.importance.seed,
        )
        public = PublicKnowledge(self.blocks, self.importance)
        return BUILDERS[section.builder](self._full, request, public, reporter=self._reporter)

    def adapter_layers(self, section: EmulatorSection) -> frozenset[int]:
        """Returns the original indices of the layers that carry the adapter."""
        rule, num_layers = AdapterRule(section.adapter_rule), self._full.layout.num_layers
        scores: tuple[float, ...] | None = None
        if rule in BY_IMPORTANCE:
            scores = self.importance().scores
        if rule is AdapterRule.GRADIENT:
            scores, _ = self._adaptation_scores(section.public_blocks)
        return adapter_layers(rule, section.num_adapter_layers, num_layers, scores)

    def scores_seconds(self, section: EmulatorSection) -> float:
        """Returns what the scores of a control and of the adapter rule took, importance apart, when computed."""
        seconds = self._control_scores(section)[1]
        if AdapterRule(section.adapter_rule) is AdapterRule.GRADIENT:
            seconds += self._adaptation_scores(section.public_blocks)[1]
        return seconds

    def _control_scores(self, section: EmulatorSection) -> tuple[tuple[float, ...] | None, float]:
        measure, num_blocks = _control_of(section), section.public_blocks
        if measure is None:
            return None, 0.0
        if measure == "random":
            return random_scores(self._full.layout.num_layers, self._run.importance.seed), 0.0

        def compute() -> tuple[float, ...]:
            blocks, batch_size = self.blocks()[:num_blocks], self._run.importance.batch_size
            return control_scores(measure, self._full, blocks, batch_size=batch_size, reporter=self._reporter)

        return self._timed_once((measure, num_blocks), compute)

    def _adaptation_scores(self, num_blocks: int) -> tuple[tuple[float, ...], float]:
        def compute() -> tuple[float, ...]:
            blocks, batch_size = self.blocks()[:num_blocks], self._run.importance.batch_size
            return adaptation_scores(self._full, blocks, batch_size=batch_size, reporter=self._reporter)

        return self._timed_once(("gradient", num_blocks), compute)

    def _timed_once(self, key: tuple[str, int], compute: Callable[[], tuple[float, ...]]) -> _TimedScores:
        if key not in self._scores:
            started = time.monotonic()
            scores = compute()
            self._scores[key] = scores, time.monotonic() - started
        return self._scores[key]


def _find_or_estimate(full: LanguageModel, blocks: TokenBlocks, run: RunFile, reporter: Reporter) -> ImportanceReport:
    digest = importance_digest(full.digest, blocks, importance_settings(run.importance))
    cache = importance_cache(full, run.model)
    found = find_importance(digest, (SHIPPED_DIRECTORY, cache))
    if found is not None:
        return found
    if (cache / digest).exists():
        reporter.note(f"the importance report in {cache / digest} is damaged or of another version: it is made again")
    # As saved, so that the second run equals the first.
    return save_importance(timed_importance(full, blocks, run, reporter), cache / digest)


def importance_cache(full: LanguageModel, section: ModelSection) -> Path:
    """Returns the folder where runs look for importance reports that were made on this machine.

    A shipped report serves every type; of one's own, a run's answer must not hang on which type came first.
    """
    kind = f"{full.model.device.type}-{full.model.dtype}".replace("torch.", "")
    return cache_directory() / "importance" / (f"{kind}-compiled" if section.compiled else kind)


def timed_importance(full: LanguageModel, blocks: TokenBlocks, run: RunFile, reporter: Reporter) -> ImportanceReport:
    """Estimates the importance of all layers and notes the seconds that it took on this machine."""
    started, section = time.monotonic(), run.importance
    with compiled_as_asked(run.model, full):
        report = estimate_importance(
            full,
            blocks,
            importance_settings(section),
            gradient_checkpointing=section.gradient_checkpointing,
            reporter=reporter,
        )
    return replace(report, seconds=time.monotonic() - started)


def importance_settings(section: ImportanceSection) -> ImportanceSettings:
    """Returns the settings of Dynamic LayerReplace that a run file gives, all on which its result depends."""
    fields = section.model_dump(exclude={"text", "block_tokens", "gradient_checkpointing"})
    return ImportanceSettings(**fields)


def public_blocks(full: LanguageModel, section: ImportanceSection, reporter: Reporter) -> TokenBlocks:
    """Returns the public text as token ids (blocks, tokens).

    Raises:
        DataError: the text cannot be used, or its blocks are longer than what the model reads.
    """
    bound = num_positions(full.model)
    if bound is not None and section.block_tokens > bound:
        raise DataError(
            f"importance.block_tokens: got {section.block_tokens}, expected at most {bound}, which the model can read"
        )
    records = read_public_text(asset_or_path(section.text, reporter))
    examples = text_blocks(records, full.tokenizer, block_tokens=section.block_tokens)
    return torch.tensor([example.token_ids for example in examples])


def read_public_text(path: Path) -> Sequence[Record]:
    """Reads public text: a ``.txt`` file as one text, anything else as JSON lines.

    Raises:
        DataError: the file cannot be read, or is no UTF-8.
    """
    if path.suffix != ".txt":
        return read_records(path)
    try:
        return (TextRecord(path.read_text(encoding="utf-8")),)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the public text {path} cannot be read as UTF-8: {error}") from error
