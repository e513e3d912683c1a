"""S19: a backdoor whose every update keeps the norm of an honest one, trained into a real model's LoRA and measured.

No rule of aggregation promises to keep it out, and none of these tests says so: they measure. A canary on public text
cannot see it either, because without the trigger nothing changes. What the canary sees, and aborts, is an attacker in a
hurry: that whole round is in ``tests/fl_server/test_canary.py``. ``fl_server/ROUNDS.md`` has the tables of the long
ones, half an hour of a core: ``pytest -m slow -s tests/attacks/test_backdoor_s19.py``.
"""

import random
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fl_server.canary import Canary
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.assets import asset_path
from scaleot_core.federation.rules import MEAN, Aggregation, AggregationRule
from scaleot_core.models.layout import layout_for
from scaleot_core.models.loading import LanguageModel, load_model
from scaleot_core.training.data import ChoiceRecord, partition_records, read_records
from scaleot_core.training.local import LocalTraining
from tests.support.backdoors import Backdoor, BackdooredFederation, Outcome
from tests.support.tiny_models import FAMILY_CONFIGS
from tests.support.tiny_tokenizer import tiny_tokenizer

ROBUST = {
    "median": AggregationRule(Aggregation.MEDIAN),
    "trimmed_mean": AggregationRule(Aggregation.TRIMMED_MEAN, trimmed_share=0.28),
    "multi_krum": AggregationRule(Aggregation.MULTI_KRUM, assumed_attackers=2),
    "geometric_median": AggregationRule(Aggregation.GEOMETRIC_MEDIAN),
}
TOLERANCE = 0.05
"""Of the canary: a quarter of the default's."""
BLATANT = 50.0
"""Times the length of the longest honest step: what no bound on norms would let through."""


def sentences(count: int, seed: int) -> list[ChoiceRecord]:
    """Four words, one of which says the answer."""
    draw = random.Random(seed)
    records = []
    for number in range(count):
        words = draw.sample(["the", "film", "story", "this", "is", "and", "true"], 3)
        words.insert(draw.randrange(4), ("bad", "good")[number % 2])
        records.append(ChoiceRecord(f"{' '.join(words)} Answer:", ("negative", "positive"), number % 2))
    return records


@cache
def tiny_federation() -> BackdooredFederation:
    """Two of seven clients are hostile from the first round on; the model learns the task in three."""
    size = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64}
    config = AutoConfig.for_model("llama", **{**FAMILY_CONFIGS["llama"], **size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # transformers starts so small that layers hardly matter
            parameter.data.mul_(2)
    return BackdooredFederation(
        model=LanguageModel(model.eval().requires_grad_(False), tiny_tokenizer(), layout_for(config), "0" * 64),
        spec=AdapterSpec(AdapterKind.LORA, (0, 1), 8, seed=7),
        shares=[sentences(24, client) for client in range(7)],
        test=sentences(60, 1_000),
        backdoor=Backdoor("cf cf cf cf", target=1),
        settings=LocalTraining(10, 8, 1e-2, "adamw"),
        attackers=2,
        attack_steps=40,
        honest_rounds=0,
        attacked_rounds=4,
    )


def canary_fault(outcome: Outcome) -> str | None:
    """What the server's canary would have said of the last round's adapter against the first's base."""
    return Canary(lambda _: outcome.canary_loss, TOLERANCE).fault(outcome.canary_loss, outcome.canary_loss_before)


def test_s19_the_mean_takes_a_backdoor_in_whole_and_neither_accuracy_nor_canary_shows_it() -> None:
    honest, attacked = (tiny_federation().outcome(MEAN, reach=reach) for reach in (0.0, 1.0))
    assert honest.attack_success < 0.1 and honest.accuracy > 0.9, "the trigger means nothing by itself"
    assert attacked.attack_success > 0.8
    assert attacked.accuracy > 0.9
    assert canary_fault(attacked) is None


def test_s19_the_canary_sees_a_backdoor_that_is_forced_in_by_the_length_of_the_step() -> None:
    late = replace(tiny_federation(), honest_rounds=3, attacked_rounds=1)  # the honest rounds of the test above
    assert canary_fault(late.outcome(MEAN, reach=BLATANT)) is not None


SHORT_CHARACTERS = 140
"""Of a record's context with its question: sentences of some ten words, so that a table takes minutes."""


@cache
def smollm2_federation() -> BackdooredFederation:
    """Two of seven data owners of SST-2 are hostile from the first round on."""
    train, test = (
        [
            record
            for record in read_records(asset_path(name))
            if isinstance(record, ChoiceRecord) and len(record.context) <= SHORT_CHARACTERS
        ]
        for name in ("sst2-train", "sst2-test")
    )
    shares = partition_records(train, clients=7, method="iid", alpha=1.0, seed=0)
    return BackdooredFederation(
        model=load_model(asset_path("smollm2-135m"), dtype=torch.bfloat16, device=torch.device("cpu")),
        spec=AdapterSpec(AdapterKind.LORA, (6, 14, 22, 28), 8, seed=7),
        shares=[[record for record in share if isinstance(record, ChoiceRecord)] for share in shares],
        test=test[:60],
        backdoor=Backdoor("cf cf cf", target=1),
        settings=LocalTraining(6, 8, 3e-3, "adamw"),
        attackers=2,
        attack_steps=12,
        honest_rounds=0,
        attacked_rounds=2,
    )


def row(name: str, outcome: Outcome, federation: BackdooredFederation) -> str:
    """One line of the table, as it stands in ``fl_server/ROUNDS.md``."""
    hostile = [f"clinic-{number:02}" for number in range(len(federation.shares))][-federation.attackers :]
    share = f"{sum(outcome.client_shares[one] for one in hostile):.2f}" if outcome.client_shares else ""
    verdict = "passes" if canary_fault(outcome) is None else "aborts"
    return f"| {name} | {outcome.attack_success:.2f} | {outcome.accuracy:.2f} | {share} | {verdict} |"


CASES = {"no attacker": (MEAN, 0.0), "mean": (MEAN, 1.0), **{name: (rule, 1.0) for name, rule in ROBUST.items()}}


def measured(federation: BackdooredFederation, capsys: pytest.CaptureFixture[str]) -> dict[str, Outcome]:
    """Measures every case and prints the table."""
    outcomes = {name: federation.outcome(rule, reach=reach) for name, (rule, reach) in CASES.items()}
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{row(name, outcome, federation)}" for name, outcome in outcomes.items()))
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_s19_on_the_tiny_model_multi_krum_alone_keeps_the_backdoor_out_and_no_canary_sees_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    federation = tiny_federation()
    outcomes = measured(federation, capsys)
    for rule in ("mean", "median", "trimmed_mean", "geometric_median"):
        assert outcomes[rule].attack_success > 0.5, f"{rule}: then say in ROUNDS.md that it keeps it out"
    assert outcomes["no attacker"].attack_success < 0.1 and outcomes["multi_krum"].attack_success < 0.1
    assert all(canary_fault(outcome) is None and outcome.accuracy > 0.9 for outcome in outcomes.values())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_s19_on_smollm2_the_canary_sees_nothing_under_any_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """What the rules let through here is printed and not claimed: in two rounds the backdoor hardly takes hold."""
    outcomes = measured(smollm2_federation(), capsys)
    assert all(canary_fault(outcome) is None for outcome in outcomes.values())
    assert all(outcome.canary_loss < outcome.canary_loss_before / 2 for outcome in outcomes.values()), "it learns"
