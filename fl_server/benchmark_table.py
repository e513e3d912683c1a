"""The benchmark as a table on the terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from fl_server.benchmark_measure import StepCost

_COLUMNS = ("s / step", "tokens / s", "share of peak", "peak MiB", "training MiB", "trained parameters", "sent bytes")


def print_costs(costs: Mapping[str, StepCost], console: Console) -> None:
    """Prints one row for each case, and below what the share is of."""
    table = Table("case")
    compiled = any(cost.compile_seconds for cost in costs.values())
    for column in (*_COLUMNS, "compile s") if compiled else _COLUMNS:
        table.add_column(column, justify="right")
    for case, cost in costs.items():
        table.add_row(
            case,
            f"{cost.seconds_per_step:.3g}",
            f"{cost.tokens_per_second:.0f}",
            f"{cost.share_of_peak:.0%}",
            f"{cost.peak_memory_mebibytes:.0f}",
            f"{cost.training_memory_mebibytes:.0f}",
            f"{cost.trained_parameters:,}",
            f"{cost.sent_bytes:,}",
            *([f"{cost.compile_seconds:.0f}"] if compiled else []),
        )
    console.print(table)
    best = max((cost.peak_flops_per_second for cost in costs.values()), default=0.0)
    console.print(f"peak: {best / 1e9:,.0f} GFLOP/s at best, measured on large matrix products of the model's type")
