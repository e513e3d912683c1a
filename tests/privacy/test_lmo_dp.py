import numpy as np
import pytest
from scipy import stats

from scaleot_core.errors import InputError
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.zeroth_order import sum_clipped_cells
from scaleot_core.progress import SilentReporter
from tests.support.private_tasks import attached_adapter, private_task, random_examples, zeroth_order

LAW = {
    "gamma_weight": 0.1,
    "gamma_shape": 1.0,
    "gamma_scale": 0.5,
    "exponential_weight": 0.1,
    "exponential_rate": 5.0,
    "uniform_weight": 0.1,
    "uniform_low": 1.0,
    "uniform_high": 2.0,
    "scale": 1.0,
}
"""The parameters that the paper's code ships for epsilon 0.3."""


def test_the_noise_has_the_laws_distribution() -> None:
    mechanism = LMODP(zeroth_order(steps=800, num_directions=1), LAW)
    release = mechanism.release(
        private_task(attached_adapter(), []),
        secret=SecretSource(),
        charge=lambda event: None,
        reporter=SilentReporter(),
    )
    law = mechanism.event().law()
    drawn = release.tensors["scalars"].numpy().flatten() / CELLS_PER_UNIT
    assert stats.kstest(drawn, lambda values: 1 - law.survival(np.asarray(values))).pvalue > 1e-6


@pytest.mark.parametrize("count", [1, 3])
def test_a_record_moves_the_scalars_by_at_most_the_bound_in_the_l1_norm(count: int) -> None:
    task = private_task(attached_adapter(), [])
    settings = zeroth_order(num_directions=count, max_grad_norm=0.01)
    law = LMODP(settings, LAW).event().law()
    for example in random_examples(4):
        cells = sum_clipped_cells(settings, law.norm, task, [example], 0)
        assert 0.99 * CELLS_PER_UNIT < np.abs(cells).sum() <= CELLS_PER_UNIT


def test_the_event_names_the_number_of_directions_since_a_record_may_move_all_of_them() -> None:
    for count in (1, 3):
        event = LMODP(zeroth_order(num_directions=count), LAW).event()
        assert event == PrivacyEvent("lmo", {**LAW, "dimension": float(count)}, sample_rate=0.5, count=3)


def test_more_directions_than_there_is_a_sensible_bound_for_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"L1 norm.*take dpzero"):
        LMODP(zeroth_order(num_directions=MOST_LMO_DIRECTIONS + 1), LAW)


def test_a_law_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="gamma_shape"):
        LMODP(zeroth_order(num_directions=1), {**LAW, "gamma_shape": -1.0})


@pytest.mark.parametrize("example", range(4))
def test_a_step_itself_clips_in_the_l1_norm(example: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lmo, "sample", lambda law, secret, count: np.zeros(count))
    mechanism = LMODP(zeroth_order(num_directions=3, sample_rate=1.0, max_grad_norm=0.01), LAW)
    task = private_task(attached_adapter(), [random_examples(4)[example]])
    scalars = mechanism.step(task, 0, SecretSource())["scalars"].double()
    assert 0.99 * CELLS_PER_UNIT < float(scalars.abs().sum()) <= CELLS_PER_UNIT
