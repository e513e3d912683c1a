"""The data owner's own ledger: made once and on purpose, afterwards only found, and read against file and records.

A ledger that made itself where it is missing would be a fresh budget for whoever deletes it.
"""

from collections.abc import Sequence
from datetime import datetime
from os.path import lexists

from fl_clients.policy import DATA_OWNER_FILE, DataOwnerFile, OwnPrivacy
from scaleot_core.errors import InputError
from scaleot_core.privacy.accountant import Accountant
from scaleot_core.privacy.data_set import fingerprint
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger import check_terms
from scaleot_core.privacy.ledger_file import LINES_FILE, create_ledger, read_chain
from scaleot_core.privacy.ledger_head import check_head, mirrored_head, read_head
from scaleot_core.privacy.ledger_lines import LedgerChain, LedgerTerms
from scaleot_core.privacy.ledger_summary import LedgerSummary, summarise
from scaleot_core.privacy.units import PrivacyScope, scope_of, unit_of
from scaleot_core.training.data import Record, read_records


def ledger_terms(privacy: OwnPrivacy, records: Sequence[Record]) -> LedgerTerms:
    """Returns what the ledger of these records is about; all mechanisms of a data owner's file have one unit."""
    unit, neighbouring = unit_of(privacy.mechanisms[0])
    return LedgerTerms(data_set=fingerprint(records), unit=unit, neighbouring=neighbouring, delta=privacy.delta)


def own_privacy(own: DataOwnerFile) -> OwnPrivacy:
    """Returns the data owner's budget.

    Raises:
        InputError: it has none.
    """
    if own.privacy is None:
        raise InputError(
            f"{own.organisation} has no privacy budget, and its updates leave without noise: for one, write [privacy] "
            f"with epsilon, delta, mechanisms and declared_records into {DATA_OWNER_FILE}"
        )
    return own.privacy


def check_has_ledger(privacy: OwnPrivacy) -> None:
    """Checks that the ledger was made.

    Raises:
        InputError: it was not, or it is lost.
    """
    if not lexists(privacy.ledger):
        raise InputError(
            f"no privacy ledger at {privacy.ledger}; make it once with `scaleot budget DIRECTORY --create`, where "
            f"DIRECTORY has {DATA_OWNER_FILE}. If there was one, put it back: a new one would forget what was spent"
        )


def create_own_ledger(own: DataOwnerFile, *, now: datetime) -> None:
    """Makes the ledger of the data owner's records with the budget of its file.

    Raises:
        InputError: the file gives no budget, or the records cannot be read.
        OutputError: there is a ledger already, or it cannot be written.
        LedgerError: the mirror knows a ledger of these records.
    """
    privacy = own_privacy(own)
    terms = ledger_terms(privacy, read_records(own.data))
    create_ledger(privacy.ledger, terms, budget_epsilon=privacy.epsilon, now=now, mirror=privacy.ledger_mirror)


def summarise_own_ledger(own: DataOwnerFile) -> LedgerSummary:
    """Returns what the ledger says, and how many rounds like its last one still fit in the file's budget.

    Raises:
        InputError: the file gives no budget, there is no ledger, or the records cannot be read.
        LedgerError: the ledger cannot be believed, is older than the mirror, or is of other records or terms.
    """
    privacy = own_privacy(own)
    check_has_ledger(privacy)
    terms = ledger_terms(privacy, read_records(own.data))
    # the mirror first: a round may write meanwhile, and a mirror that is ahead of its ledger tells of an older copy
    heads = {
        path: read_head(path, str(privacy.ledger), lines=privacy.ledger / LINES_FILE)
        for path in mirrored_head(privacy.ledger_mirror, terms)
        if lexists(path)
    }
    chain = read_chain(privacy.ledger)
    check_terms(chain, terms)
    for path, head in heads.items():
        check_head(chain, head, str(path))
    return summarise(chain, Accountant().epsilon, _last_round(chain), budget_epsilon=privacy.epsilon)


def scope_of_ledger(summary: LedgerSummary) -> PrivacyScope:
    """Returns what every epsilon of the ledger is about."""
    rates = (event.sample_rate for release in summary.releases for event in release.events)
    return scope_of((summary.terms.unit, summary.terms.neighbouring), rates)


def declared_number_warnings(privacy: OwnPrivacy, records: int) -> tuple[str, ...]:
    """Says, for people, where the declared number of records is far from how many there are."""
    declared = privacy.declared_records
    if records <= 2 * declared and declared <= 2 * records:
        return ()
    effect = (
        "samples are larger than was asked for, and a server may refuse the update as too long"
        if records > declared
        else "samples are smaller than was asked for, and the update weighs more than it should"
    )
    return (f"warning: declared_records = {declared}, but there are {records} records: {effect}",)


def _last_round(chain: LedgerChain) -> Sequence[PrivacyEvent]:
    return chain.reserved[-1].events if chain.reserved else ()
