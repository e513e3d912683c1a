"""The report as one HTML page that needs nothing else: no script, no font, no image from elsewhere."""

from html import escape
from pathlib import Path

from scaleot_core.report.document import MODEL_TITLES, Report
from scaleot_core.report.files import write_texts
from scaleot_core.report.html import html_list, html_page, html_pairs, html_plot, html_settings
from scaleot_core.report.model_privacy_phrases import (
    disclosure_line,
    disclosure_warning,
    floors_line,
    gap_line,
    healing_line,
    strong_emulator_line,
)
from scaleot_core.report.phrases import (
    RUNNERS,
    columns,
    counted,
    emulator_line,
    figure,
    findings,
    megabytes,
    percent,
    privacy_line,
    refusals_line,
    seconds_line,
    traffic_line,
)
from scaleot_core.report.plots import healing_plot, layers_plot, results_plot, rounds_plot

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
_ROUNDS_CAPTION = "Mean training loss of the clients on the emulator, weighted by their examples."


def write_report(report: Report, directory: Path) -> tuple[Path, ...]:
    """Writes ``report.json`` and ``report.html`` to an existing directory, each whole or not at all; returns both.

    Raises:
        OutputError: the directory cannot be written.
    """
    return write_texts({REPORT_FILE: report.to_text(), PAGE_FILE: page(report)}, directory)


def page(report: Report) -> str:
    """Returns the whole page; every text that comes from a run is escaped."""
    title = (
        f"{report.config['model']['source']} tuned by {counted(report.config['federation']['clients'], 'data owner')}"
    )
    parts = [
        _results(report),
        html_list(findings(report)),
        html_plot(results_plot(report.results.measured()), "The five models on the same held-out examples."),
        "<h2>What this does not show</h2>",
        f'<div class="limits">{html_list(_limits(report))}</div>',
        "<h2>The emulator: what the data owners received</h2>",
        f"<p>{escape(emulator_line(report))}; harmonizers are {percent(report.emulator.trained_share)}.</p>",
        html_plot(layers_plot(report), _layers_caption(report)),
        "<h2>Model privacy: what can be made of the emulator</h2>",
        _model_privacy(report),
        "<h2>The rounds</h2>",
        f"<p>Each client: {escape(traffic_line(report))}.</p>",
        html_plot(rounds_plot(report), _ROUNDS_CAPTION),
        _rounds(report),
        "<h2>Seal, time and memory</h2>",
        html_pairs(_costs(report)),
        "<h2>Settings</h2>",
        '<p class="small">The resolved run file. On one machine, with the same versions, a CPU repeats it exactly.</p>',
        html_settings(report.config),
        "<h2>Versions</h2>",
        html_pairs(report.versions),
    ]
    return html_page(title, parts)


def _results(report: Report) -> str:
    titles = columns(report)
    head = "".join(f'<th class="number">{escape(title)}</th>' for title in titles.values())
    rows = []
    for key, metrics in report.results.measured().items():
        cells = "".join(f'<td class="number">{escape(figure(metrics, name))}</td>' for name in titles)
        mark = ' class="plug-in"' if key == "plug_in" else ""
        rows.append(f"<tr{mark}><td>{MODEL_TITLES[key]}</td><td>{RUNNERS[key]}</td>{cells}</tr>")
    examples = report.results.zero_shot.examples
    return (
        f'<div class="scroll"><table><thead><tr><th>model</th><th>who can run it</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="small">{counted(examples, "held-out example")}; '
        "± one standard error of the accuracy over these examples. One seed: nothing is said of other seeds.</p>"
    )


def _limits(report: Report) -> list[str]:
    verbatim = percent(report.emulator.verbatim_share)
    limits = [
        f"The verbatim share, {verbatim}, is the part of the full model that the data owners now hold bit for bit: its "
        "adapter layers, embeddings, norms, and what was not compressed. Compression protects nothing of that part.",
        "The gap between plug-in and tuned emulator is a gap in utility on this task, no proof of secrecy: a data "
        "owner who tunes the whole emulator, or has other text, may get more out of it than the row shows.",
    ]
    if report.privacy.scope is None:
        limits.append(
            "The updates carried no differential privacy. That only adapters travel does not protect the data owners' "
            "text: an adapter update can leak it to whoever sees it. The seal of the bundle protects the emulator only."
        )
    else:
        limits.append(
            f"Epsilon holds for {report.privacy.scope.unit}: somebody with several records has several times that. "
            "How many records a data owner declares, and that it has any, is public, and the time that a round takes "
            "is not hidden. What each client spent is reckoned from the noise that it says it added; its own ledger "
            "counts."
        )
    limits.append("All parties ran on one machine. What a network adds in time and faults is not in these figures.")
    return limits


def _layers_caption(report: Report) -> str:
    if report.emulator.importance is None:
        return "What became of each layer. This builder needs no importance scores."
    return "What became of each layer, by its importance score: the higher, the harder to replace."


def _model_privacy(report: Report) -> str:
    figures = html_pairs(
        {
            "verbatim share": f"{percent(report.emulator.verbatim_share)} of the full model's parameters",
            "gap": gap_line(report),
            "floors": floors_line(report),
            "strong emulator": strong_emulator_line(report),
            "healing": healing_line(report),
            "disclosure": disclosure_line(report),
        }
    )
    warning = disclosure_warning(report)
    shown = f'<div class="limits"><p>Warning: {escape(warning)}.</p></div>' if warning else ""
    attacks, healing = report.model_privacy.attacks, report.model_privacy.attacks.healing
    if not isinstance(healing, tuple):
        return shown + figures
    caption = (
        "What tuning the emulator on public text gives back: 0 is the floor (of the accuracy the higher one, of "
        "F1 and loss that of random weights), 1 the full model zero-shot."
    )
    if any(point.tuned for point in healing):
        caption += " Dashed: then tuned on the private text; there 1 is the plug-in."
    return shown + figures + html_plot(healing_plot(healing, attacks.floors, report.results.plug_in), caption)


def _rounds(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{one.round}</td><td>{escape(', '.join(one.clients)) or 'none'}</td>"
        f'<td class="number">{"" if one.train_loss is None else f"{one.train_loss:.4f}"}</td>'
        f'<td class="number">{one.seconds:.1f}</td>'
        f"<td>{escape(', '.join(f'{client}: {reason}' for client, reason in one.rejected.items()))}</td></tr>"
        for one in report.federation.rounds
    )
    refused = refusals_line(report)
    aborted = {one.round: one.aborted for one in report.federation.rounds if one.aborted}
    return (
        '<div class="scroll"><table><thead><tr><th>round</th><th>clients</th><th class="number">training loss</th>'
        f'<th class="number">seconds</th><th>refused</th></tr></thead><tbody>{rows}</tbody></table></div>'
        + (f"<p>{escape(refused)}.</p>" if refused else "")
        + "".join(f"<p>Round {number} was thrown away: {escape(why)}.</p>" for number, why in aborted.items())
    )


def _costs(report: Report) -> dict[str, str]:
    return {
        "sealed bundle": f"{megabytes(report.bundle.size_bytes)} for {', '.join(report.bundle.recipients)}",
        "bundle digest": report.bundle.digest,
        "privacy": privacy_line(report),
        "seconds": seconds_line(report),
        "peak memory": megabytes(report.peak_memory_bytes),
    }
