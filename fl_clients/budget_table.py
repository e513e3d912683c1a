"""A data owner's budget on a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from fl_clients.own_ledger import scope_of_ledger
from scaleot_core.figures import counted_rounds, no_less, no_more
from scaleot_core.privacy.ledger_summary import LedgerRelease, LedgerSummary


def print_budget(summary: LedgerSummary, console: Console) -> None:
    """Prints what the figures are about, the figures, and one row for each round that was charged."""
    console.print(_figures(summary))
    if summary.releases:
        console.print(_releases(summary.releases))


def _figures(summary: LedgerSummary) -> Table:
    terms, scope = summary.terms, scope_of_ledger(summary)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "unit of privacy": scope.unit,
        "neighbouring data sets": scope.neighbouring,
        "sampling": scope.sampling,
        "delta": f"{terms.delta:g}",
        "records": f"{terms.data_set.records}",
        "budget": f"epsilon {summary.budget_epsilon:g}",
        "spent": f"epsilon {no_less(summary.spent_epsilon)}",
        "left": f"epsilon {no_more(summary.left_epsilon)}",
        "rounds that still fit": _rounds(summary.rounds_that_fit),
        "interrupted writes": ", ".join(f"line {line}" for line in summary.recovered_lines) or "none",
        "head": summary.head,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _releases(releases: tuple[LedgerRelease, ...]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="reserved counts as committed: its noise may have been drawn. stddev: over the bound of one unit",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    for title in ("line", "time", "run", "round", "status", "noise", "stddev", "rate", "releases"):
        table.add_column(title, justify="left" if title in ("time", "run", "status", "noise") else "right")
    for release in releases:
        for event in release.events:
            table.add_row(
                str(release.line),
                release.time.isoformat(timespec="seconds"),
                release.run,
                str(release.round_number),
                release.status.value,
                event.noise,
                f"{event.law().stddev():.4g}",
                f"{event.sample_rate:.4g}",
                str(event.count),
            )
    return table


def _rounds(rounds_that_fit: int | None) -> str:
    if rounds_that_fit is None:
        return "unknown before the first"
    return f"{counted_rounds(rounds_that_fit)} like the last one"
