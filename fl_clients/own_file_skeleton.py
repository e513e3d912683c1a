"""The first ``data-owner.toml`` of a home: every limit at its default, private, each line with its meaning."""

import math
from pathlib import Path

import tomli_w

from fl_clients.policy import Policy

DEFAULT_EPSILON = 8.0
MOST_DELTA = 1e-5

_MEANINGS = {
    "max_learning_rate": "of one local step; plain SGD under a small clipping norm needs more, as 32",
    "max_local_steps": "in one round",
    "max_batch_size": "in records",
    "max_tokens": "of one record; longer ones are cut",
    "max_adapter_rank": "of the matrices that are trained",
}


def skeleton(organisation: str, data: Path, *, records: int) -> str:
    """Returns the text of the file; ``records`` is how many ``data`` holds."""
    policy = Policy().model_dump()
    limits = "\n".join(f"{f'{name} = {value}':28} # {_MEANINGS[name]}" for name, value in policy.items())
    declared = _declared(records)
    own = tomli_w.dumps({"organisation": organisation, "data": str(data.absolute())})
    return f"""\
# What {organisation} decides about its part in the federation. Of this file only the name is ever sent and, under
# [privacy], the declared number of records and the noise that follows from the budget.
# Keys, certificates and addresses lie beside it, where `scaleot org init` and `org accept` put them.
{own}
# Whether the model owner is told the step that training is at. Left out: only without [privacy], because how fast steps
# come tells of the private text and of the secret samples, and no epsilon covers it.
# tells_steps = true

[policy]
# The most that a server may ask in one round; what asks for more is refused.
{limits}

[privacy]
# Differential privacy of every update that leaves. Before the first round: scaleot budget DIRECTORY --create
# Without this section updates leave as they are, and can leak training text.
epsilon = {DEFAULT_EPSILON}{" " * 15} # the budget of all rounds of all runs together; less is more private
delta = {_delta(declared)}{" " * 15} # keep it well below 1 / number of records, which is 1 / {records}
mechanisms = ["dp-sgd"]      # those agreed to: dp-sgd, dpzero, lmo-dp hide one record each
declared_records = {declared}{" " * 9} # about how many there are: told, so leave it as it is when records change
# ledger_mirror = "/mnt/elsewhere"  # a directory on another disk, by which an older copy of the ledger is noticed
"""


def _declared(records: int) -> int:
    """Returns the power of two nearest to a number of records, by their ratio: seldom another for one record more."""
    return 1 << round(math.log2(records))


def _delta(declared: int) -> float:
    """Returns a power of ten, at most a tenth of one declared record: noise follows from it and is told."""
    return min(MOST_DELTA, float(f"1e{math.floor(math.log10(0.1 / declared))}"))
