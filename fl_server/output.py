"""A run's output directory: complete or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scaleot_core.errors import OutputError

if TYPE_CHECKING:
    from scaleot_core.report import Report


def default_output(now: datetime) -> Path:
    """Returns the output directory of a run for which none was given."""
    return Path("scaleot-runs") / now.strftime("%Y-%m-%d-%H%M%S")


@contextmanager
def new_output(destination: Path) -> Iterator[Path]:
    """Lends a directory to fill; it becomes ``destination`` when all went well and vanishes when not.

    Raises:
        OutputError: ``destination`` holds something already, or its parent cannot be written; before any work.
    """
    destination = destination.absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not an empty directory: give --out another one")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"the output directory {destination} cannot be made: {error.strerror}") from error
    try:
        building.chmod(0o755)
        yield building
        if destination.exists():
            destination.rmdir()
        building.rename(destination)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def show_report(report: "Report", destination: Path, *, as_json: bool) -> None:
    """Prints a report, as a table or as one document, and says where it is saved."""
    import typer
    from rich.console import Console

    from scaleot_core.report import print_table

    if as_json:
        typer.echo(report.to_text(), nl=False)
    else:
        print_table(report, Console())
    typer.echo(f"saved in {destination}", err=True)
