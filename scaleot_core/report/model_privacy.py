"""What a run found about model privacy, as values and as the report's section ``model_privacy``."""

from dataclasses import asdict, dataclass
from typing import Any

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure import DisclosedLayer, DisclosureLevel, NewDisclosure
from scaleot_core.model_privacy.floors import Floors
from scaleot_core.model_privacy.healing import HealingPoint
from scaleot_core.model_privacy.recovery import recovered_of
from scaleot_core.model_privacy.strong_emulator import StrongEmulator


@dataclass(frozen=True)
class Gap:
    """How much better the plug-in is than what a data owner can run; above 0 where it is better."""

    accuracy: float | None
    """Plug-in's less the other's, from -1 to 1; none where the task has no accuracy."""
    loss: float
    """The other's less the plug-in's, in nats per target token."""
    f1: float | None = None
    """As the accuracy; none where the task has no F1."""


def gap_between(plug_in: Metrics, other: Metrics) -> Gap:
    """Returns the gap between the plug-in and a model that a data owner can run."""
    return Gap(
        accuracy=_lead(plug_in.accuracy, other.accuracy),
        loss=other.loss - plug_in.loss,
        f1=_lead(plug_in.f1, other.f1),
    )


@dataclass(frozen=True)
class ReportedDisclosure:
    """What has left of the full model with this emulator and the ones before it."""

    is_recorded: bool
    """Whether the owner keeps a record; without one this emulator stands alone."""
    emulators: int
    """That have left, this one included."""
    verbatim_share: float
    """Share of the full model's parameters that are out unchanged."""
    layers: tuple[DisclosedLayer, ...]
    new: tuple[NewDisclosure, ...]
    """Layers of which this emulator reveals more than the ones before it; none if it is the first."""

    def count(self, level: DisclosureLevel) -> int:
        """Returns how many layers are out at this level."""
        return sum(layer.level is level for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "is_recorded": self.is_recorded,
            "emulators": self.emulators,
            "verbatim_share": self.verbatim_share,
            "layers": [{**asdict(layer), "level": layer.level.value} for layer in self.layers],
            "new_layers": [one.after.index for one in self.new],
        }


@dataclass(frozen=True)
class NotMeasured:
    """Stands for an attack that the run file has and that could not be run."""

    reason: str


@dataclass(frozen=True)
class ReportedAttacks:
    """What attacks on an emulator reached, and the floors under them; an attack that was switched off is none."""

    floors: Floors
    strong_emulator: StrongEmulator | NotMeasured | None
    healing: tuple[HealingPoint, ...] | NotMeasured | None

    def to_json(self, plug_in: Metrics | None = None) -> dict[str, Any]:
        """Returns plain JSON values, null for what was not measured, with the reason if it could not be.

        Where there is a plug-in to compare with, a tuned attack has its gap to it and what it has ``recovered`` of it.
        """
        majority, strong, healing = self.floors.majority, self.strong_emulator, self.healing
        return {
            "floors": {
                "majority": None if majority is None else asdict(majority),
                "random_initialisation": self.floors.random_initialisation.to_json(),
            },
            "strong_emulator": self._tuned_to_json(strong, plug_in) if isinstance(strong, StrongEmulator) else None,
            "healing": [self._point_to_json(one, plug_in) for one in healing] if isinstance(healing, tuple) else None,
            "not_measured": {
                name: attack.reason
                for name, attack in (("strong_emulator", strong), ("healing", healing))
                if isinstance(attack, NotMeasured)
            },
        }

    def _tuned_to_json(self, tuned: StrongEmulator, plug_in: Metrics | None) -> dict[str, Any]:
        compared = {}
        if plug_in is not None:
            compared = {
                "gap": asdict(gap_between(plug_in, tuned.metrics)),
                "recovered": asdict(recovered_of(plug_in, tuned.metrics, self.floors)),
            }
        return {"steps": len(tuned.losses), "metrics": tuned.metrics.to_json(), **compared}

    def _point_to_json(self, point: HealingPoint, plug_in: Metrics | None) -> dict[str, Any]:
        return {
            "steps": point.steps,
            "public_tokens": point.public_tokens,
            "public_loss": point.public_loss,
            "zero_shot": point.zero_shot.to_json(),
            "recovered": asdict(point.recovered),
            "tuned": None if point.tuned is None else self._tuned_to_json(point.tuned, plug_in),
        }


@dataclass(frozen=True)
class ReportedModelPrivacy:
    """Attacks and disclosure."""

    attacks: ReportedAttacks
    disclosure: ReportedDisclosure
    seconds: float
    """What measuring all this took."""

    def to_json(self, *, verbatim_share: float, plug_in: Metrics, emulator_tuned: Metrics) -> dict[str, Any]:
        """Returns plain JSON values, the gaps to the plug-in among them; null for what was not measured."""
        return {
            "verbatim_share": verbatim_share,
            "gap": asdict(gap_between(plug_in, emulator_tuned)),
            **self.attacks.to_json(plug_in),
            "disclosure": self.disclosure.to_json(),
            "seconds": self.seconds,
        }


def _lead(plug_in: float | None, other: float | None) -> float | None:
    return None if plug_in is None or other is None else plug_in - other
