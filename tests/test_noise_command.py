"""The verb ``scaleot noise``: what it prints keeps the budget, and it chooses the least."""

import json
from importlib.metadata import entry_points

import pytest

from scaleot_core.cli import VERBS_GROUP, run
from scaleot_core.privacy import lmo_search
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.events import PrivacyEvent

ONE_RELEASE = ("--epsilon", "1", "--delta", "1e-5", "--sample-rate", "1", "--releases", "1")


def _noise(*arguments: str) -> int:
    return run(["noise", *arguments], entry_points(group=VERBS_GROUP))


def test_every_noise_keeps_the_budget_and_the_least_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert _noise(*ONE_RELEASE, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["noises"]) == {"gaussian", "discrete-gaussian", "laplace", "staircase", "lmo"}
    for name, row in said["noises"].items():
        event = PrivacyEvent(name, row["parameters"], sample_rate=1.0, count=1)
        assert 0.99 < epsilon_of([event], 1e-5) <= 1.0
        assert row["stddev"] == event.law().stddev()
    assert said["least"] == min(said["noises"], key=lambda name: said["noises"][name]["stddev"]) == "staircase"
    assert said["statement"].startswith("(1, 1e-05)-differential privacy of one training record")


def test_the_table_gives_the_same_and_why_a_noise_does_not_suit(capsys: pytest.CaptureFixture[str]) -> None:
    assert _noise(*ONE_RELEASE, "--dimension", "16") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in lines if "1.000" in line]
    assert rows == ["gaussian", "discrete-gaussian"]
    assert sum(line.startswith("unsuitable: noise") for line in lines) == 3
    assert any(line.startswith("least: discrete-gaussian: (1, 1e-05)-differential privacy") for line in lines)


def test_a_search_finds_the_mixture_of_least_noise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixing_much = dict(next(lmo_search.paper_shapes()), gamma_weight=0.9)
    mixing_less = dict(mixing_much, uniform_weight=0.9, gamma_weight=0.1)
    monkeypatch.setattr(lmo_search, "paper_shapes", lambda: iter([mixing_much, mixing_less]))
    assert _noise(*ONE_RELEASE, "--json", "--search-lmo") == 0
    out, err = capsys.readouterr()
    parameters = json.loads(out)["noises"]["lmo"]["parameters"]
    assert parameters.items() >= mixing_less.items()
    assert "lmo search: 2/2" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--sample-rate", "0"), "sample_rate: expected a number above 0 and up to 1, got 0.0"),
        (("--epsilon", "-1"), "epsilon: expected a number above 0"),
        (("--releases", "0"), "expected a count and a dimension of 1 or more"),
        (("--epsilon", "1e-9", "--releases", "1000000"), "releases fit: ask for fewer, or give a larger budget"),
    ],
)
def test_an_impossible_budget_is_an_input_error(
    capsys: pytest.CaptureFixture[str], change: tuple[str, ...], message: str
) -> None:
    assert _noise(*ONE_RELEASE, *change) == 2
    assert message in capsys.readouterr().err
