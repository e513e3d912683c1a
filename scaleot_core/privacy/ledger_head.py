"""A ledger's head: the last acknowledged line, kept beside the lines and, where the data owner wants, elsewhere too.

Who knows a head knows the whole ledger up to it: a ledger without that line was cut off, or is an older copy.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from scaleot_core.bundle.canonical import Document, Sha256, write_document
from scaleot_core.errors import LedgerError
from scaleot_core.privacy.ledger_lines import LedgerChain, LedgerTerms, LineNumber

HEAD_FILE = "head.json"


class LedgerHead(Document):
    """The last acknowledged line of a ledger."""

    format: Literal["scaleot.ledger-head/1"] = "scaleot.ledger-head/1"
    head: Sha256
    number: LineNumber


def mirrored_head(mirror: Path | None, terms: LedgerTerms) -> tuple[Path, ...]:
    """Returns where the mirror has the head: by the data set, so that a second ledger of it is noticed, too."""
    return () if mirror is None else (mirror / f"ledger-{terms.data_set.sha256}.json",)


def encode_head(chain: LedgerChain) -> bytes:
    """Returns what a head file of these lines holds."""
    return write_document(LedgerHead(head=chain.head, number=len(chain.hashes))) + b"\n"


def read_head(path: Path, source: str) -> LedgerHead:
    """Reads a head file of the ledger ``source``; raises ``LedgerError`` if it is missing or damaged."""
    try:
        return LedgerHead.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LedgerError(source, f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise LedgerError(source, f"{path} is damaged: expected the head of a ledger; put back a copy of it") from error


def check_head(chain: LedgerChain, head: LedgerHead, place: str) -> None:
    """Checks that a chain has the line that was its last one once, as ``place`` says.

    Raises:
        LedgerError: the line is missing or another.
    """
    if head.number > len(chain.hashes):
        raise LedgerError(
            chain.source,
            f"it is missing: {place} names line {head.number}. The ledger was cut off or is an older copy: put back "
            "the newest one",
            line=len(chain.hashes) + 1,
        )
    if chain.hashes[head.number - 1] != head.head:
        fault = f"{place} names it as {head.head}, got {chain.hashes[head.number - 1]}: it is not the same ledger"
        raise LedgerError(chain.source, fault, line=head.number)
