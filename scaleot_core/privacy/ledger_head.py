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


def read_head(path: Path, source: str, *, lines: Path) -> LedgerHead:
    """Reads a head file of the ledger ``source``, whose lines are in the file ``lines``.

    Raises:
        LedgerError: the head is missing or damaged. At fault is then the last line, which no head vouches for.
    """
    try:
        return LedgerHead.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _lost_head(path, source, f"cannot be read: {error.strerror or error}", lines) from error
    except ValidationError as error:
        raise _lost_head(path, source, "is damaged", lines) from error


def check_head(chain: LedgerChain, head: LedgerHead, place: str) -> None:
    """Checks that a chain has the line that was its last one once, as ``place`` says.

    Raises:
        LedgerError: the line is missing or another; an earlier one may be another already.
    """
    if head.number > len(chain.hashes):
        raise LedgerError(
            chain.source,
            f"it is missing: {place} names line {head.number}. The ledger was cut off or is an older copy: put back "
            "the newest one",
            line=len(chain.hashes) + 1,
        )
    if chain.hashes[head.number - 1] != head.head:
        raise LedgerError(
            chain.source,
            f"{place} names it as {head.head}, got {chain.hashes[head.number - 1]}: it is not the same ledger, from "
            "this line or an earlier one on. Put back the newest one",
            line=head.number,
        )


def _lost_head(path: Path, source: str, fault: str, lines: Path) -> LedgerError:
    hint = "expected the head of the ledger, which names its last line; put back a copy of the head"
    return LedgerError(source, f"{path} {fault}: {hint}", line=_last_line(lines))


def _last_line(lines: Path) -> int:
    """Returns the number of the last line that has its end; 1 where there is none."""
    try:
        return max(1, lines.read_bytes().count(b"\n"))
    except OSError:
        return 1
