from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleot_core.errors import DataError
from scaleot_core.training.data import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Message,
    PartitionMethod,
    Record,
    TextRecord,
    partition_records,
)


def choices(count: int, labels: int = 2) -> list[Record]:
    names = tuple(f"label {index}" for index in range(labels))
    return [ChoiceRecord(f"record {index}", names, index % labels) for index in range(count)]


def label_counts(share: tuple[Record, ...]) -> Counter[int]:
    return Counter(record.label for record in share if isinstance(record, ChoiceRecord))


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    clients=st.integers(1, 12),
    method=st.sampled_from(["iid", "dirichlet"]),
    alpha=st.sampled_from([1e-300, 1e-3, 0.5, 1e6]),
    seed=st.integers(0, 2**63),
)
def test_every_record_goes_to_one_client_and_no_client_is_left_empty(
    count: int, clients: int, method: PartitionMethod, alpha: float, seed: int
) -> None:
    records = choices(count) if seed % 2 else [TextRecord("x" * index) for index in range(count)]
    if count < clients:
        with pytest.raises(DataError, match=f"each of {clients} clients, got {count} records"):
            partition_records(records, clients=clients, method=method, alpha=alpha, seed=seed)
        return
    shares = partition_records(records, clients=clients, method=method, alpha=alpha, seed=seed)
    assert len(shares) == clients
    assert all(shares)
    assert Counter(record for share in shares for record in share) == Counter(records)


@pytest.mark.parametrize("method", ["iid", "dirichlet"])
def test_a_seed_decides_the_partition(method: PartitionMethod) -> None:
    first, again, other = (
        partition_records(choices(100), clients=5, method=method, alpha=0.5, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_iid_sizes_differ_by_at_most_one_and_labels_are_mixed() -> None:
    shares = partition_records(choices(1003), clients=4, method="iid", alpha=0.5, seed=0)
    assert sorted(map(len, shares)) == [250, 251, 251, 251]
    for share in shares:
        assert 0.4 < label_counts(share)[1] / len(share) < 0.6


def test_a_client_keeps_the_order_of_the_file() -> None:
    records = choices(200)
    place = {record: index for index, record in enumerate(records)}
    for share in partition_records(records, clients=4, method="dirichlet", alpha=0.5, seed=0):
        places = [place[record] for record in share]
        assert places == sorted(places)


SEEDS = range(20)


def largest_label_share(alpha: float) -> float:
    """The share of records that have the most frequent label of their client, a mean over seeds."""
    total = 0
    for seed in SEEDS:
        shares = partition_records(choices(1000, 4), clients=8, method="dirichlet", alpha=alpha, seed=seed)
        total += sum(max(label_counts(share).values()) for share in shares)
    return total / 1000 / len(SEEDS)


def test_the_smaller_alpha_the_more_the_labels_of_clients_differ() -> None:
    assert largest_label_share(0.05) > 0.7
    assert largest_label_share(0.05) > largest_label_share(0.5) > largest_label_share(1000.0)
    assert largest_label_share(1000.0) < 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda size: TextRecord("x" * size),
        lambda size: CompletionRecord("x" * size, "y"),
        lambda size: AnswerRecord("x" * size, ("y",)),
        lambda size: ChatRecord((Message("user", "x" * size), Message("assistant", "y"))),
    ],
)
def test_records_without_a_label_are_skewed_by_length(make: object) -> None:
    records = [make(size) for size in range(1000)]  # type: ignore[operator]
    lengths = {record: size for size, record in enumerate(records)}

    def spread(alpha: float) -> float:
        total = 0.0
        for seed in SEEDS:
            shares = partition_records(records, clients=5, method="dirichlet", alpha=alpha, seed=seed)
            means = [sum(lengths[record] for record in share) / len(share) for share in shares]
            total += max(means) - min(means)
        return total / len(SEEDS)

    assert spread(0.05) > 300
    assert spread(1000.0) < 50


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha: float) -> None:
    with pytest.raises(DataError, match="alpha"):
        partition_records(choices(10), clients=2, method="dirichlet", alpha=alpha, seed=0)


def test_a_federation_without_clients_is_refused() -> None:
    with pytest.raises(DataError, match="at least one client"):
        partition_records(choices(10), clients=0, method="iid", alpha=1.0, seed=0)
