"""Splits records among the clients of a simulated federation."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from scaleot_core.errors import DataError
from scaleot_core.seeds import derive_seed
from scaleot_core.training.records import AnswerRecord, ChatRecord, ChoiceRecord, CompletionRecord, Record, TextRecord

PartitionMethod = Literal["iid", "dirichlet"]

_LENGTH_CLASSES = 10


def partition_records(
    records: Sequence[Record], *, clients: int, method: PartitionMethod, alpha: float, seed: int
) -> tuple[tuple[Record, ...], ...]:
    """Returns the records of each client, every record with exactly one client, in the order they came.

    ``iid`` deals shuffled records out evenly: sizes differ by at most one. ``dirichlet`` splits each class by
    proportions drawn from Dir(alpha, ..., alpha); the smaller ``alpha``, the more the clients differ. The class is
    the label of a choice and, for the other kinds, the tenth of the records into which its length in characters falls.

    Source: Hsu, Qi and Brown (2019), arXiv 1909.06335. There each client draws its class proportions and all have
    equal sizes; here, as in most later work (Li et al., 2022, arXiv 2102.02079), each class is split and sizes differ
    too. They draw again until every client has enough; here a client without a record gets one of the largest.

    Raises:
        DataError: fewer records than clients, no client, or an ``alpha`` that is not positive and finite.
    """
    if clients < 1:
        raise DataError(f"expected at least one client, got {clients}")
    if len(records) < clients:
        raise DataError(f"expected at least one record for each of {clients} clients, got {len(records)} records")
    if not 0 < alpha < float("inf"):
        raise DataError(f"expected a positive, finite alpha of the Dirichlet distribution, got {alpha:g}")
    generator = np.random.default_rng(derive_seed(seed, "partition", method))
    shares = _METHODS[method](records, clients, alpha, generator)
    return tuple(tuple(records[index] for index in sorted(share)) for share in shares)


def _iid(records: Sequence[Record], clients: int, alpha: float, generator: np.random.Generator) -> list[list[int]]:
    return [share.tolist() for share in np.array_split(generator.permutation(len(records)), clients)]


def _dirichlet(
    records: Sequence[Record], clients: int, alpha: float, generator: np.random.Generator
) -> list[list[int]]:
    classes = _classes(records)
    shares: list[list[int]] = [[] for _ in range(clients)]
    for members in (generator.permutation(np.flatnonzero(classes == name)) for name in np.unique(classes)):
        proportions = generator.dirichlet(np.full(clients, alpha))
        bounds = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(int)
        for share, part in zip(shares, np.split(members, bounds), strict=True):
            share.extend(part.tolist())
    for share in shares:
        if not share:
            share.append(max(shares, key=len).pop())
    return shares


def _classes(records: Sequence[Record]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    labels = [record.label for record in records if isinstance(record, ChoiceRecord)]
    if len(labels) == len(records):
        return np.array(labels)
    ranks = np.argsort(np.argsort([_length(record) for record in records], kind="stable"))
    return ranks * _LENGTH_CLASSES // len(records)


def _length(record: Record) -> int:
    match record:
        case TextRecord(text):
            return len(text)
        case CompletionRecord(context, target):
            return len(context) + len(target)
        case ChoiceRecord(context, choices, label):
            return len(context) + len(choices[label])
        case AnswerRecord(context, answers):
            return len(context) + len(answers[0])
        case ChatRecord(messages):
            return sum(len(message.content) for message in messages)


_METHODS: dict[str, Callable[[Sequence[Record], int, float, np.random.Generator], list[list[int]]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
}
