"""A federation's status on a terminal."""

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fl_server.federation_status import FederationStatus
from fl_server.run_status import RunStatus


def print_status(status: FederationStatus, console: Console) -> None:
    """Prints the run, the organisations, the rounds that are over, and whom the round waits for."""
    console.print(status_view(status))


def status_view(status: FederationStatus) -> RenderableType:
    """Returns the whole as one thing to print, or to print again in the same place."""
    parts: list[RenderableType] = [Text(headline(status)), _organisations(status)]
    if status.run is not None and status.run.history:
        parts.append(_rounds(status.run))
    parts += [Text(f"waits for {line}") for line in status.waits_for]
    return Group(*parts)


def headline(status: FederationStatus) -> str:
    """Says in one line where the run stands."""
    run = status.run
    if run is None:
        return "no run yet: start scaleot serve"
    if run.is_finished:
        return f"{run.run}: all {run.rounds} rounds are done" + ("" if status.results else "; next: scaleot plug-in")
    if not run.round_number:
        return f"{run.run}: waiting for organisations before round 1 of {run.rounds}"
    until = "" if run.deadline is None else f", until {run.deadline:%Y-%m-%d %H:%M:%S} UTC"
    answered = sum(1 for one in run.asked if one.status == "accepted")
    reason = "" if run.reason is None else f" ({run.reason})"
    return (
        f"{run.run}: round {run.round_number} of {run.rounds} is {run.state}{reason}, "
        f"{answered} of {run.wanted} updates (at least {run.quorum}){until}"
    )


def _organisations(status: FederationStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("organisation", "member", "online", "last seen (UTC)", "now"):
        table.add_column(title)
    for one in status.organisations:
        last = "never" if one.last_seen is None else f"{one.last_seen:%Y-%m-%d %H:%M:%S}"
        table.add_row(one.name, one.membership, "yes" if one.is_online else "no", last, one.doing)
    return table


def _rounds(run: RunStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("round", "state", "loss", "seconds", "updates of", "refused"):
        table.add_column(title, justify="right" if title in ("round", "loss", "seconds") else "left")
    for one in run.history:
        loss = "" if one.train_loss is None else f"{one.train_loss:.4f}"
        refused = ", ".join(f"{client} ({code})" for client, code in one.refused.items())
        table.add_row(str(one.round_number), one.state, loss, f"{one.seconds:.1f}", ", ".join(one.clients), refused)
    return table
