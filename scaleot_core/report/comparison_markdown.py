"""A comparison as Markdown, for a page of documentation: the same words and figures as on a terminal."""

from collections.abc import Iterable, Sequence

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


def comparison_markdown(comparison: Comparison) -> str:
    """Returns a heading, the floors and a table for each task, and for their mean; the best plug-in stands in bold."""
    parts = [f"`{comparison.config['model']['source']}`; {notes(comparison.rows)}."]
    for name, rows in comparison.blocks.items():
        parts += [f"## {name}", _lines([task_line(rows), *_floors(rows)]), _table(rows)]
        parts.append(_lines([*failure_lines(rows), finding(rows)]))
    return "\n\n".join([*parts, *origin_lines(comparison.points)]) + "\n"


def _floors(rows: Sequence[ComparedRow]) -> list[str]:
    found = []
    for floor in floors(rows):
        settings = f" ({settings_line(floor.labels)})" if floor.labels else ""
        found.append(f"{FLOOR_TITLES[floor.model]}{settings}: {floor_text(floor, rows[0].measure)}")
    return found


def _table(rows: Sequence[ComparedRow]) -> str:
    best, shown = best_row(rows), table_cells(rows)
    titles = list(shown[0])
    lines = [_row(titles), _row("---" if title in TEXT_COLUMNS else "---:" for title in titles)]
    for row, texts in zip(rows, shown, strict=True):
        if row is best:
            texts[PLUG_IN_COLUMN] = f"**{texts[PLUG_IN_COLUMN]}**"
        lines.append(_row(texts.values()))
    return "\n".join(lines)


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _lines(texts: Sequence[str]) -> str:
    return "  \n".join(texts)  # two spaces: a line break in Markdown
