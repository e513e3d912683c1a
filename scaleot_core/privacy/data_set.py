"""What a ledger knows a data set by: the number of its records and a digest of what they say, in any order."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

from pydantic import Field

from scaleot_core.bundle.canonical import Document, Sha256, canonical_json
from scaleot_core.training.records import Record

MAX_INTEGER = 2**53 - 1
"""The largest integer that canonical JSON can say."""


class DataSet(Document):
    """The fingerprint of a data set: it tells two data sets apart and says nothing else of them.

    The digest of a small or guessable data set can be confirmed by who guesses it: it stays with the data owner.
    """

    records: Annotated[int, Field(ge=0, le=MAX_INTEGER)]
    """How many there are; equal ones count each."""
    sha256: Sha256


def fingerprint(records: Iterable[Record]) -> DataSet:
    """Returns the fingerprint of records: SHA-256 over the sorted SHA-256 digests of each record's canonical JSON.

    Differential privacy does not know an order of records, so neither does the fingerprint: the same records in
    another order, or from another spelling of the same JSON lines, are the same data set and share its budget.
    """
    digests = sorted(hashlib.sha256(canonical_json(asdict(record))).digest() for record in records)
    return DataSet(records=len(digests), sha256=hashlib.sha256(b"".join(digests)).hexdigest())
