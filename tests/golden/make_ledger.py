"""Makes the golden ledger of a format version, once, when the format is released.

    python -m tests.golden.make_ledger tests/golden/ledger-1

A ledger that was released is never made again; it must open for ever.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scaleot_core.privacy.data_set import fingerprint
from scaleot_core.privacy.events import PrivacyEvent
from scaleot_core.privacy.ledger import open_ledger
from scaleot_core.privacy.ledger_file import LINES_FILE, create_ledger
from scaleot_core.privacy.ledger_lines import LedgerTerms
from scaleot_core.training.records import AnswerRecord, ChatRecord, ChoiceRecord, CompletionRecord, Message, TextRecord
from tests.support.ledgers import gaussian_epsilon

RECORDS = (
    TextRecord("Ein Satz über Bäume.\n"),
    CompletionRecord("2 + 2 =", " 4"),
    ChoiceRecord("the film is", ("bad", "good"), 1),
    AnswerRecord("capital of France?", ("Paris", "paris")),
    ChatRecord((Message("user", "hello"), Message("assistant", "hello 👋"))),
)
"""One of each kind, which no data file has: the fingerprint of each must stay what it is."""
TERMS = LedgerTerms(data_set=fingerprint(RECORDS), delta=1e-6)
EVENTS = (
    PrivacyEvent("gaussian", {"noise_multiplier": 20.0}, 1.0, 25),
    PrivacyEvent("gaussian", {"noise_multiplier": 100 / 3}, 1.0, 1),
)
RELEASE = bytes(range(256))
BEGIN = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def make(directory: Path) -> None:
    """Writes a ledger with a line of every type: a round that lost its noise, and a released one."""
    now = BEGIN
    create_ledger(directory, TERMS, budget_epsilon=4.5, now=now)
    with open_ledger(directory, TERMS, epsilon_of=gaussian_epsilon, now=now) as ledger:
        ledger.reserve("golden", 0, EVENTS[1:], "the noised number of records", now=now)
    with (directory / LINES_FILE).open("ab") as file:
        file.write(b'{"entry":{"count":1,')
    now += timedelta(days=1)
    with open_ledger(directory, TERMS, epsilon_of=gaussian_epsilon, now=now) as ledger:
        ledger.change_budget(8.0, now=now)
        reservation = ledger.reserve("golden", 1, EVENTS, "adapter update, and its noised loss", now=now)
        ledger.commit(reservation, RELEASE, now=now)
    (directory / "ledger.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
