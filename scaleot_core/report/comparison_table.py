"""A comparison on a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaleot_core.report.comparison import FLOOR_TITLES, ComparedRow, Comparison, best_row, floors
from scaleot_core.report.comparison_phrases import (
    PLUG_IN_COLUMN,
    TEXT_COLUMNS,
    failure_lines,
    finding,
    floor_text,
    notes,
    origin_lines,
    settings_line,
    table_cells,
    task_line,
)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints a block for each task and one for their mean: the floors, a row for each setting, and what it comes to."""
    for name, rows in comparison.blocks.items():
        console.print(Text.assemble((name, "bold"), f": {task_line(rows)}"))
        console.print(_floors(rows))
        console.print(_rows(rows))
        for line in (*failure_lines(rows), finding(rows)):
            console.print(Text(line))
        console.print()
    for line in (*origin_lines(comparison.points), f"{notes(comparison.rows)}. Full precision: --json and table.json."):
        console.print(Text(line))


def _floors(rows: tuple[ComparedRow, ...]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for floor in floors(rows):
        table.add_row(FLOOR_TITLES[floor.model], floor_text(floor, rows[0].measure), Text(settings_line(floor.labels)))
    return table


def _rows(rows: tuple[ComparedRow, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    best, shown = best_row(rows), table_cells(rows)
    for title in shown[0]:
        broken = title.replace(" ", "\n").replace(".", ".\n")
        words = title in TEXT_COLUMNS
        table.add_column(Text(broken), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row, cells in zip(rows, shown, strict=True):
        texts = {title: Text(cell.replace(" ± ", "±")) for title, cell in cells.items()}
        if row is best:
            texts[PLUG_IN_COLUMN].stylize("bold")
        table.add_row(*texts.values())
    return table
