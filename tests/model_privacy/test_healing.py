import pytest
import torch

from scaleot_core.compression.builders import BUILDERS, PublicKnowledge
from scaleot_core.compression.emulator import Emulator
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.compression.plan import LayerRole
from scaleot_core.errors import ModelError
from scaleot_core.model_privacy.floors import measure_floors, random_initialisation
from scaleot_core.model_privacy.healing import HealingPoint, HealingSettings, heal_emulator
from scaleot_core.model_privacy.recovery import Recovery, Yardstick
from scaleot_core.model_privacy.strong_emulator import PrivateTuning, tune_whole_emulator
from scaleot_core.models.loading import LanguageModel
from scaleot_core.training.data import Record, encode_for_training
from scaleot_core.training.local import LocalTraining
from tests.compression.builders.requests import emulator_request
from tests.model_privacy.taught import CHOICES, COMPLETIONS, SILENT, Taught
from tests.support.importance import importance_settings

ADAPTER, KEPT, REPLACED, DROPPED = LayerRole.ADAPTER, LayerRole.KEPT, LayerRole.REPLACED, LayerRole.DROPPED
SETTINGS = HealingSettings(budget_steps=(0, 10, 20), batch_size=8, learning_rate=2e-3)
TASKS = pytest.mark.parametrize("records", [CHOICES, COMPLETIONS], ids=["choice", "generative"])


def heal(
    taught: Taught, emulator: Emulator, records: tuple[Record, ...], settings: HealingSettings = SETTINGS
) -> tuple[HealingPoint, ...]:
    floors = measure_floors(taught.full, records, seed=0, reporter=SILENT)
    yardstick = Yardstick(records, taught.measure(taught.full, records), floors)
    return heal_emulator(emulator, taught.public_blocks, settings, yardstick, private=None, seed=0, reporter=SILENT)


def with_nothing_removed(taught: Taught, full: LanguageModel) -> Emulator:
    """ScaleOT's emulator at alpha = 0 and beta = 0, the adapter at both ends."""
    importance = ImportanceReport((0.0,) * 4, {}, importance_settings(), (), ())
    request = emulator_request(adapter=frozenset({0, 3}), replaced_layer_share=0.0, removed_rank_share=0.0)
    public = PublicKnowledge(lambda: taught.public_blocks, lambda: importance)
    return BUILDERS["scaleot"](full, request, public, reporter=SILENT)


@TASKS
def test_an_emulator_with_nothing_removed_gives_back_the_full_model(
    taught: Taught, records: tuple[Record, ...]
) -> None:
    points = heal(taught, with_nothing_removed(taught, taught.full), records)
    accuracy = 1.0 if records is CHOICES else None
    assert points[0].zero_shot == taught.measure(taught.full, records)
    assert points[0].recovered == Recovery(accuracy, 1.0)
    assert all(point.recovered.loss and point.recovered.loss > 0.98 for point in points)
    assert len({point.zero_shot.loss for point in points}) == 3  # it was healed, and not made worse


@TASKS
def test_an_emulator_of_random_weights_does_not(taught: Taught, records: tuple[Record, ...]) -> None:
    points = heal(taught, with_nothing_removed(taught, random_initialisation(taught.full, seed=1)), records)
    for point in points:
        assert point.recovered.loss is not None and point.recovered.loss < 0.25
        if records is CHOICES:
            assert point.recovered.accuracy is not None and point.recovered.accuracy < 0.25
    assert points[2].zero_shot.loss < points[1].zero_shot.loss < points[0].zero_shot.loss  # it was healed, in vain


@TASKS
def test_only_healing_recovers_the_score_of_damaged_layers_without_an_adapter(
    taught: Taught, records: tuple[Record, ...]
) -> None:
    """What layers 1 and 2 add has its sign turned."""
    emulator = with_nothing_removed(taught, taught.full)
    for index in (1, 2):
        layer = emulator.layout.layer(emulator.model, index)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            layer.get_submodule(name).weight.neg_()
    damaged, _, healed = heal(taught, emulator, records)
    assert damaged.recovered.loss is not None and damaged.recovered.loss < 0.5
    assert healed.recovered.loss is not None and healed.recovered.loss > 0.95
    if records is CHOICES:
        assert damaged.recovered.accuracy is not None and damaged.recovered.accuracy < 0.25
        assert healed.recovered.accuracy == 1.0


@TASKS
@pytest.mark.parametrize("role", [REPLACED, DROPPED])
def test_layers_that_were_left_out_are_healed_measurably(
    taught: Taught, records: tuple[Record, ...], role: LayerRole
) -> None:
    points = heal(taught, taught.emulator(role, role, role, ADAPTER), records)
    assert points[2].zero_shot.loss < 0.7 * points[0].zero_shot.loss
    shares = [point.recovered.loss or 0.0 for point in points]
    assert shares[0] < shares[1] < shares[2] <= 1.0
    if records is CHOICES:
        accuracies = [point.recovered.accuracy for point in points]
        assert accuracies[0] is not None and accuracies[0] < 0.25
        assert accuracies[2] is not None and accuracies[2] > 0.75


def test_low_rank_attention_is_healed_measurably(taught: Taught) -> None:
    points = heal(taught, taught.emulator(KEPT, KEPT, KEPT, ADAPTER, kept_rank_share=0.0), CHOICES)
    assert points[1].zero_shot.loss < 0.7 * points[0].zero_shot.loss


def test_budgets_are_cumulative_and_one_run_equals_two(taught: Taught) -> None:
    emulator = taught.emulator(REPLACED, REPLACED, REPLACED, ADAPTER)
    points = heal(taught, emulator, CHOICES)
    assert [(point.steps, point.public_loss is None) for point in points] == [(0, True), (10, False), (20, False)]
    [straight] = heal(taught, emulator, CHOICES, HealingSettings((20,), 8, 2e-3))
    assert straight.zero_shot == points[2].zero_shot
    halves = [point.public_loss or 0.0 for point in points[1:]]
    assert straight.public_loss == pytest.approx(sum(halves) / 2)
    assert straight.public_tokens == points[2].public_tokens


def test_public_tokens_count_what_went_through_and_a_short_batch_as_short(taught: Taught) -> None:
    blocks, tokens = taught.public_blocks.shape
    assert blocks < 8  # so that every epoch is one short batch
    points = heal(taught, taught.emulator(REPLACED, KEPT, KEPT, ADAPTER), CHOICES, HealingSettings((0, 1, 3), 8, 2e-3))
    assert [point.public_tokens for point in points] == [0, blocks * tokens, 3 * blocks * tokens]


def test_the_public_loss_is_next_token_cross_entropy_on_the_blocks(taught: Taught) -> None:
    emulator = taught.emulator(REPLACED, KEPT, KEPT, ADAPTER)
    [point] = heal(taught, emulator, CHOICES, HealingSettings((1,), 100, 2e-3))
    with torch.no_grad():
        expected = emulator.model(taught.public_blocks, labels=taught.public_blocks).loss
    assert point.public_loss == pytest.approx(float(expected), rel=1e-5)


def test_with_private_text_every_point_is_tuned_whole_and_budget_zero_is_the_strong_emulator(taught: Taught) -> None:
    emulator = taught.emulator(REPLACED, KEPT, REPLACED, ADAPTER)
    before = {name: tensor.clone() for name, tensor in emulator.model.named_parameters()}
    examples = encode_for_training(CHOICES, taught.full.tokenizer, max_tokens=48)
    private = PrivateTuning(examples, LocalTraining(steps=5, batch_size=8, learning_rate=1e-3))
    floors = measure_floors(taught.full, CHOICES, seed=0, reporter=SILENT)
    yardstick = Yardstick(CHOICES, taught.measure(taught.full, CHOICES), floors)
    settings = HealingSettings((0, 10), 8, 2e-3)
    tuned = heal_emulator(emulator, taught.public_blocks, settings, yardstick, private=private, seed=0, reporter=SILENT)
    assert tuned[0].tuned == tune_whole_emulator(emulator, private, CHOICES, seed=0, reporter=SILENT)
    assert tuned[1].tuned is not None and tuned[0].tuned is not None
    assert tuned[1].tuned.losses[0] < tuned[0].tuned.losses[0]
    plain = heal(taught, emulator, CHOICES, settings)
    assert [point.zero_shot for point in plain] == [point.zero_shot for point in tuned]  # tuning took a copy
    assert all(torch.equal(tensor, before[name]) for name, tensor in emulator.model.named_parameters())


@pytest.mark.parametrize("budgets", [(), (-1,), (5, 5), (10, 0)])
def test_budgets_that_do_not_ascend_are_refused(taught: Taught, budgets: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="ascending"):
        heal(taught, taught.emulator(ADAPTER, KEPT, KEPT, KEPT), CHOICES, HealingSettings(budgets, 8, 1e-3))
