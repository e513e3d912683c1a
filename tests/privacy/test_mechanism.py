import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import scaleot_core.privacy
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.mechanism import MECHANISMS, Mechanism
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import SilentReporter
from scaleot_core.training.local import LocalTraining
from tests.privacy.test_lmo_dp import LAW
from tests.support.private_tasks import RecordingSource, attached_adapter, private_task, random_examples, zeroth_order

ROWS: list[Mechanism] = [
    DPSGD(3, 0.5, 4.0, max_grad_norm=1.0, noise_multiplier=1.0, learning_rate=0.01, rows=2),
    DPZero(zeroth_order(rows=2), noise_multiplier=1.0),
    LMODP(zeroth_order(num_directions=1, rows=2), LAW),
    UpdateGaussian(LocalTraining(2, 3, 0.01), 0, max_update_norm=1.0, noise_multiplier=1.0),
]
by_name = pytest.mark.parametrize("mechanism", ROWS, ids=list(MECHANISMS))


def test_every_row_is_here() -> None:
    assert [type(row) for row in ROWS] == list(MECHANISMS.values())
    assert list(MECHANISMS) == ["dp-sgd", "dpzero", "lmo-dp", "update-gaussian"]


@by_name
def test_the_charge_is_made_once_and_before_anything_is_drawn(mechanism: Mechanism) -> None:
    log: list[str] = []
    charged: list[PrivacyEvent] = []

    def charge(event: PrivacyEvent) -> None:
        log.append("charged")
        charged.append(event)

    attached = attached_adapter()
    task = private_task(attached, random_examples(5), mechanism.choose_way(attached, pad_token_id=0))
    release = mechanism.release(task, secret=RecordingSource(log), charge=charge, reporter=SilentReporter())
    assert log[0] == "charged"
    assert set(log[1:]) == {"drawn"}
    assert charged == [mechanism.event()]
    assert release.event == mechanism.event()
    assert MECHANISMS[release.mechanism] is type(mechanism)


class BudgetIsGoneError(Exception):
    pass


@by_name
def test_a_refused_charge_stops_everything(mechanism: Mechanism) -> None:
    def refuse(event: PrivacyEvent) -> None:
        raise BudgetIsGoneError

    log: list[str] = []
    attached = attached_adapter()
    task = private_task(attached, random_examples(5), mechanism.choose_way(attached, pad_token_id=0))
    before = attached.state()
    passes: list[object] = []
    attached.model.register_forward_hook(lambda *_: passes.append(None))
    with pytest.raises(BudgetIsGoneError):
        mechanism.release(task, secret=RecordingSource(log), charge=refuse, reporter=SilentReporter())
    assert log == []
    assert passes == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in attached.state().items())


@by_name
def test_the_same_round_twice_has_two_noises(mechanism: Mechanism) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        attached = attached_adapter()
        task = private_task(attached, [], mechanism.choose_way(attached, pad_token_id=0))
        release = mechanism.release(task, secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter())
        found.append(release.tensors)
    assert not any(torch.equal(found[0][name], found[1][name]) for name in found[0])


@by_name
def test_a_release_says_nothing_but_tensors_of_a_public_shape(mechanism: Mechanism) -> None:
    shapes = []
    for examples in ([], random_examples(6)):
        attached = attached_adapter()
        task = private_task(attached, examples, mechanism.choose_way(attached, pad_token_id=0))
        release = mechanism.release(task, secret=SecretSource(), charge=lambda event: None, reporter=SilentReporter())
        shapes.append({name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in release.tensors.items()})
        assert vars(release).keys() == {"mechanism", "tensors", "event"}
    assert shapes[0] == shapes[1]


def test_only_a_mechanisms_release_makes_a_release() -> None:
    makers = set()
    package = Path(scaleot_core.privacy.__file__).parent
    for path in (package.parent).rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(isinstance(call.func, ast.Name) and call.func.id == "Release" for call in calls):
                    makers.add((path.name, function.name))
    assert makers == {(f"{name}.py", "release") for name in ("dp_sgd", "scalar_mechanism", "update_noise")}


@pytest.mark.parametrize("mechanism", ROWS[:3], ids=list(MECHANISMS)[:3])
def test_every_step_takes_a_poisson_sample_of_its_own_and_nothing_else(
    mechanism: DPSGD | DPZero | LMODP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty records at rate 0.5 over 200 steps: sizes are binomial, and every record is in about half of them."""
    examples, samples = random_examples(20), []
    attached = attached_adapter()
    task = private_task(attached, examples, mechanism.choose_way(attached, pad_token_id=0))
    silent = {name: torch.zeros_like(tensor) for name, tensor in attached.trainable().items()}

    def record(*arguments: object) -> object:
        (sample,) = (one for one in arguments if isinstance(one, list))
        samples.append([id(example) for example in sample])
        return silent if isinstance(mechanism, DPSGD) else np.zeros(mechanism.zeroth_order.num_directions)

    monkeypatch.setattr("scaleot_core.privacy.dp_sgd.sum_clipped_gradients", record)
    monkeypatch.setattr("scaleot_core.privacy.zeroth_order.sum_clipped_cells", record)
    for index in range(200):
        mechanism.step(task, index, SecretSource())
    sizes = [len(sample) for sample in samples]
    assert len(samples) == 200 and len(set(map(tuple, samples))) > 150
    assert stats.binomtest(sum(sizes), 20 * 200, 0.5).pvalue > 1e-6
    assert 2.0 < float(np.var(sizes)) < 9.0, "of a binomial: 5"
    counts = [sum(id(example) in sample for sample in samples) for example in examples]
    assert 50 < min(counts) <= max(counts) < 150
