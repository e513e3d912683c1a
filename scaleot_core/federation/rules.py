"""How updates may become one adapter, and what each way needs of adapter, cohort and clients."""

from dataclasses import dataclass
from enum import StrEnum

from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.errors import InputError
from scaleot_core.federation.robust import least_clients


class Aggregation(StrEnum):
    """The names of the rules. The first three are weighted means, the third of products; the others resist attacks."""

    FEDAVG = "fedavg"
    """The mean of every tensor (McMahan et al., 2017)."""
    FFA = "ffa"
    """The same mean where LoRA's A is frozen, so that the mean of the products B A is exact (Sun et al., 2024)."""
    PRODUCT = "product"
    """The mean of the products B A, factored again to LoRA's rank (Bai et al., 2024)."""
    MEDIAN = "median"
    """The median of every number (Yin et al., 2018)."""
    TRIMMED_MEAN = "trimmed_mean"
    """The mean of every number without the least and the largest (Yin et al., 2018)."""
    MULTI_KRUM = "multi_krum"
    """The mean of the adapters nearest to their neighbours (Blanchard et al., 2017)."""
    GEOMETRIC_MEDIAN = "geometric_median"
    """The adapter with the least sum of distances to all (Pillutla et al., 2022)."""

    @property
    def is_mean(self) -> bool:
        """Whether it is the weighted mean of what clients send, tensor by tensor: of adapters, or of scalars."""
        return self in (Aggregation.FEDAVG, Aggregation.FFA)


@dataclass(frozen=True)
class AggregationRule:
    """A rule and the numbers that some rules take.

    Raises:
        InputError: the rule's own number is out of range.
    """

    aggregation: Aggregation
    trimmed_share: float = 0.0
    """Of ``trimmed_mean``: the share of clients left out at either end of every number, above 0 and below 1/2."""
    assumed_attackers: int = 0
    """Of ``multi_krum``: f, at least 1."""

    def __post_init__(self) -> None:
        if self.aggregation is Aggregation.TRIMMED_MEAN and not 0 < self.trimmed_share < 0.5:
            raise InputError(f"trimmed_mean needs a trimmed_share above 0 and below 0.5, got {self.trimmed_share:g}")
        if self.aggregation is Aggregation.MULTI_KRUM and self.assumed_attackers < 1:
            raise InputError(f"multi_krum needs assumed_attackers of at least 1, got {self.assumed_attackers}")


MEAN = AggregationRule(Aggregation.FEDAVG)


def check_aggregation(rule: AggregationRule, spec: AdapterSpec, *, clients_per_round: int) -> None:
    """Checks that a rule fits the adapter and the cohort, before any round.

    ``ffa`` stands with a frozen A and every other rule with a trained one, ``product`` with LoRA, and ``multi_krum``
    with 2 f + 3 clients.

    Raises:
        InputError: they do not go together.
    """
    name = rule.aggregation.value
    if (rule.aggregation is Aggregation.FFA) != spec.freezes_down:
        wanted = "frozen" if rule.aggregation is Aggregation.FFA else "trained"
        raise InputError(f"aggregation {name!r} needs LoRA's A {wanted}; the adapter has it otherwise")
    if rule.aggregation is Aggregation.PRODUCT and spec.kind is not AdapterKind.LORA:
        raise InputError(f"aggregation {name!r} needs an adapter of kind 'lora', got {spec.kind.value!r}")
    needed = least_clients(rule.assumed_attackers)
    if rule.aggregation is Aggregation.MULTI_KRUM and clients_per_round < needed:
        raise InputError(
            f"aggregation {name!r} with {rule.assumed_attackers} assumed attackers needs at least {needed} clients in "
            f"a round (2 f + 3), got {clients_per_round}"
        )
