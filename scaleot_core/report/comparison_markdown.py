"""A comparison as Markdown, for a page of documentation: the same words and figures as on a terminal."""

from collections.abc import Iterable, Sequence

from scaleot_core.report.comparison import ComparedRow, Comparison, best_row, floors
from scaleot_core.report.comparison_phrases import (
    DELTA_NOTE,
    PLUG_IN_COLUMN,
    TEXT_COLUMNS,
    cells,
    failure_lines,
    finding,
    floor_text,
    settings_line,
    task_line,
)
from scaleot_core.report.document import MODEL_TITLES


def comparison_markdown(comparison: Comparison) -> str:
    """Returns a heading, the floors and a table for each task, and for their mean; the best plug-in stands in bold."""
    parts = [f"`{comparison.config['model']['source']}`; {DELTA_NOTE}."]
    for name, rows in comparison.blocks.items():
        parts += [f"## {name}", _lines([task_line(rows), *_floors(rows)]), _table(rows)]
        parts.append(_lines([*failure_lines(rows), finding(rows)]))
    return "\n\n".join(parts) + "\n"


def _floors(rows: Sequence[ComparedRow]) -> list[str]:
    found = []
    for floor in floors(rows):
        settings = f" ({settings_line(floor.labels)})" if floor.labels else ""
        found.append(f"{MODEL_TITLES[floor.model]}{settings}: {floor_text(floor, rows[0].measure)}")
    return found


def _table(rows: Sequence[ComparedRow]) -> str:
    best = best_row(rows)
    titles = list(cells(rows[0]))
    lines = [_row(titles), _row("---" if title in TEXT_COLUMNS else "---:" for title in titles)]
    for row in rows:
        texts = cells(row)
        if row is best:
            texts[PLUG_IN_COLUMN] = f"**{texts[PLUG_IN_COLUMN]}**"
        lines.append(_row(texts.values()))
    return "\n".join(lines)


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _lines(texts: Sequence[str]) -> str:
    return "  \n".join(texts)  # two spaces: a line break in Markdown
