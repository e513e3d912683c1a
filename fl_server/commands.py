"""The model owner's and the researcher's verbs. Heavy imports stand inside a verb: ``scaleot --help`` loads this."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from scaleot_core.commands import JsonOption, SetOption
from scaleot_core.errors import VerificationError

OptionalRunFile = Annotated[Path | None, typer.Argument(metavar="[FILE.toml]", hidden=True)]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the results go.")]


def check(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    as_json: JsonOption = False,
) -> None:
    """Show a run file as it is understood and what privacy it costs, or all its faults, or how many rounds fit."""
    from scaleot_core.config import read_run_file, to_toml
    from scaleot_core.progress import terminal_or_log_reporter
    from scaleot_core.run_file import CompareSection

    run, costs = read_run_file(file, overrides), list[str]()
    if run.compare != CompareSection():
        from fl_server.comparison.compare import planned_costs

        costs = planned_costs(run, terminal_or_log_reporter())
    elif run.privacy.mechanism != "none":
        from fl_server.data import read_data
        from fl_server.privacy import compared_noises, planned_lines
        from scaleot_core.privacy import client_level

        partitions = read_data(run, terminal_or_log_reporter()).partitions
        costs = planned_lines(run, partitions)
        if run.privacy.mechanism != client_level.NAME:
            costs.insert(0, _whose_records(run.data.train))
        if not as_json:  # it takes seconds
            costs += compared_noises(run, partitions)
    typer.echo(run.model_dump_json(indent=2) if as_json else to_toml(run).rstrip())
    for line in costs:
        typer.echo(f"# {line}", err=as_json)


def _whose_records(train: str) -> str:
    return (
        f"what follows is of {train}, divided as scaleot simulate does it: between organisations the noise "
        "follows from the number of records that each data owner declares"
    )


def audit(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    canaries: Annotated[
        int, typer.Option("--canaries", min=10, help="Made-up records; a fifth of them is guessed about.")
    ] = 1000,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the lower bound, between 0 and 1.")] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Attack the run file's mechanism of privacy: a lower bound on epsilon beside the claim; exit code 3 refutes it."""
    from fl_server.audit import audit as run_audit
    from scaleot_core.config import read_run_file
    from scaleot_core.progress import terminal_or_log_reporter
    from scaleot_core.report.files import json_text

    run = read_run_file(file, overrides)
    found = run_audit(run, canaries=canaries, confidence=confidence, reporter=terminal_or_log_reporter())
    typer.echo(json_text(found.to_json()).rstrip() if as_json else found.sentence())
    if found.refutes_the_claim:
        raise typer.Exit(VerificationError.exit_code)


def simulate(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole federation on this machine and report; without a file, the built-in quickstart."""
    from fl_server.output import default_output, new_output, show_report
    from scaleot_core.config import read_run_file
    from scaleot_core.progress import terminal_or_log_reporter

    run = read_run_file(file, overrides)
    destination = out or default_output(datetime.now())
    with new_output(destination) as directory:
        from fl_server.simulation import simulate as run_simulation

        report = run_simulation(run, directory, terminal_or_log_reporter())
    show_report(report, destination, as_json=as_json)


def compare(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set builders, seeds and settings side by side on one model; a killed comparison goes on where it was."""
    from scaleot_core.config import read_run_file

    run = read_run_file(file, overrides)  # a faulty one is refused before the imports, which take seconds

    from rich.console import Console

    from fl_server.comparison.compare import compare as run_comparison
    from fl_server.comparison.compare import default_directory
    from fl_server.versions import versions
    from scaleot_core.progress import terminal_or_log_reporter
    from scaleot_core.report.comparison import summarize
    from scaleot_core.report.comparison_page import write_comparison
    from scaleot_core.report.comparison_table import print_comparison

    directory = out or default_directory(run)
    points = run_comparison(run, directory, terminal_or_log_reporter())
    comparison = summarize(points, config=run.model_dump(mode="json"), versions=versions())
    write_comparison(comparison, directory)
    if as_json:
        typer.echo(comparison.to_text(), nl=False)
    else:
        print_comparison(comparison, Console())
    typer.echo(f"saved in {directory}", err=True)


def estimate(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder that gets the report, named by digest; else where runs look for it."
        ),
    ] = None,
) -> None:
    """Score the layers of a model and learn its harmonizers, whether or not that was done before."""
    from fl_server.compress import (
        importance_cache,
        importance_settings,
        load_full_model,
        public_blocks,
        timed_importance,
    )
    from scaleot_core.compression.importance_store import importance_digest, save_importance
    from scaleot_core.config import read_run_file
    from scaleot_core.errors import OutputError
    from scaleot_core.progress import terminal_or_log_reporter

    run, reporter = read_run_file(file, overrides), terminal_or_log_reporter()
    if out is not None and out.exists() and not out.is_dir():
        raise OutputError(f"{out} is no directory: give --out another one")
    full = load_full_model(run.model, reporter)
    blocks, settings = public_blocks(full, run.importance, reporter), importance_settings(run.importance)
    digest = importance_digest(full.digest, blocks, settings)
    place = (out or importance_cache(full, run.model)) / digest
    save_importance(timed_importance(full, blocks, run, reporter), place)
    typer.echo(place)


def report(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Blocks of public text that the controls read.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Show every layer's importance beside simpler measures of it: whether they agree, and what each cost."""
    import json

    from rich.console import Console

    from fl_server.layer_report import report_layers
    from fl_server.layer_table import print_layers
    from scaleot_core.config import read_run_file
    from scaleot_core.progress import terminal_or_log_reporter

    layers = report_layers(read_run_file(file, overrides), blocks, terminal_or_log_reporter())
    if as_json:
        typer.echo(json.dumps(layers.to_json(), indent=2, allow_nan=False))
    else:
        print_layers(layers, Console())


def benchmark(
    file: OptionalRunFile = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    *,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps of each case.")] = 10,
    example_tokens: Annotated[
        str, typer.Option("--example-tokens", help="Length of private examples: one for all, or as 20-60, a range.")
    ] = "64",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Read of model.source its config.json alone: for speed only.")
    ] = False,
    case: Annotated[list[str], typer.Option("--case", help="Measure this case alone; can be given again.")] = [],  # noqa: B006 - typer copies it
    with_compiled: Annotated[
        bool, typer.Option("--compile", help="Measure once more with layers compiled, those cases where it can be.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time stage 1, a data owner's step and plug-in evaluation, against what the device can do."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from fl_server.benchmark import chosen_cases, example_lengths, run_benchmark
    from fl_server.benchmark_table import print_costs
    from scaleot_core.config import read_run_file
    from scaleot_core.progress import terminal_or_log_reporter

    run, reporter = read_run_file(file, overrides), terminal_or_log_reporter()
    costs = run_benchmark(
        run,
        steps=steps,
        example_tokens=example_lengths(example_tokens),
        has_random_weights=random_weights,
        cases=chosen_cases(case, with_compiled=with_compiled),
        reporter=reporter,
    )
    if as_json:
        typer.echo(json.dumps({case: asdict(cost) for case, cost in costs.items()}, indent=2, allow_nan=False))
    else:
        print_costs(costs, Console())
