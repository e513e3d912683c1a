"""Our figures beside those of the independent checks, which were written without this package and know nothing of it.

What takes seconds is computed here by their code; what takes minutes is compared with what they print, in
``test_accountant.py`` and ``test_lmo.py``.
"""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from scaleot_core.privacy.accountant import Accountant, epsilon_of
from scaleot_core.privacy.audit_bound import chance_of_guesses, lower_bound
from scaleot_core.privacy.calibration import NoiseBudget, calibrate
from scaleot_core.privacy.directions import direction
from scaleot_core.privacy.discrete_gaussian import CELLS_PER_UNIT
from scaleot_core.privacy.laplace import staircase_of_least_variance
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.privacy.privacy_loss import epsilon_at
from scaleot_core.privacy.replay import flatten, move
from scaleot_core.privacy.zeroth_order import sum_clipped_cells
from scaleot_core.training.data import EncodedExample
from tests.support.privacy_events import gaussian, laplace
from tests.support.privacy_reference import mean_target_loss
from tests.support.private_tasks import attached_adapter, private_task, random_examples, zeroth_order

CHECKS = Path(__file__).parents[3] / "shared" / "checks" / "privacy"
DELTA = 1e-5
Checks = Callable[[str], ModuleType]

pytestmark = pytest.mark.skipif(not CHECKS.is_dir(), reason=f"needs the independent checks in {CHECKS}")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """Imports a script of the checks by its name."""
    monkeypatch.syspath_prepend(str(CHECKS))
    return importlib.import_module


@pytest.mark.parametrize(("scale", "sample_rate", "count"), [(1.0, 1.0, 3), (5.0, 0.05, 100)])
def test_families_and_their_accountant_give_our_epsilon(
    checks: Checks, scale: float, sample_rate: float, count: int
) -> None:
    families = checks("families")
    for event, survival, stddev in (
        (gaussian(scale, sample_rate, count), families.S_gauss(scale), scale),
        (laplace(scale, sample_rate, count), families.S_lap(scale), math.sqrt(2) * scale),
    ):
        theirs = families.eps_S(survival, stddev, DELTA, sample_rate, count)
        assert epsilon_of([event], DELTA) == pytest.approx(theirs, rel=0.01)


def test_noise_on_their_lattice_costs_what_ours_does(checks: Checks) -> None:
    core = checks("pld_core")
    cells = 50
    lattice = core.lattice(26.0, cells)
    theirs = core.eps_additive(core.gaussian_pmf(lattice, 2.0, 1 / cells), cells, DELTA, 0.05, 300)
    assert epsilon_of([gaussian(2.0, 0.05, 300)], DELTA) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_one_release_takes_the_noise_that_they_find(checks: Checks, epsilon: float) -> None:
    single = checks("single_shot")
    budget = NoiseBudget(epsilon, DELTA, sample_rate=1.0, count=1)
    assert calibrate("gaussian", budget).law().stddev() == pytest.approx(
        single.sigma_analytic(epsilon, DELTA), rel=1e-3
    )
    scale = calibrate("laplace", budget).parameters["scale"]
    assert scale == pytest.approx(single.lap_scale(epsilon, DELTA), rel=1e-3)
    assert staircase_of_least_variance(epsilon).stddev() == pytest.approx(single.staircase_var(epsilon), rel=1e-3)


def test_mechanisms_that_differ_compose_to_their_figure(checks: Checks, tmp_path: Path) -> None:
    """By their ledger, and by their own distribution of Laplace noise composed with Gaussians."""
    events = [gaussian(3.0, 0.05, 300), laplace(20.0, 0.05, 300)]
    ours = Accountant().epsilon(events, DELTA)
    ledger = checks("ledger_proto").Ledger(str(tmp_path / "ledger.jsonl"), 3.0, DELTA)
    ledger.reserve({"mech": "gaussian", "sigma": 3.0, "q": 0.05, "n": 300})
    ledger.reserve({"mech": "laplace", "b": 20.0, "q": 0.05, "n": 300})
    assert ours == pytest.approx(ledger.spent(), rel=0.01)

    families, custom = checks("families"), checks("custom_pld_in_dp_accounting")
    scalar = custom.to_dpacc(*families.pair(families.S_lap(20.0), 600, 4), 0.05, 1e-4)
    gaussians = custom.L.from_gaussian_mechanism(
        3.0, sampling_prob=0.05, value_discretization_interval=1e-4, use_connect_dots=True
    )
    theirs = gaussians.self_compose(300).compose(scalar.self_compose(300)).get_epsilon_for_delta(DELTA)
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("drawn", [False, True], ids=["accounted", "drawn"])
@pytest.mark.parametrize("file", ["task1 0.3", "task1 0.7", "task1 2", "task1 3", "optU 0.3", "optU 3"])
def test_lmo_s_published_noise_has_their_closed_forms_and_their_price(checks: Checks, file: str, drawn: bool) -> None:
    published, official = checks("lmo_true_eps"), checks("lmo_official_check")
    a1, a3, a4, theta, k, rate, low, high = map(float, official.PARAMS[file])
    survival = published.S_of(official.PARAMS[file], drawn)
    law = Lmo(a1, k, theta, a3, 1 / rate if drawn else rate, a4, low, high)
    at = np.array([0.1, 1.0, 5.0, 20.0])
    assert law.survival(at) == pytest.approx(survival(at), rel=1e-9)
    clamped, moved = published.pair(survival, 100, 800)
    theirs = published.make_pld(moved, clamped).eps(1e-10)  # rounded to their lattice it costs a little less
    assert epsilon_at(law.privacy_loss(1.0), 1e-10) == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
@pytest.mark.parametrize(("canaries", "guesses", "right"), [(1000, 200, 140), (400, 100, 52), (1000, 50, 50)])
def test_the_audit_s_bound_is_theirs(checks: Checks, epsilon: float, canaries: int, guesses: int, right: int) -> None:
    audit = checks("audit_one_run")
    ours = chance_of_guesses(epsilon, DELTA, canaries=canaries, guesses=guesses, right=right)
    assert ours == pytest.approx(audit.p_value(canaries, guesses, right, epsilon, DELTA), rel=1e-9)
    bound = lower_bound(DELTA, 0.95, canaries=canaries, guesses=guesses, right=right)
    assert bound == pytest.approx(audit.eps_lb(canaries, guesses, right, DELTA, 0.05), abs=1e-9)


@pytest.mark.parametrize("num_directions", [1, 4])
def test_a_dpzero_step_is_their_reference_s_along_the_same_directions(
    checks: Checks, monkeypatch: pytest.MonkeyPatch, num_directions: int
) -> None:
    """Without noise: theirs in floating point, ours in whole cells of the lattice, each rounded towards zero."""
    reference = checks("dpzero_ref")
    attached, examples = attached_adapter(), random_examples(6)
    settings = zeroth_order(num_directions=num_directions, smoothing=0.01, max_grad_norm=0.5, rows=4)
    parameters = list(attached.trainable().values())

    def our_direction(key: int, step: int, k: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        whole = torch.from_numpy(direction(key, step=step, index=k, size=sum(sizes)))
        return [part.view(shape) for part, shape in zip(torch.split(whole, sizes), shapes, strict=True)]

    def losses(batch: list[EncodedExample]) -> Tensor:
        return torch.stack([mean_target_loss(attached.model, example) for example in batch])

    monkeypatch.setattr(reference, "direction", our_direction)
    theirs = reference.private_scalars(
        losses,
        parameters,
        examples,
        settings.direction_key,
        2,
        K=num_directions,
        lam=settings.smoothing,
        C=settings.max_grad_norm,
        sigma=0.0,
        expected_batch=settings.expected_batch_size,
    )
    cells = sum_clipped_cells(settings, "L2", private_task(attached, examples), examples, 2)
    ours = cells * settings.max_grad_norm / CELLS_PER_UNIT / settings.expected_batch_size
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert np.abs(ours).max() > 0.01

    moved = flatten(attached.trainable())
    move(moved, cells.astype(np.int32), settings.scalar_steps, 2)
    reference.apply_scalars(parameters, theirs, settings.direction_key, 2, settings.learning_rate)
    assert moved == pytest.approx(flatten(attached.trainable()), abs=1e-5)
