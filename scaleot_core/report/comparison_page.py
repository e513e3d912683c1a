"""A comparison as one HTML page that needs nothing else, and its files in the comparison's directory."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from scaleot_core.errors import OutputError
from scaleot_core.report.comparison import FLOOR_TITLES, ComparedRow, Comparison, best_row, floors
from scaleot_core.report.comparison_markdown import comparison_markdown
from scaleot_core.report.comparison_phrases import (
    PLUG_IN_COLUMN,
    TEXT_COLUMNS,
    failure_lines,
    finding,
    floor_text,
    limits,
    notes,
    origin_lines,
    settings_line,
    table_cells,
    task_line,
)
from scaleot_core.report.comparison_plots import STAGE_ONE, CaptionedPlot, comparison_plots, plot_files
from scaleot_core.report.files import write_texts
from scaleot_core.report.html import html_list, html_page, html_pairs, html_plot, html_settings
from scaleot_core.report.phrases import counted

TABLE_FILE, MARKDOWN_FILE, PAGE_FILE, PLOTS_FOLDER = "table.json", "table.md", "page.html", "plots"


def write_comparison(comparison: Comparison, directory: Path) -> tuple[Path, ...]:
    """Writes table and page to an existing directory, each file whole or not at all; returns their paths.

    They are ``table.json``, ``table.md`` and ``page.html``. In ``plots`` is each plot of the page alone, and no other:
    ``KIND-TASK.svg``, and ``KIND.svg`` where it is of all tasks.

    Raises:
        OutputError: the directory cannot be written.
    """
    plots = comparison_plots(comparison)
    texts = {
        TABLE_FILE: comparison.to_text(),
        MARKDOWN_FILE: comparison_markdown(comparison),
        PAGE_FILE: comparison_page(comparison, plots),
    }
    written = write_texts(texts, directory)
    _write_plots(plot_files(comparison, plots), directory / PLOTS_FOLDER)
    return written


def comparison_page(comparison: Comparison, plots: Mapping[tuple[str, str], CaptionedPlot]) -> str:
    """Returns the whole page with the plots of ``comparison_plots``; every text that comes from a run is escaped."""
    builders = len({row.builder for row in comparison.rows})
    title = f"{comparison.config['model']['source']}: {counted(builders, 'emulator builder')} compared"
    stage_one = _plots(plots, STAGE_ONE)
    parts = [
        *(part for name, rows in comparison.blocks.items() for part in (*_task(name, rows), *_plots(plots, name))),
        "<h2>What this does not show</h2>",
        f'<div class="limits">{html_list(limits(comparison))}</div>',
        *(["<h2>Stage 1: importance and cost</h2>", *stage_one] if stage_one else []),
        "<h2>Settings</h2>",
        '<p class="small">The resolved run file; what varies is under compare.</p>',
        html_settings(comparison.config),
        "<h2>Versions</h2>",
        html_pairs(comparison.versions),
        html_list(origin_lines(comparison.points)),
    ]
    return html_page(title, parts)


def _task(task: str, rows: tuple[ComparedRow, ...]) -> list[str]:
    explained = f"{_sentence(notes(rows))} Verbatim share: what of the full model leaves bit for bit."
    return [
        f"<h2>{escape(task)}</h2>",
        f"<p>{_sentence(finding(rows))}</p>",
        _floors(rows),
        _rows(rows),
        f'<p class="small">{_sentence(task_line(rows))} {explained}</p>',
        html_list(failure_lines(rows)),
    ]


def _floors(rows: tuple[ComparedRow, ...]) -> str:
    shown = "".join(
        f"<tr><th>{FLOOR_TITLES[floor.model]}</th>"
        f'<td class="number">{floor_text(floor, rows[0].measure)}</td>'
        f"<td>{escape(settings_line(floor.labels))}</td></tr>"
        for floor in floors(rows)
    )
    return f"<table>{shown}</table>"


def _rows(rows: tuple[ComparedRow, ...]) -> str:
    best, cells = best_row(rows), table_cells(rows)
    head = "".join(f"<th{_align(title)}>{escape(title)}</th>" for title in cells[0])
    body = []
    for row, texts in zip(rows, cells, strict=True):
        shown = {title: escape(cell) for title, cell in texts.items()}
        if row is best:
            shown[PLUG_IN_COLUMN] = f"<strong>{shown[PLUG_IN_COLUMN]}</strong>"
        body.append("<tr>" + "".join(f"<td{_align(title)}>{cell}</td>" for title, cell in shown.items()) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _sentence(line: str) -> str:
    return f"{escape(line[:1].upper() + line[1:])}."


def _align(title: str) -> str:
    return "" if title in TEXT_COLUMNS else ' class="number"'


def _plots(plots: Mapping[tuple[str, str], CaptionedPlot], task: str) -> list[str]:
    return [html_plot(plot.svg, plot.caption) for (_, of_task), plot in plots.items() if of_task == task]


def _write_plots(texts: Mapping[str, str], folder: Path) -> None:
    """Writes plots by their names to a folder, made if need be, and removes those of an earlier table."""
    try:
        if texts:
            folder.mkdir(exist_ok=True)
        for path in folder.glob("*.svg"):
            if path.name not in texts:
                path.unlink()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    write_texts(texts, folder)
