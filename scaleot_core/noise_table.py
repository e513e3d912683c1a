"""The noises that keep a privacy budget, on a terminal and as JSON."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from scaleot_core.privacy.accountant import PrivacyStatement
from scaleot_core.privacy.calibration import NoiseChoice


def print_noises(choice: NoiseChoice, statement: PrivacyStatement, console: Console) -> None:
    """Prints one row for each noise, the least first, why the others do not suit, and what the least one promises."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="stddev: of one number, for records clipped to 1; relative: to the Gaussian's",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("noise", no_wrap=True)
    table.add_column("stddev", justify="right", no_wrap=True)
    table.add_column("relative", justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    ratios = choice.ratios
    for name, event in sorted(choice.suitable.items(), key=lambda row: row[1].law().stddev()):
        parameters = ", ".join(f"{parameter} {value:.5g}" for parameter, value in event.parameters.items())
        table.add_row(name, f"{event.law().stddev():.4g}", f"{ratios[name]:.3f}", parameters)
    console.print(table)
    for reason in choice.refused.values():
        console.print(f"unsuitable: {reason}", highlight=False)
    console.print(f"least: {choice.event.noise}: {statement.sentence()}", highlight=False)


def noise_document(choice: NoiseChoice, statement: PrivacyStatement) -> dict[str, Any]:
    """Returns the same as one JSON document."""
    ratios = choice.ratios
    return {
        "least": choice.event.noise,
        "epsilon": statement.epsilon,
        "delta": statement.delta,
        **statement.scope.to_json(),
        "statement": statement.sentence(),
        "noises": {
            name: {
                "stddev": event.law().stddev(),
                "relative_to_gaussian": ratios[name],
                "parameters": dict(event.parameters),
            }
            for name, event in choice.suitable.items()
        },
        "unsuitable": dict(choice.refused),
    }
