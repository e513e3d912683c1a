"""A report as a run of four clients would fill it, with figures made up."""

from dataclasses import replace

from scaleot_core.compression.plan import LayerRole
from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure import DisclosedLayer, DisclosureLevel, NewDisclosure
from scaleot_core.model_privacy.floors import Floors, MajorityFloor
from scaleot_core.model_privacy.healing import HealingPoint
from scaleot_core.model_privacy.recovery import Recovery
from scaleot_core.model_privacy.strong_emulator import StrongEmulator
from scaleot_core.report import (
    Report,
    ReportedAttacks,
    ReportedBundle,
    ReportedDisclosure,
    ReportedEmulator,
    ReportedFederation,
    ReportedLayer,
    ReportedModelPrivacy,
    ReportedPrivacy,
    ReportedRound,
    Results,
    StageSeconds,
)

ROLES = [
    LayerRole.ADAPTER if i in (6, 12, 18, 24) else LayerRole.REPLACED if i in (3, 9, 14, 20, 21, 27) else LayerRole.KEPT
    for i in range(30)
]


def choice_metrics(loss: float, accuracy: float) -> Metrics:
    """Returns figures of 300 records, of which the first are answered right."""
    right = round(300 * accuracy)
    by_record = (1.0,) * right + (0.0,) * (300 - right)
    return Metrics(loss=loss, examples=300, accuracy=accuracy, accuracy_norm=accuracy - 0.01, by_record=by_record)


def answer_metrics(loss: float, f1: float) -> Metrics:
    """Returns figures of generated answers, none of which is exactly one that counts as right."""
    return Metrics(loss=loss, examples=300, accuracy=0.0, f1=f1, by_record=(f1 + 0.01, f1 - 0.01) * 150)


LAYERS = tuple(
    DisclosedLayer(i, DisclosureLevel.STAND_IN)
    if role is LayerRole.REPLACED
    else DisclosedLayer(i, DisclosureLevel.EXACT, 1.0, 1.0)
    for i, role in enumerate(ROLES)
)


def attacked_model_privacy() -> ReportedModelPrivacy:
    """Returns the section of a run whose attacks were measured, the second one with this model."""
    tuned = StrongEmulator(choice_metrics(0.401, 0.817), (0.7, 0.5, 0.4))
    before = DisclosedLayer(18, DisclosureLevel.NOTHING)
    healing = (
        HealingPoint(0, 0, None, choice_metrics(0.722, 0.493), Recovery(-0.7, 0.987), tuned),
        HealingPoint(50, 25_600, 2.9, choice_metrics(0.700, 0.540), Recovery(0.5, 0.995), tuned),
    )
    return ReportedModelPrivacy(
        ReportedAttacks(quiet_model_privacy().attacks.floors, strong_emulator=tuned, healing=healing),
        disclosure=ReportedDisclosure(True, 2, 0.731, LAYERS, (NewDisclosure(before, LAYERS[18]),)),
        seconds=41.2,
    )


def quiet_model_privacy() -> ReportedModelPrivacy:
    """Returns the section of a run that measures no more than it must."""
    floors = Floors(MajorityFloor(1, 0.513, 300), choice_metrics(10.812, 0.487))
    disclosure = ReportedDisclosure(False, 1, 0.688, LAYERS, ())
    return ReportedModelPrivacy(ReportedAttacks(floors, None, None), disclosure, 9.1)


def answered_report() -> Report:
    """Returns a whole report of a task of generated answers, its attacks measured."""
    tuned = StrongEmulator(answer_metrics(3.1, 0.13), (3.5, 3.3, 3.2))
    healing = (HealingPoint(50, 25_600, 2.9, answer_metrics(4.0, 0.05), Recovery(None, 0.9, 0.25), tuned),)
    floors = Floors(None, answer_metrics(10.812, 0.01))
    return replace(
        example_report(),
        results=Results(
            zero_shot=answer_metrics(3.6, 0.17),
            emulator_zero_shot=answer_metrics(4.1, 0.04),
            emulator_tuned=answer_metrics(3.4, 0.11),
            plug_in=answer_metrics(2.9, 0.27),
            full_fine_tuning=answer_metrics(2.8, 0.29),
        ),
        model_privacy=replace(quiet_model_privacy(), attacks=ReportedAttacks(floors, tuned, healing)),
    )


def example_report() -> Report:
    """Returns a whole report of a multiple-choice task."""
    return Report(
        results=Results(
            zero_shot=choice_metrics(0.681, 0.567),
            emulator_zero_shot=choice_metrics(0.722, 0.493),
            emulator_tuned=choice_metrics(0.455, 0.783),
            plug_in=choice_metrics(0.331, 0.857),
            full_fine_tuning=choice_metrics(0.290, 0.887),
        ),
        emulator=ReportedEmulator(
            builder="scaleot",
            parameters=101_234_567,
            size_bytes=202_469_134,
            size_share=0.752,
            verbatim_share=0.688,
            trained_share=0.012,
            layers=tuple(
                ReportedLayer(i, role, 115 if role is LayerRole.KEPT else 64 if role is LayerRole.REPLACED else None)
                for i, role in enumerate(ROLES)
            ),
            importance=tuple(((i * 7) % 30) / 20 - 0.6 for i in range(30)),
        ),
        federation=ReportedFederation(
            rounds=(
                ReportedRound(1, ("clinic-1", "clinic-2", "clinic-3", "clinic-4"), {}, 0.702, 31.2),
                ReportedRound(2, ("clinic-1", "clinic-2", "clinic-4"), {"clinic-3": "E_NORM"}, 0.481, 30.9),
                ReportedRound(3, ("clinic-1", "clinic-2", "clinic-3", "clinic-4"), {}, 0.402, 31.0),
            ),
            bytes_down_per_client=189_000_000,
            bytes_up_per_client=741_000,
        ),
        bundle=ReportedBundle(187_654_321, "ab" * 32, ("clinic-1", "clinic-2", "clinic-3", "clinic-4")),
        privacy=ReportedPrivacy("none", None, None, None, ()),
        model_privacy=quiet_model_privacy(),
        seconds=StageSeconds(2.1, 120.4, 8.2, 1.4, 0.9, 93.1, 0.2, 70.5, 301.7),
        peak_memory_bytes=2_345_678_901,
        config={"seed": 0, "model": {"source": "smollm2-135m", "dtype": "bfloat16"}, "federation": {"clients": 4}},
        versions={"scaleot": "0.1.0", "torch": "2.13.0"},
    )
