"""The data owners' records of a run file, read and divided before anything is computed: faults in them show at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl_server.compress import asset_or_path
from scaleot_core.errors import DataError
from scaleot_core.progress import Reporter
from scaleot_core.run_file import CanarySection, RunFile
from scaleot_core.seeds import derive_seed, generator_for
from scaleot_core.training.data import Record, few_shot, partition_records, read_records


@dataclass(frozen=True)
class Data:
    """Everything that a run learns from and is measured on."""

    partitions: tuple[tuple[Record, ...], ...]
    """The training records of every data owner."""
    test: tuple[Record, ...]
    validation: tuple[Record, ...]
    """Empty where the run file names none."""
    canary: tuple[Record, ...] = ()
    """Likewise."""

    @property
    def pooled(self) -> tuple[Record, ...]:
        """All training records, which nobody holds in earnest."""
        return tuple(record for records in self.partitions for record in records)


def read_data(run: RunFile, reporter: Reporter) -> Data:
    """Reads the records; of test and validation the first ``evaluation.examples``.

    Without a test file that many records of the training file are held back.

    Raises:
        DataError: a file cannot be read, is faulty, or has fewer records than there are clients, or of a label fewer
            than ``data.examples_per_class``.
        AssetError: an embedded asset could not be fetched.
    """
    data, federation, count = run.data, run.federation, run.evaluation.examples
    train = read_records(asset_or_path(data.train, reporter))
    if data.test:
        test = read_records(asset_or_path(data.test, reporter))
    else:
        train, test = hold_back(train, count)
    validation = read_records(asset_or_path(data.validation, reporter)) if data.validation else ()
    if data.examples_per_class:
        train = few_shot(train, per_class=data.examples_per_class, seed=run.seed)
    partitions = partition_records(
        train,
        clients=federation.clients,
        method=federation.partition,
        alpha=federation.partition_alpha,
        seed=derive_seed(run.seed, "partition"),
    )
    canary = read_canary_records(run.canary, reporter)
    return Data(partitions, test[:count], validation[:count], canary)


def read_own_data(run: RunFile, reporter: Reporter) -> Data:
    """Reads the records that a model owner holds itself, in earnest: test and validation, and no training record.

    Raises:
        DataError: the run file names no test file, or a file cannot be read or is faulty.
        AssetError: an embedded asset could not be fetched.
    """
    data, count = run.data, run.evaluation.examples
    if not data.test:
        raise DataError("data.test is empty: name a file of records that the model owner may evaluate on")
    test = read_records(asset_or_path(data.test, reporter))
    validation = read_records(asset_or_path(data.validation, reporter)) if data.validation else ()
    return Data((), test[:count], validation[:count])


def read_canary_records(section: CanarySection, reporter: Reporter) -> tuple[Record, ...]:
    """Reads the public text of a run file's canary: no record where it names none.

    Raises:
        DataError: the records cannot be read or are faulty.
        AssetError: an embedded asset could not be fetched.
    """
    return read_records(asset_or_path(section.text, reporter)) if section.text else ()


def hold_back(records: Sequence[Record], count: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Returns the records without ``count`` of them, and those: the same ones whatever a run's seed is.

    Raises:
        DataError: not even one would be left.
    """
    if len(records) <= count:
        raise DataError(
            f"data.test is empty, and of {len(records)} training records evaluation.examples = {count} cannot be held "
            "back: name a test file, or evaluate on fewer examples"
        )
    order = torch.randperm(len(records), generator=generator_for(0, "held back")).tolist()
    back = set(order[:count])
    kept = tuple(record for index, record in enumerate(records) if index not in back)
    return kept, tuple(records[index] for index in sorted(back))
