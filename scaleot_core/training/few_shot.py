"""Few-shot data: as many records of every label, drawn by a seed."""

from collections.abc import Sequence

import numpy as np

from scaleot_core.errors import DataError
from scaleot_core.seeds import derive_seed
from scaleot_core.training.records import ChoiceRecord, Record


def few_shot(records: Sequence[Record], *, per_class: int, seed: int) -> tuple[Record, ...]:
    """Returns ``per_class`` records of every label, drawn by ``seed``, in the order they came.

    The labels are those of the record with the most choices, so that one which never occurs is missed too.

    Raises:
        DataError: the records have no label, or a label has fewer records; it says which and how many.
    """
    choices = [record for record in records if isinstance(record, ChoiceRecord)]
    if len(choices) < len(records) or not choices:
        raise DataError(
            "data.examples_per_class draws from each label: expected records of context, choices and label, "
            f"got {type(records[0]).__name__ if records else 'none'}; set it to 0 to take all records"
        )
    labels = np.array([record.label for record in choices])
    counts = np.bincount(labels, minlength=max(len(record.choices) for record in choices))
    if short := [f"label {label} has {count}" for label, count in enumerate(counts) if count < per_class]:
        raise DataError(
            f"data.examples_per_class: expected at least {per_class} training records of every label, "
            f"but {', '.join(short)}: ask for at most {counts.min()}"
        )
    generator = np.random.default_rng(derive_seed(seed, "few shot"))
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(len(counts))]
    return tuple(choices[index] for index in sorted(np.concatenate(drawn).tolist()))
