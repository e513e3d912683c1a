"""The bound that a client's own words put on its update: what clipped examples and the noise that it names can come to.

Nobody but the client sees its examples or its noise, so that a server cannot check either. But a sum of clipped terms
and noise of a known law has a length that it passes once in ten thousand million times: an update beyond it was not
clipped as asked, or has more noise than it says. (The tail of lmo-dp's noise is so heavy that its bound says little.)
"""

import math

import numpy as np

from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.validation import SCALARS, AdapterUpdate, step_norm
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.private_rounds import AskedTraining
from scaleot_core.shapes import TensorDict
from scaleot_core.training.local import ADAMW_BETAS

_DEVIATIONS = 7.0
"""Of a normal value, beyond which lie 1e-12."""
_MOST_UNDERSTATED = 2.0
"""So many times the declared number of records there may be: a data owner declares a round number."""
_ROUNDING = 1e-3
"""Relative: float32 on the way, and the lattice."""


def check_promised_norm(asked: AskedTraining, event: PrivacyEvent, update: AdapterUpdate, base: TensorDict) -> None:
    """Checks that an update is no longer than its mechanism's bound and the noise that it names allow.

    ``event`` is what ``promised_event`` read, ``base`` the round's adapter. Under dp-sgd by AdamW, whose steps are
    about as long whatever the gradient, only the number of steps and their rate bound the update.

    Raises:
        UpdateRejectedError: it is longer (NORM).
    """
    if asked.privacy.sends_scalars:
        bound = _sum_bound(asked, event, update.num_examples, asked.privacy.num_directions)
        norm = float(update.state[SCALARS].double().norm(dim=1).max()) / CELLS_PER_UNIT
        what = "the scalars of a step, over the clipping norm"
    else:
        bound = _update_bound(asked, event, update, base)
        norm = step_norm(update.state, base)
        what = "the step from the round's adapter"
    if not norm <= bound * (1 + _ROUNDING):
        expected = f"{what}: a norm of at most {bound:.4g}, by its clipping and the noise that it names"
        raise UpdateRejectedError(Reason.NORM, client=update.client, expected=expected, got=f"{norm:.4g}")


def _update_bound(asked: AskedTraining, event: PrivacyEvent, update: AdapterUpdate, base: TensorDict) -> float:
    size = sum(tensor.numel() for tensor in base.values())
    rounding = 1e-6 * math.sqrt(sum(float(tensor.double().square().sum()) for tensor in base.values()))
    if asked.privacy.mechanism == DPSGD.name and asked.optimizer == "adamw":
        return asked.learning_rate * math.sqrt(size) * _adamw_bound(asked.local_steps) + asked.local_steps * rounding
    if asked.privacy.mechanism == DPSGD.name:
        step = _sum_bound(asked, event, update.num_examples, size) * asked.privacy.max_grad_norm / asked.batch_size
        return asked.local_steps * (asked.learning_rate * step + rounding)
    return asked.privacy.max_grad_norm * (1 + _noise_bound(event, size)) + rounding


def _adamw_bound(steps: int) -> float:
    """Bounds how far so many steps of AdamW, at rate 1 and without weight decay, move one number.

    Its moments are sums over the same gradients, with weights that fall by beta 1 and beta 2 a step: by the inequality
    of Cauchy and Schwarz the first is at most ``(1 - beta 1) sqrt(series / (1 - beta 2))`` times the second's root.
    Kingma and Ba (2015, section 2.1) give the bound for a single gradient that is not zero.
    """
    beta_1, beta_2 = ADAMW_BETAS
    step = np.arange(1, steps + 1)
    series = np.cumsum((beta_1**2 / beta_2) ** (step - 1))
    corrected = np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
    return float(((1 - beta_1) * np.sqrt(series / (1 - beta_2)) * corrected).sum())


def _sum_bound(asked: AskedTraining, event: PrivacyEvent, num_examples: int, size: int) -> float:
    """Bounds the noisy sum of a Poisson sample's terms, of norm 1 each, of ``size`` numbers."""
    most_records = _MOST_UNDERSTATED * num_examples
    mean = event.sample_rate * most_records
    largest_sample = mean + _DEVIATIONS * math.sqrt(mean) + _DEVIATIONS**2  # Bernstein's inequality
    return min(most_records, largest_sample) + _noise_bound(event, size)


def _noise_bound(event: PrivacyEvent, size: int) -> float:
    """Bounds the Euclidean norm of ``size`` values of an event's noise."""
    law = event.law()
    if law.norm == "L2":  # normal, or as good as: the norm lies close to its mean
        return law.stddev() * (math.sqrt(size) + _DEVIATIONS)
    farthest = 1.0
    while float(law.survival(np.array([farthest]))[0]) > 1e-12 / size:
        farthest *= 2
    return math.sqrt(size) * farthest
