"""A federation's status as a small page on loopback: it reads, and takes nothing that would change anything."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from fl_server.deployment import LOOPBACK, check_ports
from fl_server.federation_status import FederationStatus, read_federation_status, to_json
from fl_server.status_table import headline
from scaleot_core.address import Address
from scaleot_core.errors import ScaleOTError
from scaleot_core.evaluation import Metrics
from scaleot_core.report.html import html_list, html_page, html_plot
from scaleot_core.report.plots import losses_plot, results_plot

REFRESH_SECONDS = 5
REPORT_FILE = "tuned/report.html"


def serve_page(home: Path, port: int) -> None:
    """Serves the page on this machine alone until a signal comes.

    Raises:
        InputError: the port cannot be listened on.
    """
    check_ports(Address(LOOPBACK, port))
    uvicorn.run(status_app(home), host=LOOPBACK, port=port, log_level="warning", access_log=False, lifespan="off")


def status_app(home: Path) -> Starlette:
    """Returns the page of a home, its JSON, and the report of ``scaleot plug-in`` where there is one."""

    def page(_: Request) -> Response:
        try:
            status = read_federation_status(home, now=datetime.now(UTC))
        except ScaleOTError as error:
            return PlainTextResponse(f"{error}\n", status_code=500)
        has_report = (home / REPORT_FILE).is_file()
        return HTMLResponse(render(status, has_report=has_report), headers={"Refresh": str(REFRESH_SECONDS)})

    def document(_: Request) -> Response:
        try:
            return Response(to_json(read_federation_status(home, now=datetime.now(UTC))), media_type="application/json")
        except ScaleOTError as error:
            return PlainTextResponse(f"{error}\n", status_code=500)

    def report(_: Request) -> Response:
        try:
            return HTMLResponse((home / REPORT_FILE).read_bytes())
        except OSError:
            return PlainTextResponse("not plugged in yet\n", status_code=404)

    return Starlette(routes=[Route("/", page), Route("/status.json", document), Route("/report", report)])


def render(status: FederationStatus, *, has_report: bool) -> str:
    """Returns the page."""
    parts = [f"<p>{escape(headline(status))}</p>", _organisations(status)]
    if status.waits_for:
        parts += ["<h2>The round waits for</h2>", html_list(status.waits_for)]
    if status.run is not None and status.run.history:
        losses = {one.round_number: one.train_loss for one in status.run.history}
        parts += ["<h2>Rounds</h2>", html_plot(losses_plot(losses), "the data owners' mean training loss")]
        canary = {one.round_number: one.canary_loss for one in status.run.history}
        if any(loss is not None for loss in canary.values()):
            parts.append(html_plot(losses_plot(canary, "loss"), "each round's adapter on the canary"))
    if status.results is not None:
        measured = {model: _metrics(figures) for model, figures in status.results.items() if figures is not None}
        parts += ["<h2>Plug-in</h2>", html_plot(results_plot(measured), "the models on the same held-out examples")]
    if has_report:
        parts.append('<p><a href="/report">what the tuned model is worth</a></p>')
    parts.append(f'<p class="small">as of {status.at:%Y-%m-%d %H:%M:%S} UTC</p>')
    return html_page("federation", parts)


def _metrics(figures: Mapping[str, float | None]) -> Metrics:
    """Reads figures of a report; one that was not finite is null there."""
    return Metrics(**{name: math.nan if value is None else value for name, value in figures.items()})  # type: ignore[arg-type]


def _organisations(status: FederationStatus) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.membership)}</td><td>{'yes' if one.is_online else 'no'}</td>"
        f"<td>{escape(one.doing)}</td></tr>"
        for one in status.organisations
    )
    head = "".join(f"<th>{title}</th>" for title in ("organisation", "member", "online", "now"))
    return f"<table><thead><tr>{head}</tr></thead>{rows}</table>"
