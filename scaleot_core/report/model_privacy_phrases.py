"""How the figures of model privacy read: the words that the table and the page share."""

from scaleot_core.evaluation import Metrics
from scaleot_core.model_privacy.disclosure import DisclosureLevel
from scaleot_core.model_privacy.strong_emulator import StrongEmulator
from scaleot_core.report.document import Report
from scaleot_core.report.model_privacy import NotMeasured, gap_between
from scaleot_core.report.phrases import MEASURES, counted, headline_share, percent, points

_LEVELS = {
    DisclosureLevel.EXACT: "exact",
    DisclosureLevel.COMPRESSED: "compressed",
    DisclosureLevel.STAND_IN: "as a stand-in only",
    DisclosureLevel.NOTHING: "not at all",
}


def gap_line(report: Report) -> str:
    """Says what the plug-in is worth over the tuned emulator."""
    results = report.results
    return f"the plug-in is {_ahead(results.plug_in, results.emulator_tuned)} of the tuned emulator"


def floors_line(report: Report) -> str:
    """Says what is reached without the full model."""
    floors = report.model_privacy.attacks.floors
    line = f"random weights {_figures(floors.random_initialisation)}"
    return line if floors.majority is None else f"most frequent answer {percent(floors.majority.accuracy)}, {line}"


def strong_emulator_line(report: Report) -> str:
    """Says what all of the emulator, tuned on the private data, reaches, or how to measure it."""
    strong = report.model_privacy.attacks.strong_emulator
    if strong is None:
        return "not measured: set model_privacy.strong_emulator_steps"
    if isinstance(strong, NotMeasured):
        return f"not measured: {strong.reason}"
    return f"all of the emulator tuned on the clients' pooled text, {_tuned(report, strong)}"


def healing_line(report: Report) -> str:
    """Says what public text gives back of the full model at the largest budget, or how to measure it."""
    healing = report.model_privacy.attacks.healing
    if healing is None:
        return "not measured: set model_privacy.healing_steps"
    if isinstance(healing, NotMeasured):
        return f"not measured: {healing.reason}"
    last = healing[-1]
    names = [headline_share(last.zero_shot) or "accuracy", "loss"]
    shares = [(getattr(last.recovered, name), MEASURES[name].name) for name in names]
    shown = [f"{percent(share) if share > 0 else 'none'} of the {name}" for share, name in shares if share is not None]
    recovered = " and ".join(shown) if shown else "nothing: the full model is not above the floors"
    line = (
        f"{counted(last.steps, 'step')} on {counted(last.public_tokens, 'token')} of public text; from the floor to "
        f"the full model zero-shot: {recovered}"
    )
    return line if last.tuned is None else f"{line}; then tuned whole, {_tuned(report, last.tuned)}"


def disclosure_line(report: Report) -> str:
    """Says what has left of the model so far."""
    disclosure = report.model_privacy.disclosure
    levels = [(disclosure.count(level), words) for level, words in _LEVELS.items()]
    layers = ", ".join(f"{count} {words}" for count, words in levels if count)
    union = f"{percent(disclosure.verbatim_share)} of the parameters verbatim; layers: {layers}"
    if not disclosure.is_recorded:
        return f"this emulator alone, no record is kept: set model_privacy.disclosure_record. {union}"
    return f"{counted(disclosure.emulators, 'emulator')} of this model recorded, together {union}"


def disclosure_warning(report: Report) -> str | None:
    """Warns if this emulator reveals more than the recorded ones before it did, or says nothing."""
    indices = [str(one.after.index) for one in report.model_privacy.disclosure.new]
    if not indices:
        return None
    layers = f"layer{'' if len(indices) == 1 else 's'} {', '.join(indices)}"
    return f"this emulator reveals more of {layers} than the emulators before it"


def _tuned(report: Report, strong: StrongEmulator) -> str:
    ahead = _ahead(report.results.plug_in, strong.metrics)
    return f"{counted(len(strong.losses), 'step')}: {_figures(strong.metrics)}; the plug-in is {ahead}"


def _figures(metrics: Metrics) -> str:
    loss = f"loss {metrics.loss:.3f}"
    if metrics.f1 is not None:
        return f"F1 {percent(metrics.f1)}, {loss}"
    return loss if metrics.accuracy is None else f"{percent(metrics.accuracy)}, {loss}"


def _ahead(plug_in: Metrics, other: Metrics) -> str:
    gap = gap_between(plug_in, other)
    losses = f"{abs(gap.loss):.3f} in loss {'ahead' if gap.loss >= 0 else 'behind'}"
    if gap.f1 is not None:
        return f"{points(abs(gap.f1))} of F1 {'ahead' if gap.f1 >= 0 else 'behind'} and {losses}"
    if gap.accuracy is None:
        return losses
    return f"{points(abs(gap.accuracy))} {'ahead' if gap.accuracy >= 0 else 'behind'} and {losses}"
