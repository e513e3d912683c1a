"""The report's two files in a run's output directory."""

import os
from pathlib import Path

from scaleot_core.errors import OutputError
from scaleot_core.report.document import Report
from scaleot_core.report.page import page

REPORT_FILE, PAGE_FILE = "report.json", "report.html"


def write_report(report: Report, directory: Path) -> tuple[Path, Path]:
    """Writes ``report.json`` and ``report.html`` to an existing directory, each whole or not at all; returns both.

    Raises:
        OutputError: the directory cannot be written.
    """
    try:
        return write_whole(directory / REPORT_FILE, report.to_text()), write_whole(directory / PAGE_FILE, page(report))
    except OSError as error:
        raise OutputError(f"the report cannot be written to {directory}: {error.strerror or error}") from error


def write_whole(path: Path, text: str) -> Path:
    """Writes a file under another name and renames it: whole or not at all; returns it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
