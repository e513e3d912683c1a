"""The ``scaleot`` command: finds the verbs, runs one, and turns errors into messages and exit codes.

Results go to standard output, everything else to standard error. A verb is an entry point of the group
``scaleot.verbs``, so that the core imports neither side; ``org.approve`` is the verb ``approve`` of the group ``org``,
to which both sides add. A verb's module imports what is heavy inside the verb, because ``scaleot --help`` loads them
all.
"""

import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint

import click
import typer
from typer.core import TyperCommand, TyperGroup

from scaleot_core.errors import ScaleOTError
from scaleot_core.out_of_memory import is_out_of_memory, out_of_memory_message
from scaleot_core.termination import ended_by_sigterm

VERBS_GROUP = "scaleot.verbs"
GROUPS = {
    "audit-log": "The log of what happened in a federation.",
    "authority": "The model owner's certificate authority.",
    "org": "Organisations of a federation: enrol one, admit it, revoke it.",
}
"""What ``--help`` says of each group of verbs."""
INTERRUPTED = 130
FAILED = 1

LIBRARY_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own bars, too: ours say more
    "FLWR_TELEMETRY_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",  # it warns and deadlocks after a fork
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # on a GPU: cuDNN makes a plan for every new shape, half a second each
    "GOMP_SPINCOUNT": "20000",  # threads spin briefly, then sleep: two runs on one machine do not starve one another
}
"""Read by libraries when they are imported: no hub, no telemetry, no second progress bar, threads that wait well."""


def main() -> None:
    """Runs the command line of this process and leaves with its exit code."""
    os.environ.update(LIBRARY_ENVIRONMENT)
    sys.exit(run(sys.argv[1:], importlib.metadata.entry_points(group=VERBS_GROUP)))


def run(arguments: Sequence[str], verbs: Iterable[EntryPoint]) -> int:
    """Runs one verb and returns the exit code.

    0 done, 1 our error, 2 usage or input, 3 not verified (a bundle, a ledger that cannot be believed, a claim that an
    audit refutes), 4 privacy budget exhausted, 130 interrupted; 143 where SIGTERM ends the process.
    """
    try:
        command = typer.main.get_command(_build_app(verbs))
        with ended_by_sigterm():
            status = command.main(list(arguments), "scaleot", standalone_mode=False)
    except ScaleOTError as error:
        return _fail(f"error: {error}", error.exit_code)
    except click.Abort:  # the user's end of input at a prompt
        return _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where the unforeseen becomes a bug report
        has_run_out = is_out_of_memory(error)
        return _fail(f"error: {out_of_memory_message(error)}" if has_run_out else _bug_report(), FAILED)
    if status == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _build_app(verbs: Iterable[EntryPoint]) -> typer.Typer:
    app = _new_app("Tune a model owner's LLM on data owners' text, with neither shown to the other.")
    app.callback()(_options)
    groups: dict[str, typer.Typer] = {}
    for verb in sorted(verbs, key=lambda verb: verb.name):
        group, _, name = verb.name.rpartition(".")
        if group and group not in groups:
            groups[group] = _new_app(GROUPS[group])
            app.add_typer(groups[group], name=group)
        (groups[group] if group else app).command(name, cls=_Verb)(verb.load())
    return app


class _PlainHelp(click.Command):
    """Shows help without backslashes before brackets, which typer writes for rich."""

    def get_help(self, ctx: click.Context) -> str:
        """Returns the help as plain text."""
        return super().get_help(ctx).replace("\\[", "[")


class _Verb(_PlainHelp, TyperCommand):
    pass


class _Group(_PlainHelp, TyperGroup):
    pass


def _new_app(description: str) -> typer.Typer:
    return typer.Typer(
        cls=_Group,
        help=description,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # rich doubles the time of --help
    )


def _show_version(is_asked: bool | None) -> None:
    if is_asked:
        typer.echo(f"scaleot {importlib.metadata.version('scaleot')}")
        raise typer.Exit


def _options(
    *, version: bool | None = typer.Option(None, "--version", callback=_show_version, help="Show the version.")
) -> None:
    pass


def _fail(message: str, status: int) -> int:
    typer.echo(message, err=True)
    return status


def _bug_report() -> str:
    return (
        f"scaleot {importlib.metadata.version('scaleot')} met an error that it did not foresee: a bug. Please report "
        "the lines below, after a look that they show nothing private.\n\n"
        f"Python {platform.python_version()} on {platform.platform()}\n{traceback.format_exc()}"
    )
