"""What the file of a ledger's lines holds: whole lines and, behind them, perhaps the rest of an interrupted write."""

from contextlib import suppress

from scaleot_core.errors import LedgerError
from scaleot_core.privacy.ledger_lines import LedgerChain


def read_lines(chain: LedgerChain, content: bytes, *, acknowledged: int) -> bytes:
    """Adds the lines of ``content`` to a chain and returns what remains of an interrupted write.

    An interrupted write leaves part of a line without its end or, after a power cut, a last line with blocks missing.

    Raises:
        LedgerError: a line is damaged, changed or moved; the chain holds those before it.
    """
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            chain.read_line(line)
        except LedgerError:
            if acknowledged < number == len(lines) and not rest:
                return line + b"\n"
            raise
    return rest


def first_other_line(chain: LedgerChain, content: bytes) -> int:
    """Returns the number of the first line of ``content`` that is not the chain's.

    Where the one has all lines of the other, it is the first that the other lacks.
    """
    found = LedgerChain(chain.source)
    with suppress(LedgerError):
        read_lines(found, content, acknowledged=len(chain.hashes))
    pairs = enumerate(zip(chain.hashes, found.hashes, strict=False), 1)
    common = min(len(chain.hashes), len(found.hashes))
    return next((number for number, (ours, theirs) in pairs if ours != theirs), common + 1)
