"""Whatever prints an epsilon names its unit, its neighbouring relation and its sampling, as text and as JSON."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_clients.budget_table import print_budget
from fl_server.privacy import planned_budget, planned_lines, reported_privacy
from scaleot_core.config import read_run_file
from scaleot_core.errors import ScaleOTError
from scaleot_core.noise_table import noise_document, print_noises
from scaleot_core.privacy.accountant import Accountant, epsilon_of
from scaleot_core.privacy.audit import AuditReport
from scaleot_core.privacy.budget import Budget
from scaleot_core.privacy.calibration import NoiseBudget, best_noise, calibrate, check_rounds_fit
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger_summary import LedgerSummary, summarise
from scaleot_core.privacy.units import RECORD_UNIT, scope_of
from scaleot_core.report import Report, ReportedPrivacy, print_table
from scaleot_core.report.comparison import Comparison, summarize
from scaleot_core.report.comparison_markdown import comparison_markdown
from scaleot_core.report.comparison_page import comparison_page
from scaleot_core.report.comparison_table import print_comparison
from scaleot_core.report.page import page
from scaleot_core.run_file import RunFile
from scaleot_core.training.records import CompletionRecord
from tests.support.example_comparison import CONFIG, VERSIONS, example_point
from tests.support.example_report import example_report
from tests.support.ledgers import new_ledger, release

DELTA, RATE = 1e-5, 0.25
EVENT = PrivacyEvent("gaussian", {"noise_multiplier": 20.0}, RATE, 4)
SCOPE = scope_of(RECORD_UNIT, [RATE])
PARTITIONS = [[CompletionRecord(f"question {number}", "answer") for number in range(32)]] * 2


def printed(print_to: Callable[..., None], *values: Any) -> str:
    stream = io.StringIO()
    print_to(*values, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    return stream.getvalue()


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(ScaleOTError) as refusal:
        ask()
    return str(refusal.value)


def private_run() -> RunFile:
    changes = ("privacy.mechanism=dp-sgd", "federation.batch_size=8", "federation.clients=2", f"privacy.delta={DELTA}")
    return read_run_file(None, list(changes))


def audited() -> AuditReport:
    return AuditReport("dp-sgd", 1000, 200, 120, False, 0.3, 0.95, 1.0, DELTA, SCOPE)


def reported() -> Report:
    return replace(example_report(), privacy=ReportedPrivacy("dp-sgd", 3.5, DELTA, SCOPE, ()))


def compared() -> Comparison:
    budget = planned_budget(private_run(), PARTITIONS)
    return summarize([example_point(settings={"privacy.epsilon": 8.0}, budget=budget)], CONFIG, VERSIONS)


def noises() -> tuple[Any, Any]:
    choice = best_noise(NoiseBudget(2.0, DELTA, RATE, count=1))
    return choice, Accountant().statement([choice.event], DELTA)


def charged(directory: Path) -> LedgerSummary:
    place = new_ledger(directory)
    with place.open() as ledger:
        release(ledger, 1, b"update", EVENT)
    return summarise(place.read(), epsilon_of)


def past_the_ledger(directory: Path) -> str:
    place = new_ledger(directory, budget_epsilon=0.1)
    return refused(lambda: Budget(place.read(), epsilon_of).check([EVENT], rounds=1000))


TEXTS: Mapping[str, Callable[[Path], str]] = {
    "statement": lambda _: Accountant().statement([EVENT], DELTA).sentence(),
    "audit": lambda _: audited().sentence(),
    "plan": lambda _: planned_lines(private_run(), PARTITIONS)[0],
    "report table": lambda _: printed(print_table, reported()),
    "report page": lambda _: page(reported()),
    "comparison table": lambda _: printed(print_comparison, compared()),
    "comparison in Markdown": lambda _: comparison_markdown(compared()),
    "comparison page": lambda _: comparison_page(compared(), {}),
    "noises": lambda _: printed(print_noises, *noises()),
    "budget": lambda directory: printed(print_budget, charged(directory)),
    "refused noise": lambda _: refused(lambda: calibrate("gaussian", NoiseBudget(1e-9, DELTA, RATE, 10**6))),
    "refused rounds": lambda _: refused(lambda: check_rounds_fit([EVENT], 10**6, 1.0, DELTA)),
    "refused release": past_the_ledger,
}

DOCUMENTS: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "audit": lambda: audited().to_json(),
    "report": lambda: reported().to_json()["privacy"],
    "comparison": lambda: compared().to_json()["rows"][0]["budgets"][0],
    "noises": lambda: noise_document(*noises()),
}


@pytest.mark.parametrize("output", TEXTS)
def test_a_text_with_an_epsilon_names_unit_neighbours_and_sampling(output: str, tmp_path: Path) -> None:
    text = " ".join(TEXTS[output](tmp_path).split())
    assert "1e-05" in text
    assert all(words in text for words in (SCOPE.unit, SCOPE.neighbouring, SCOPE.sampling)), text


@pytest.mark.parametrize("output", DOCUMENTS)
def test_a_document_with_an_epsilon_has_unit_neighbours_and_sampling_beside_it(output: str) -> None:
    document = DOCUMENTS[output]()
    assert document["delta"] == DELTA and any("epsilon" in name for name in document)
    assert {name: document[name] for name in ("unit", "neighbouring", "sampling")} == SCOPE.to_json()


def test_a_run_without_a_mechanism_has_the_keys_and_nothing_to_say() -> None:
    document = reported_privacy(read_run_file(None, []), ()).to_json()
    assert [document[name] for name in ("epsilon_spent", "delta", "unit", "neighbouring", "sampling")] == [None] * 5
