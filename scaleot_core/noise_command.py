"""The verb that says what noise a privacy budget takes, for either side, before there is a run file or any data."""

from typing import Annotated, Literal

import typer

from scaleot_core.commands import JsonOption

EpsilonOption = Annotated[float, typer.Option("--epsilon", help="The budget, over all releases.")]
DeltaOption = Annotated[float, typer.Option("--delta", help="Its delta, far below one over the records.")]
RateOption = Annotated[
    float, typer.Option("--sample-rate", help="Chance of a record to enter a release, 1 for every record in each.")
]
ReleasesOption = Annotated[int, typer.Option("--releases", help="Releases in all: rounds times local steps.")]
DimensionOption = Annotated[int, typer.Option("--dimension", help="Numbers of one release.")]
NormOption = Annotated[
    Literal["L1", "L2"], typer.Option("--norm", help="In which norm one record's numbers are clipped to 1.")
]
SearchOption = Annotated[
    bool, typer.Option("--search-lmo", help="Search the LMO-DP paper's 40,824 mixtures first: a quarter of an hour.")
]


def noise(
    *,
    epsilon: EpsilonOption,
    delta: DeltaOption,
    sample_rate: RateOption,
    releases: ReleasesOption,
    dimension: DimensionOption = 1,
    norm: NormOption = "L2",
    search: SearchOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find, for a privacy budget, the least noise of every law, and the law that needs the least of all."""
    import json

    from rich.console import Console

    from scaleot_core.noise_table import noise_document, print_noises
    from scaleot_core.privacy.accountant import Accountant
    from scaleot_core.privacy.calibration import LMO_SHAPE, NoiseBudget, best_noise
    from scaleot_core.privacy.lmo_search import paper_shapes, search_lmo
    from scaleot_core.progress import terminal_or_log_reporter

    budget = NoiseBudget(epsilon, delta, sample_rate, releases, dimension, norm)
    shape = LMO_SHAPE
    if search:
        shape = search_lmo(budget, list(paper_shapes()), reporter=terminal_or_log_reporter())
    choice = best_noise(budget, lmo_shape=shape)
    statement = Accountant().statement([choice.event], delta)
    if as_json:
        typer.echo(json.dumps(noise_document(choice, statement), indent=2, allow_nan=False))
    else:
        print_noises(choice, statement, Console())
