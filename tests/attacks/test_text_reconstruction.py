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
from scaleot_core.privacy.calibration import noise_multiplier_for
from scaleot_core.privacy.dp_sgd import DPSGD
from scaleot_core.privacy.dpzero import DPZero
from scaleot_core.privacy.mechanism import Mechanism
from scaleot_core.privacy.per_example import ExampleWay
from scaleot_core.privacy.replay import replay
from scaleot_core.privacy.secret_random import SecretSource
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from scaleot_core.training.data import EncodedExample, TextRecord, encode_for_training
from scaleot_core.training.local import LocalTraining, train_adapter
from tests.support.attacks import (
    ForgottenNoise,
    differences_at,
    gradient_scores,
    gradients_at,
    recover_text,
    scalar_scores,
)
from tests.support.private_tasks import private_task, random_examples, zeroth_order
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


def dp_sgd(noise_multiplier: float = 1.0) -> DPSGD:
    return DPSGD(
        steps=1,
        sample_rate=1.0,
        expected_batch_size=1.0,
        max_grad_norm=1.0,
        noise_multiplier=noise_multiplier,
        learning_rate=LEARNING_RATE,
        optimizer="sgd",
    )


def dpzero(noise_multiplier: float = 1.0) -> DPZero:
    settings = zeroth_order(steps=1, sample_rate=1.0, expected_batch_size=1.0, num_directions=64)
    return DPZero(settings, noise_multiplier, noise="gaussian")


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


def test_clipping_alone_does_not_stop_the_span_attack() -> None:
    attached = attached_adapter("ffa-lora")
    base = attached.state()
    update = released(dp_sgd(), attached, [SECRET], ForgottenNoise())
    assert attack(attached, base, update, num_inputs=len(INPUTS)) == INPUTS


@pytest.mark.parametrize("adapter", ["layers", "ffa-lora"])
def test_dp_sgd_stops_the_span_attack_even_at_epsilon_eight(adapter: str) -> None:
    """An observation about this attack, not a bound: a guess hits a place once in 320 times."""
    noise_multiplier = noise_multiplier_for(8.0, DELTA, sample_rate=1.0, count=1)
    attached = attached_adapter(adapter)
    base = attached.state()
    update = released(dp_sgd(noise_multiplier), attached, [SECRET], SecretSource())
    assert share_recovered(attack(attached, base, update, num_inputs=len(INPUTS))) < 0.35


def test_scalars_stop_the_span_attack_even_without_noise() -> None:
    """Sixty-four numbers hold no span of a matrix; the server's adapter moves by a mixture of random directions."""
    mechanism = dpzero()
    attached = attached_adapter("ffa-lora")
    base = attached.state()
    scalars = released(mechanism, attached, [SECRET], ForgottenNoise())["scalars"].numpy()
    update = replay(base, scalars, mechanism.zeroth_order.scalar_steps)
    assert share_recovered(attack(attached, base, update, num_inputs=len(INPUTS))) < 0.35


CANDIDATES = random_examples(40, seed=4, lengths=(5, 9))
SECRETS = CANDIDATES[:15]
KNOWN = random_examples(2, seed=9, lengths=(5, 9))


def times_found(mechanism: Mechanism, secret: SecretSource) -> int:
    """Plays with each secret: it joins two known records, the attacker names it among all candidates."""
    attached = attached_adapter("ffa-lora of rank 4")
    base = attached.state()
    if isinstance(mechanism, DPZero):
        score = partial(scalar_scores, differences_at(attached, base, mechanism.zeroth_order, CANDIDATES))
    else:
        score = partial(gradient_scores, gradients_at(attached, base, CANDIDATES), base)
    way = mechanism.choose_way(attached, pad_token_id=0)
    found = 0
    for candidate in SECRETS:
        attached.load(base)
        scores = score(released(mechanism, attached, [candidate, *KNOWN], secret, way))
        found += CANDIDATES[int(scores.argmax())] is candidate
    return found


@pytest.mark.parametrize("mechanism", [dp_sgd, dpzero])
def test_gradient_matching_finds_a_record_among_candidates_no_more_often_than_epsilon_allows(
    mechanism: Callable[..., Mechanism],
) -> None:
    """And far more often where the noise was forgotten, so that the bound would show it."""
    epsilon, games = 1.0, len(SECRETS)
    most = int(binom.isf(1e-9, games, math.exp(epsilon) / len(CANDIDATES) + DELTA))
    assert times_found(mechanism(), ForgottenNoise()) > most
    noise_multiplier = noise_multiplier_for(epsilon, DELTA, sample_rate=1.0, count=1)
    assert times_found(mechanism(noise_multiplier), SecretSource()) <= most
