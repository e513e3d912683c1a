"""The audit of what a run file claims: its mechanism and budget, on canaries instead of anybody's records."""

import math
from dataclasses import replace
from typing import Final

from fl_server.privacy import asked_training, budget_of
from scaleot_core.errors import InputError
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.audit import AuditReport, audit_mechanism
from scaleot_core.privacy.audit_bound import check_confidence
from scaleot_core.privacy.canaries import CANARY_NORM, canary_task, check_can_be_audited
from scaleot_core.privacy.private_rounds import AskedTraining, mechanism_for_round, round_event
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile

GRADIENT_STEPS: Final = 4
COORDINATES_PER_CANARY: Final = 0.3
"""Scalars that a round of zeroth-order steps releases, for each canary: fewer tell less, more take longer."""


def audit(run: RunFile, *, canaries: int, confidence: float, reporter: Reporter) -> AuditReport:
    """Audits one round of a run file's mechanism, its noise calibrated to the whole budget as a data owner does it.

    Of the run file only mechanism, budget and directions count. Records and model are made up, ``max_grad_norm`` is
    ``canaries.CANARY_NORM``, which noise scales with, and every canary is in every step's batch: smaller samples need
    less noise and hide more of a fault.

    Raises:
        InputError: the run file claims nothing, one run cannot audit its mechanism, or ``confidence`` is none.
    """
    check_confidence(confidence)
    asked = asked_training(run)
    if asked is None:
        raise InputError(
            f'privacy.mechanism is "{run.privacy.mechanism}": there is no claim to audit of the clients. Name a '
            "mechanism of theirs in the run file, or with "
            "--set privacy.mechanism=dp-sgd"
        )
    round_asked = _round_of_canaries(asked, canaries)
    budget = budget_of(run)
    if budget.noise_multiplier is not None:  # the claim is then what that noise gives, whatever the budget
        budget = replace(budget, epsilon=math.inf)
    event = round_event(round_asked, canaries, budget)
    mechanism = check_can_be_audited(
        mechanism_for_round(round_asked, event, round_number=1, batch_seed=0, recomputes_activations=False)
    )
    reporter.note(f"{canaries} canaries, {event.count} steps, noise {event.law().stddev():.4g} times the bound")
    return audit_mechanism(
        mechanism,
        canary_task(mechanism, canaries),
        claimed_epsilon=epsilon_of((event,), run.privacy.delta),
        delta=run.privacy.delta,
        confidence=confidence,
        reporter=reporter,
    )


def _round_of_canaries(asked: AskedTraining, canaries: int) -> AskedTraining:
    request = asked.privacy.model_copy(update={"rounds": 1, "max_grad_norm": CANARY_NORM})
    steps = GRADIENT_STEPS
    if request.sends_scalars:
        steps = math.ceil(canaries * COORDINATES_PER_CANARY / request.num_directions)
    return replace(asked, privacy=request, local_steps=steps, batch_size=canaries)
