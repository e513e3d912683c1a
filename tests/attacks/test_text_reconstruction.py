"""Text reconstruction from one client's update: what works on a plain update, and what privacy leaves of it.

Two attacks. *The span attack* (``attacks.recover_text``) rebuilds a record token by token from nothing. *Gradient
matching* picks the record from a list of candidates, as every attack that searches ends up doing (LAMP, Balunovic et
al. 2022); of it differential privacy says the most that can be right, whatever the attacker: with a prior that is
uniform over M candidates at most ``exp(epsilon) / M + delta``. (The record's absence is the neighbour: there the
attacker's guess hits the record by chance.)
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.stats import binom
from transformers import AutoConfig, AutoModelForCausalLM

from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.models.layout import layout_for
from scaleot_core.privacy.accountant import epsilon_of
from scaleot_core.privacy.calibration import NoiseBudget, calibrate
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.lmo_dp import LMODP
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.noise_ranges import MOST_LMO_DIRECTIONS
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.replay import replay
from scaleot_core.privacy.scalar_mechanism import ScalarMechanism
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.privacy.update_noise import UpdateGaussian
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample, TextRecord, encode_for_training
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.attacks import (
    differences_at,
    forgotten_noise,
    gradient_scores,
    gradients_at,
    recover_text,
    scalar_scores,
)
from tests.support.private_tasks import noise_multiplier_for, private_task, random_examples, zeroth_order
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_tokenizer
from tests.support.tiny_tokenizer import VOCABULARY_SIZE

ADAPTERS = {
    "layers": AdapterSpec(AdapterKind.LAYERS, (1,), rank=1, seed=5),
    "lora": AdapterSpec(AdapterKind.LORA, (1,), rank=20, seed=5),
    "ffa-lora": AdapterSpec(AdapterKind.LORA, (1,), rank=20, seed=5, freezes_down=True),
    "ffa-lora of rank 4": AdapterSpec(AdapterKind.LORA, (1,), rank=4, seed=5, freezes_down=True),
}
LINEAR = "1.self_attn.v_proj"
LEARNING_RATE = 0.1
DELTA = 1e-9

(SECRET,) = encode_for_training([TextRecord("Meier: HIV+, 1971")], tiny_tokenizer(), max_tokens=64)
INPUTS = SECRET.token_ids[:-1]
"""The last token is the end of text, which the attacker knows."""


def attached_adapter(adapter: str) -> AttachedAdapter:
    """Returns a fresh adapter in a model whose hidden states are wider than the record is long."""
    width = {"hidden_size": 32, "head_dim": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = AutoConfig.for_model("llama", **{**FAMILY_CONFIGS["llama"], **width})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return attach_adapter(model.eval().requires_grad_(False), layout_for(config), ADAPTERS[adapter])


def plain_update(attached: AttachedAdapter, steps: int) -> TensorDict:
    settings = LocalTraining(steps, batch_size=1, learning_rate=LEARNING_RATE, optimizer="sgd")
    train_adapter(attached, [SECRET], settings, pad_token_id=0, seed=1, reporter=SilentReporter())
    return attached.state()


def dp_sgd(epsilon: float) -> DPSGD:
    return DPSGD(
        steps=1,
        sample_rate=1.0,
        expected_batch_size=1.0,
        max_grad_norm=1.0,
        noise_multiplier=noise_multiplier_for(epsilon, DELTA, sample_rate=1.0, count=1),
        learning_rate=LEARNING_RATE,
        optimizer="sgd",
    )


def dpzero(epsilon: float, num_directions: int = 16) -> DPZero:
    settings = zeroth_order(steps=1, sample_rate=1.0, expected_batch_size=1.0, num_directions=num_directions)
    noise = DPZero.calibrated_noise
    return DPZero(settings, noise_multiplier_for(epsilon, DELTA, sample_rate=1.0, count=1, noise=noise))


def lmo_dp(epsilon: float) -> LMODP:
    directions = MOST_LMO_DIRECTIONS
    event = calibrate("lmo", NoiseBudget(epsilon, DELTA, 1.0, count=1, dimension=directions, norm="L1"))
    law = {name: value for name, value in event.parameters.items() if name != "dimension"}
    return LMODP(zeroth_order(steps=1, sample_rate=1.0, expected_batch_size=1.0, num_directions=directions), law)


def update_gaussian(epsilon: float) -> UpdateGaussian:
    """Its neighbour is no record at all, where as well the guess hits by chance."""
    training = LocalTraining(steps=2, batch_size=3, learning_rate=LEARNING_RATE, optimizer="sgd")
    noise_multiplier = noise_multiplier_for(epsilon, DELTA, sample_rate=1.0, count=1)
    return UpdateGaussian(training, seed=0, max_update_norm=0.01, noise_multiplier=noise_multiplier)


def released(
    mechanism: Mechanism,
    attached: AttachedAdapter,
    examples: list[EncodedExample],
    secret: SecretSource,
    way: ExampleWay | None = None,
) -> TensorDict:
    """Returns a release of the mechanism on the adapter's own start."""
    task = private_task(attached, examples, way or mechanism.choose_way(attached, pad_token_id=0))
    return mechanism.release(task, secret=secret, charge=lambda _: None, reporter=SilentReporter()).tensors


def attack(attached: AttachedAdapter, base: TensorDict, update: TensorDict, **told: int) -> tuple[int, ...]:
    return recover_text(attached, base, update, LINEAR, vocabulary_size=VOCABULARY_SIZE, **told)


def share_recovered(found: tuple[int, ...]) -> float:
    return sum(one == other for one, other in zip(found, INPUTS, strict=True)) / len(INPUTS)


@pytest.mark.parametrize(("adapter", "steps"), [("layers", 1), ("lora", 1), ("ffa-lora", 3)])
def test_the_span_attack_reads_the_record_out_of_a_plain_update(adapter: str, steps: int) -> None:
    attached = attached_adapter(adapter)
    base = attached.state()
    assert attack(attached, base, plain_update(attached, steps)) == INPUTS


def test_the_span_attack_reads_nothing_where_lora_s_rank_is_below_the_number_of_tokens() -> None:
    """No protection: gradient matching, below, works at any rank, and so does UTR."""
    attached = attached_adapter("ffa-lora of rank 4")
    base = attached.state()
    found = attack(attached, base, plain_update(attached, 1), num_inputs=len(INPUTS))
    assert len(found) < len(INPUTS)


@pytest.mark.parametrize("build", [dp_sgd, update_gaussian])
def test_clipping_alone_does_not_stop_the_span_attack(build: Callable[[float], Mechanism]) -> None:
    attached = attached_adapter("ffa-lora")
    base = attached.state()
    with forgotten_noise() as secret:
        update = released(build(8.0), attached, [SECRET], secret)
    assert attack(attached, base, update, num_inputs=len(INPUTS)) == INPUTS


@pytest.mark.parametrize(
    ("build", "adapter"), [(dp_sgd, "layers"), (dp_sgd, "ffa-lora"), (update_gaussian, "ffa-lora")]
)
def test_normal_noise_stops_the_span_attack_even_at_epsilon_eight(
    build: Callable[[float], Mechanism], adapter: str
) -> None:
    """An observation about this attack, not a bound: a guess hits a place once in 320 times."""
    attached = attached_adapter(adapter)
    base = attached.state()
    update = released(build(8.0), attached, [SECRET], SecretSource())
    assert share_recovered(attack(attached, base, update, num_inputs=len(INPUTS))) < 0.35


def test_scalars_stop_the_span_attack_even_without_noise() -> None:
    """Sixty-four numbers hold no span of a matrix; the server's adapter moves by a mixture of random directions."""
    mechanism = dpzero(8.0, num_directions=64)
    attached = attached_adapter("ffa-lora")
    base = attached.state()
    with forgotten_noise() as secret:
        scalars = released(mechanism, attached, [SECRET], secret)["scalars"].numpy()
    update = replay(base, scalars, mechanism.zeroth_order.scalar_steps)
    assert share_recovered(attack(attached, base, update, num_inputs=len(INPUTS))) < 0.35


CANDIDATES = random_examples(100, seed=4, lengths=(5, 9))


def share_found(mechanism: Mechanism, secret: SecretSource, games: int) -> float:
    """Plays with one candidate after the other: each is the only record, and the attacker names it among them all."""
    attached = attached_adapter("ffa-lora of rank 4")
    base = attached.state()
    if isinstance(mechanism, ScalarMechanism):
        score = partial(scalar_scores, differences_at(attached, base, mechanism.zeroth_order, CANDIDATES))
    else:
        score = partial(gradient_scores, gradients_at(attached, base, CANDIDATES), base)
    way = mechanism.choose_way(attached, pad_token_id=0)
    found = 0
    for number in range(games):
        attached.load(base)
        scores = score(released(mechanism, attached, [CANDIDATES[number]], secret, way))
        found += int(scores.argmax()) == number
    return found / games


@pytest.mark.parametrize("build", [dp_sgd, dpzero, lmo_dp, update_gaussian])
def test_gradient_matching_finds_a_record_among_candidates_no_more_often_than_epsilon_allows(
    build: Callable[[float], Mechanism],
) -> None:
    """And far more often where the noise was forgotten, so that the bound would show it.

    Of 50 games epsilon allows 7 on average, 15 with the sampling error of one run in a million. Tried with less and
    less noise, this fails when it is 4 times too weak (``lmo-dp``), 6 times (``dp-sgd``, ``update-gaussian``), 8 times
    (``dpzero``). Noise half as strong passes: that noise is as strong as it says is shown by its law, as
    ``test_membership_inference`` explains.
    """
    epsilon, games = 2.0, 50
    most = binom.isf(1e-6, games, math.exp(epsilon) / len(CANDIDATES) + DELTA) / games
    mechanism = build(epsilon)
    with forgotten_noise() as secret:
        assert share_found(mechanism, secret, games=20) > most
    assert epsilon_of((mechanism.event(),), DELTA) <= epsilon
    assert share_found(mechanism, SecretSource(), games) <= most
