"""The report on a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from scaleot_core.report.document import MODEL_TITLES, Report
from scaleot_core.report.model_privacy_phrases import (
    disclosure_line,
    disclosure_warning,
    floors_line,
    gap_line,
    healing_line,
    strong_emulator_line,
)
from scaleot_core.report.phrases import (
    RUNNERS,
    columns,
    counted,
    emulator_line,
    figure,
    findings,
    megabytes,
    privacy_line,
    refusals_line,
    seconds_line,
    traffic_line,
)


def print_table(report: Report, console: Console) -> None:
    """Prints the five models, one a row, and below them what the emulator, the rounds and the run cost."""
    console.print(_results(report))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column()
    for title, text in _facts(report):
        facts.add_row(title, text)
    console.print(facts, highlight=False)


def _results(report: Report) -> Table:
    measured = report.results.measured()
    examples = counted(report.results.zero_shot.examples, "held-out example")
    table = Table(box=box.SIMPLE_HEAD, caption=f"{examples}; ± one standard error", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("who can run it")
    titles = columns(report)
    for title in titles.values():
        table.add_column(title, justify="right", no_wrap=True)
    for key, metrics in measured.items():
        style = "bold" if key == "plug_in" else None
        table.add_row(MODEL_TITLES[key], RUNNERS[key], *(figure(metrics, name) for name in titles), style=style)
    return table


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [("findings" if position == 0 else "", finding) for position, finding in enumerate(findings(report))]
    facts += [("emulator", emulator_line(report)), ("each client", traffic_line(report))]
    if refused := refusals_line(report):
        facts.append(("refused", refused))
    facts += [
        ("privacy", privacy_line(report)),
        ("model privacy", gap_line(report)),
        ("  floors", floors_line(report)),
        ("  attacks", f"strong emulator: {strong_emulator_line(report)}"),
        ("", f"healing: {healing_line(report)}"),
        ("  disclosure", disclosure_line(report)),
    ]
    if warning := disclosure_warning(report):
        facts.append(("  warning", warning))
    return [
        *facts,
        ("seconds", seconds_line(report)),
        ("peak memory", megabytes(report.peak_memory_bytes)),
    ]
