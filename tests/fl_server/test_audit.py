"""``scaleot audit``, as it is typed."""

import io
import json
from importlib.metadata import EntryPoint

import pytest

from fl_server.audit import audit
from scaleot_core.cli import run
from scaleot_core.config import read_run_file
from scaleot_core.progress import LogReporter, SilentReporter

AUDIT = [EntryPoint("audit", "fl_server.commands:audit", "scaleot.verbs")]
SMALL = ("--canaries", "60", "--set", "privacy.epsilon=1.0", "--set")


def test_the_audit_of_a_right_mechanism_prints_a_sentence_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", *SMALL, "privacy.mechanism=dp-sgd"], AUDIT) == 0
    printed = capsys.readouterr().out
    assert "12 guesses about 60 canaries" in printed and "claimed is 1" in printed and "proves nothing" in printed


@pytest.mark.parametrize("mechanism", ["dpzero", "lmo-dp"])
def test_the_audit_prints_one_json_document_when_asked(mechanism: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"privacy.mechanism={mechanism}", "--set", "privacy.num_directions=1", "--confidence", "0.99", "--json"]
    assert run(["audit", *SMALL, *changes], AUDIT) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mechanism"], found["canaries"], found["confidence"]) == (mechanism, 60, 0.99)
    assert 0.99 < found["claimed_epsilon"] <= 1.0 and found["lower_bound"] <= 1.0
    assert found["refutes_the_claim"] is False and found["noise_repeats"] is False


def test_a_run_file_without_a_mechanism_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit"], AUDIT) == 2
    assert "there is no claim to audit" in capsys.readouterr().err


def test_a_mechanism_for_whole_data_sets_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", *SMALL, "privacy.mechanism=update-gaussian"], AUDIT) == 2
    assert "whole data set" in capsys.readouterr().err


def test_every_canary_is_in_every_step_and_the_whole_budget_in_one_round() -> None:
    settings = read_run_file(None, ["privacy.mechanism=dp-sgd", "privacy.epsilon=2.0", "federation.rounds=50"])
    found = audit(settings, canaries=20, confidence=0.95, reporter=SilentReporter())
    assert 1.99 < found.claimed_epsilon <= 2.0


def test_a_run_files_own_noise_is_the_one_that_is_audited() -> None:
    stream = io.StringIO()
    settings = read_run_file(None, ["privacy.mechanism=dp-sgd", "privacy.epsilon=0.5", "privacy.noise_multiplier=3.0"])
    found = audit(settings, canaries=20, confidence=0.95, reporter=LogReporter(stream))
    assert "noise 3 times the bound" in stream.getvalue()
    assert found.claimed_epsilon > 0.5


def test_a_refuted_claim_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build under audit forgets its noise."""
    monkeypatch.setattr("scaleot_core.privacy.dp_sgd.add_gaussian", lambda sums, *_: sums)
    assert run(["audit", *SMALL, "privacy.mechanism=dp-sgd"], AUDIT) == 3
    assert "That refutes the claim." in capsys.readouterr().out
