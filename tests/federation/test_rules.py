import re

import pytest

from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError
from scaleot_core.federation.rules import Aggregation, AggregationRule, check_aggregation


def rule(aggregation: str, *, trimmed_share: float = 0.2, assumed_attackers: int = 1) -> AggregationRule:
    return AggregationRule(Aggregation(aggregation), trimmed_share, assumed_attackers)


def lora(*, freezes_down: bool = False) -> AdapterSpec:
    return AdapterSpec(AdapterKind.LORA, (0,), 2, seed=0, freezes_down=freezes_down)


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("freezes_down", [True, False])
def test_ffa_goes_with_a_frozen_down_projection_and_no_other_rule_does(aggregation: str, freezes_down: bool) -> None:
    if (aggregation == "ffa") is freezes_down:
        check_aggregation(rule(aggregation), lora(freezes_down=freezes_down), clients_per_round=5)
    else:
        with pytest.raises(InputError, match=f"'{aggregation}' needs LoRA's A"):
            check_aggregation(rule(aggregation), lora(freezes_down=freezes_down), clients_per_round=5)


@pytest.mark.parametrize("kind", [AdapterKind.LAYERS, AdapterKind.BOTTLENECK])
def test_product_is_of_lora_alone_and_the_robust_rules_of_any_adapter(kind: AdapterKind) -> None:
    spec = AdapterSpec(kind, (0,), 2, seed=0)
    with pytest.raises(InputError, match=f"'product' needs an adapter of kind 'lora', got '{kind.value}'"):
        check_aggregation(rule("product"), spec, clients_per_round=5)
    for name in ("fedavg", "median", "trimmed_mean", "multi_krum", "geometric_median"):
        check_aggregation(rule(name), spec, clients_per_round=5)


@pytest.mark.parametrize(("attackers", "clients"), [(1, 4), (2, 6), (3, 8)])
def test_multi_krum_needs_2f_plus_3_clients_in_a_round(attackers: int, clients: int) -> None:
    asked = rule("multi_krum", assumed_attackers=attackers)
    expected = re.escape(f"at least {clients + 1} clients in a round (2 f + 3), got {clients}")
    with pytest.raises(InputError, match=expected):
        check_aggregation(asked, lora(), clients_per_round=clients)
    check_aggregation(asked, lora(), clients_per_round=clients + 1)


@pytest.mark.parametrize("share", [0.0, 0.5, -0.1, 1.0, float("nan")])
def test_a_share_that_trims_nothing_or_everything_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"trimmed_share above 0 and below 0\.5"):
        rule("trimmed_mean", trimmed_share=share)
    rule("median", trimmed_share=share)


def test_multi_krum_without_an_assumed_attacker_is_refused() -> None:
    with pytest.raises(InputError, match="assumed_attackers of at least 1, got 0"):
        rule("multi_krum", assumed_attackers=0)
