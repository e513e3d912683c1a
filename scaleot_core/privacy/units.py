"""Whose presence each mechanism hides; who only names it needs no PyTorch."""

from typing import Final

RECORD_UNIT: Final = ("one training record", "add/remove")
DATA_SET_UNIT: Final = ("all records of a data owner", "all of them or none")
_OF_WHOLE_DATA_SETS: Final = frozenset({"update-gaussian"})


def unit_of(mechanism: str) -> tuple[str, str]:
    """Returns whose presence a mechanism hides, and what a neighbouring data set is; a ledger is about one of both.

    The update of a whole data set moves by up to twice its bound when one record comes or goes, so what
    ``update-gaussian`` is charged means nothing in records.
    """
    return DATA_SET_UNIT if mechanism in _OF_WHOLE_DATA_SETS else RECORD_UNIT
