"""What the accountant is charged with: how often which noise hid which sum of which sample."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

from scaleot_core.bundle.canonical import Json
from scaleot_core.errors import InputError
from scaleot_core.privacy.noise import ScalarNoise, noise_from

EventKind: TypeAlias = tuple[str, tuple[tuple[str, float], ...], float]
"""All of an event but its count: noise, parameters, sample rate."""

MOST_RELEASES: Final = 2**53 - 1
"""The largest integer that canonical JSON can say."""
_FIELDS: Final = frozenset({"noise", "parameters", "sample_rate", "count"})


class MalformedEventError(InputError, ValueError):
    """An event says something impossible; a ``ValueError`` too, so that a schema that holds events names the place."""


@dataclass(frozen=True)
class PrivacyEvent:
    """``count`` releases of a noisy sum over a Poisson sample of the records.

    Neighbouring data sets differ by one record more or less. Each record enters each sum independently with
    probability ``sample_rate``, in (0, 1], and with secret coins. Its term is bounded by 1 in the norm that the noise
    names, before both are scaled by the same public bound; every coordinate has its own fresh noise.

    Raises:
        MalformedEventError: an unknown noise, wrong parameters, or a number out of range.
    """

    noise: str
    """A name of ``NOISES``."""
    parameters: Mapping[str, float]
    """The law's parameters; read-only here."""
    sample_rate: float
    count: int

    def __post_init__(self) -> None:
        parameters = {name: float(value) for name, value in sorted(self.parameters.items())}
        object.__setattr__(self, "parameters", MappingProxyType(parameters))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))
        if not 0 < self.sample_rate <= 1:
            raise MalformedEventError(f"sample_rate: expected a number above 0 and up to 1, got {self.sample_rate}")
        if not 1 <= self.count <= MOST_RELEASES:
            raise MalformedEventError(f"count: expected 1 to 2**53 - 1, got {self.count}")
        self.law()

    def __hash__(self) -> int:
        return hash((self.kind, self.count))

    @property
    def kind(self) -> EventKind:
        """Everything but the count: events of one kind merge."""
        return self.noise, tuple(self.parameters.items()), self.sample_rate

    def law(self) -> ScalarNoise:
        """Returns the law of the noise."""
        try:
            return noise_from(self.noise, self.parameters)
        except InputError as error:
            raise MalformedEventError(str(error)) from error

    def times(self, count: int) -> "PrivacyEvent":
        """Returns the event ``count`` times over."""
        return replace(self, count=self.count * count)

    def to_json(self) -> dict[str, Json]:
        """Returns the event as JSON values; floats come back exactly."""
        return {
            "noise": self.noise,
            "parameters": dict(self.parameters),
            "sample_rate": self.sample_rate,
            "count": self.count,
        }

    @classmethod
    def from_json(cls, value: Json) -> "PrivacyEvent":
        """Returns the event that JSON values say; an event is returned as it is.

        Raises:
            MalformedEventError: they are no event's.
        """
        if isinstance(value, cls):  # built by our own code, on its way into a schema
            return value
        if not isinstance(value, dict) or value.keys() != _FIELDS:
            raise MalformedEventError(f"privacy event: expected an object of {sorted(_FIELDS)}, got another value")
        noise, parameters, count = value["noise"], value["parameters"], value["count"]
        if not isinstance(noise, str) or not isinstance(parameters, dict):
            raise MalformedEventError("privacy event: expected a string as noise and an object as parameters")
        if not isinstance(count, int) or isinstance(count, bool):
            raise MalformedEventError(f"count: expected an integer, got {type(count).__name__}")
        numbers = {name: _read_number(name, number) for name, number in parameters.items()}
        return cls(noise, numbers, _read_number("sample_rate", value["sample_rate"]), count)


def merge_events(events: Iterable[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Returns the events with those of one kind as one, counts added; in the order of first appearance.

    Composition does not know an order (nor whether equal events came together).
    """
    counts: Counter[EventKind] = Counter()
    for event in events:
        counts[event.kind] += event.count
    return tuple(PrivacyEvent(kind[0], dict(kind[1]), kind[2], count) for kind, count in counts.items())


def _read_number(name: str, value: Json) -> float:
    """Returns a float; canonical JSON writes whole ones as integers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedEventError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise MalformedEventError(f"{name}: expected a finite number")
    return number
