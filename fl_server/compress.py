"""The model owner's first stage: load the full model, find what matters in it, build the emulator."""

from collections.abc import Sequence
from pathlib import Path

import torch

from scaleot_core.assets import asset_path, is_asset
from scaleot_core.assets.store import cache_directory
from scaleot_core.compression.emulator import Emulator, build_emulator
from scaleot_core.compression.importance import ImportanceReport, ImportanceSettings, estimate_importance
from scaleot_core.compression.importance_store import (
    SHIPPED_DIRECTORY,
    find_importance,
    importance_digest,
    save_importance,
)
from scaleot_core.compression.plan import AdapterRule, LayerPlan, plan_layers, plan_uniform
from scaleot_core.config import EmulatorSection, ImportanceSection, ModelSection
from scaleot_core.errors import DataError
from scaleot_core.models.loading import LanguageModel, load_model
from scaleot_core.progress import Reporter
from scaleot_core.shapes import TokenBlocks
from scaleot_core.training.data import Record, TextRecord, read_records, text_blocks

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def asset_or_path(source: str, reporter: Reporter) -> Path:
    """Returns where a run file's source lies: an embedded asset is fetched first, once."""
    return asset_path(source, reporter=reporter) if is_asset(source) else Path(source)


def load_full_model(section: ModelSection, reporter: Reporter) -> LanguageModel:
    """Loads the model that the run file names.

    Raises:
        ModelError: it cannot be loaded.
        AssetError: it is an embedded asset and could not be fetched.
    """
    cuda = section.device == "cuda" or (section.device == "auto" and torch.cuda.is_available())
    directory = asset_or_path(section.source, reporter)
    return load_model(directory, dtype=_DTYPES[section.dtype], device=torch.device("cuda" if cuda else "cpu"))


def find_or_estimate_importance(
    full: LanguageModel, section: ImportanceSection, reporter: Reporter
) -> ImportanceReport:
    """Returns the importance report of the model, from the package or the cache if it was computed before.

    Raises:
        DataError: the public text cannot be read or is too short.
        OutputError: the cache cannot be written.
    """
    blocks = public_blocks(full, section, reporter)
    settings = importance_settings(section)
    digest = importance_digest(full.digest, blocks, settings)
    cache = cache_directory() / "importance"
    found = find_importance(digest, (SHIPPED_DIRECTORY, cache))
    if found is None:
        save_importance(estimate_importance(full, blocks, settings, reporter=reporter), cache / digest)
        found = find_importance(digest, (cache,))  # as saved, so that the second run equals the first
    if found is None:
        raise AssertionError("an importance report that was just saved cannot be read")
    return found


def importance_settings(section: ImportanceSection) -> ImportanceSettings:
    """Returns the settings of Dynamic LayerReplace that a run file gives."""
    fields = section.model_dump(exclude={"text", "block_tokens"})
    return ImportanceSettings(**fields)


def public_blocks(full: LanguageModel, section: ImportanceSection, reporter: Reporter) -> TokenBlocks:
    """Returns the public text as token ids (blocks, tokens)."""
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


def plan_emulator(section: EmulatorSection, num_layers: int, scores: Sequence[float] | None) -> LayerPlan:
    """Returns the layer plan that the run file asks for.

    Raises:
        ModelError: more adapter layers than layers, or a rule that needs scores without them.
    """
    rule = AdapterRule(section.adapter_rule)
    if scores is None:
        return plan_uniform(
            num_layers,
            num_adapter_layers=section.num_adapter_layers,
            adapter_rule=rule,
            dropped_layer_share=section.replaced_layer_share,
        )
    return plan_layers(
        scores,
        num_adapter_layers=section.num_adapter_layers,
        adapter_rule=rule,
        replaced_layer_share=section.replaced_layer_share,
        removed_rank_share=section.removed_rank_share,
    )


def build_planned(full: LanguageModel, plan: LayerPlan, importance: ImportanceReport | None) -> Emulator:
    """Builds the emulator of a plan; one without replaced layers needs no importance report."""
    if importance is None:
        return build_emulator(full, plan, {}, harmonizer_rank=1)
    rank = importance.settings.harmonizer_rank
    return build_emulator(full, plan, importance.harmonizers, harmonizer_rank=rank)
