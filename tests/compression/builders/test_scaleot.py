"""ScaleOT and its own ablation without harmonizers: one choice of layers by hand, two things done with it."""

import pytest
import torch

from scaleot_core.compression.builders import BUILDERS, PublicKnowledge
from scaleot_core.compression.harmonizer import DroppedLayer, Harmonizer
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import LayerRole
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from tests.compression.builders.requests import emulator_request, random_blocks
from tests.support.importance import importance_settings
from tests.support.tiny_models import tiny_language_model

SCORES = (9.0, 2.0, -1.0, 5.0, -3.0, -9.0)
"""Layers 0 and 5 carry the adapter; of 1 to 4 the half with the lowest scores is 4 and 2, whatever 5 scores."""
RANK = 3


@pytest.fixture(scope="module")
def full() -> LanguageModel:
    return tiny_language_model("llama")


@pytest.fixture(scope="module")
def known(full: LanguageModel) -> PublicKnowledge:
    hidden = full.layout.hidden_size
    generator = torch.Generator().manual_seed(0)
    harmonizers = {}
    for index in range(full.layout.num_layers):
        harmonizers[f"{index}.down.weight"] = torch.randn(RANK, hidden, generator=generator)
        harmonizers[f"{index}.up.weight"] = torch.randn(hidden, RANK, generator=generator)
    report = ImportanceReport(SCORES, harmonizers, importance_settings(harmonizer_rank=RANK), (), ())
    return PublicKnowledge(random_blocks, lambda: report)


def test_scaleot_puts_the_learnt_harmonizers_of_the_least_important_layers_in_their_places(
    full: LanguageModel, known: PublicKnowledge
) -> None:
    emulator = BUILDERS["scaleot"](full, emulator_request(removed_rank_share=0.5), known, reporter=SilentReporter())
    adapter, kept, replaced = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.REPLACED
    assert [layer.role for layer in emulator.plan.layers] == [adapter, kept, replaced, kept, replaced, adapter]
    assert [layer.kept_rank_share for layer in emulator.plan.layers] == [1.0, 0.5, 1.0, 0.5, 1.0, 1.0]
    for index in (2, 4):
        stand_in = emulator.layout.layer(emulator.model, index)
        assert isinstance(stand_in, Harmonizer)
        assert torch.equal(stand_in.up.weight, known.importance().harmonizers[f"{index}.up.weight"])


def test_importance_drop_leaves_the_same_layers_out_and_the_others_whole(
    full: LanguageModel, known: PublicKnowledge
) -> None:
    request = emulator_request(removed_rank_share=0.5)
    emulator = BUILDERS["importance_drop"](full, request, known, reporter=SilentReporter())
    adapter, kept, dropped = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.DROPPED
    assert [layer.role for layer in emulator.plan.layers] == [adapter, kept, dropped, kept, dropped, adapter]
    assert {layer.kept_rank_share for layer in emulator.plan.layers} == {1.0}
    for index in (2, 4):
        assert isinstance(emulator.layout.layer(emulator.model, index), DroppedLayer)
    for index in (0, 1, 3, 5):
        mine, own = emulator.layout.layer(emulator.model, index), full.layout.layer(full.model, index)
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), own.parameters(), strict=True))
