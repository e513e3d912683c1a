"""The layer report on a terminal."""

import math

from rich import box
from rich.console import Console
from rich.table import Table

from fl_server.layer_report import LayerReport
from scaleot_core.compression.rank_correlation import ranks

TITLES = {
    "importance": "importance",
    "leave_one_out": "leave-one-out",
    "angular_change": "angular",
    "cka": "1 - CKA",
    "random": "random",
}
"""By measure: how the tables call it."""


def print_layers(report: LayerReport, console: Console) -> None:
    """Prints one row per layer, then how far the measures agree on the layers' order, then what each cost."""
    for table in (_scores(report), _correlations(report), _costs(report)):
        console.print(table)


def _table(first: str, *others: str, caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _scores(report: LayerReport) -> Table:
    tokens = report.num_blocks * report.block_tokens
    caption = f"score and rank, 1 is the most important; controls on {tokens} tokens of {report.public_text}"
    table = _table("layer", *(TITLES[measure] for measure in report.scores), caption=caption)
    columns = [
        [f"{score:.3g} {rank:>3g}" for score, rank in zip(scores, ranks(scores), strict=True)]
        for scores in report.scores.values()
    ]
    for index, cells in enumerate(zip(*columns, strict=True)):
        table.add_row(str(index), *cells)
    return table


def _correlations(report: LayerReport) -> Table:
    chance = 1.96 / math.sqrt(max(len(report.scores["importance"]) - 1, 1))
    caption = f"Spearman's rank correlation; a random order passes ±{min(chance, 1):.2f} one time in twenty"
    table = _table("agreement", *(TITLES[measure] for measure in report.scores), caption=caption)
    for first in report.scores:
        values = (report.correlation(first, second) for second in report.scores)
        table.add_row(TITLES[first], *("undefined" if value is None else f"{value:.2f}" for value in values))
    return table


def _costs(report: LayerReport) -> Table:
    table = _table("cost", "seconds", "tokens read", caption="importance also trains on its tokens")
    for cost in report.costs:
        seconds = "not measured" if cost.seconds is None else f"{cost.seconds:.1f}"
        table.add_row(" and ".join(TITLES[measure] for measure in cost.measures), seconds, f"{cost.tokens:,}")
    return table
