"""Mechanisms to audit, calibrated to epsilon 1 for canaries."""

from collections.abc import Callable

from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.audit import AuditReport, audit_mechanism
from scaleot_core.privacy.canaries import CANARY_NORM, AuditedMechanism, canary_task
from scaleot_core.privacy.directions import direction_key
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import ZerothOrder
from scaleot_core.progress import SilentReporter
from tests.support.private_tasks import noise_multiplier_for

DELTA, STEPS = 1e-5, 4


def audited_dp_sgd(canaries: int, *, sample_rate: float = 1.0) -> DPSGD:
    multiplier = noise_multiplier_for(1.0, DELTA, sample_rate=sample_rate, count=STEPS)
    return DPSGD(
        steps=STEPS,
        sample_rate=sample_rate,
        expected_batch_size=canaries * sample_rate,
        max_grad_norm=CANARY_NORM,
        noise_multiplier=multiplier,
        learning_rate=0.1,
    )


def audited_dpzero(canaries: int) -> DPZero:
    """With three coordinates for every five canaries."""
    num_directions = round(0.6 * canaries / STEPS)
    steps = ZerothOrder(
        steps=STEPS,
        sample_rate=1.0,
        expected_batch_size=float(canaries),
        max_grad_norm=CANARY_NORM,
        learning_rate=0.1,
        direction_key=direction_key("audit", 7),
        num_directions=num_directions,
    )
    multiplier = noise_multiplier_for(1.0, DELTA, sample_rate=1.0, count=STEPS, noise="discrete-gaussian")
    return DPZero(steps, noise_multiplier=multiplier)


def run_audit(mechanism: AuditedMechanism, canaries: int, make_secret: Callable[[], SecretSource]) -> AuditReport:
    return audit_mechanism(
        mechanism,
        canary_task(mechanism, canaries),
        claimed_epsilon=epsilon_of((mechanism.event(),), DELTA),
        delta=DELTA,
        confidence=0.95,
        reporter=SilentReporter(),
        make_secret=make_secret,
    )
