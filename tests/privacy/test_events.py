"""Events: exact in JSON, merged by kind, impossible ones refused."""

import json
import math

import pytest

from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.privacy.events import MalformedEventError, PrivacyEvent, merge_events

EVENT = PrivacyEvent("gaussian", {"noise_multiplier": 1.1}, 0.1, 3)


def test_an_event_comes_back_from_canonical_json_exactly() -> None:
    whole = PrivacyEvent("laplace", {"scale": 2.0, "dimension": 1.0}, 1.0, 7)
    odd = PrivacyEvent("gaussian", {"noise_multiplier": 0.1 + 0.2}, 1 / 3, 2**40)
    for event in (EVENT, whole, odd):
        assert PrivacyEvent.from_json(json.loads(canonical_json(event.to_json()))) == event


def test_equal_events_merge_by_adding_counts() -> None:
    other = PrivacyEvent("gaussian", {"noise_multiplier": 1.1}, 0.2, 3)
    assert merge_events([EVENT, other, EVENT.times(2)]) == (EVENT.times(3), other)


def test_an_event_cannot_be_changed_and_is_hashable() -> None:
    with pytest.raises(TypeError):
        EVENT.parameters["noise_multiplier"] = 9.0  # type: ignore[index]
    given = {"noise_multiplier": 1.0}
    event = PrivacyEvent("gaussian", given, 1.0, 1)
    given["noise_multiplier"] = 5.0
    assert event.parameters["noise_multiplier"] == 1.0
    assert {event: 1}[PrivacyEvent("gaussian", {"noise_multiplier": 1.0}, 1.0, 1)] == 1


@pytest.mark.parametrize(
    ("noise", "parameters", "sample_rate", "count", "fault"),
    [
        ("cauchy", {}, 1.0, 1, "expected one of gaussian, discrete-gaussian, laplace, staircase, lmo; got 'cauchy'"),
        ("gaussian", {}, 1.0, 1, "expected the parameters"),
        ("gaussian", {"noise_multiplier": 1.0, "seed": 1.0}, 1.0, 1, "expected the parameters"),
        ("gaussian", {"noise_multiplier": -1.0}, 1.0, 1, "noise_multiplier"),
        ("gaussian", {"noise_multiplier": math.nan}, 1.0, 1, "noise_multiplier"),
        ("gaussian", {"noise_multiplier": 1.0}, 0.0, 1, "sample_rate"),
        ("gaussian", {"noise_multiplier": 1.0}, 1.5, 1, "sample_rate"),
        ("gaussian", {"noise_multiplier": 1.0}, 1.0, 0, "count"),
        ("gaussian", {"noise_multiplier": 1.0}, 1.0, 2**53, "count"),
        ("laplace", {"scale": 1.0, "dimension": 1.5}, 1.0, 1, "dimension"),
    ],
)
def test_an_impossible_event_is_refused_with_the_field_at_fault(
    noise: str, parameters: dict[str, float], sample_rate: float, count: int, fault: str
) -> None:
    with pytest.raises(MalformedEventError, match=fault):
        PrivacyEvent(noise, parameters, sample_rate, count)


@pytest.mark.parametrize("field", ["noise", "parameters", "sample_rate", "count"])
@pytest.mark.parametrize("value", [None, True, "1", [], -1, 10**400])
def test_json_that_is_no_event_raises_only_our_error(field: str, value: object) -> None:
    with pytest.raises(MalformedEventError):
        PrivacyEvent.from_json({**EVENT.to_json(), field: value})


def test_json_with_a_field_too_many_or_too_few_is_refused() -> None:
    for value in ({**EVENT.to_json(), "more": 1}, {"noise": "gaussian"}, [], None):
        with pytest.raises(MalformedEventError, match="expected an object"):
            PrivacyEvent.from_json(value)
