import shutil
from pathlib import Path

import pytest

from scaleot_core.privacy.ledger import open_ledger
from scaleot_core.privacy.ledger_lines import Opened
from scaleot_core.privacy.ledger_summary import ReleaseStatus, summarise
from tests.golden.make_ledger import BEGIN, EVENTS, RELEASE, TERMS
from tests.support.ledgers import gaussian_epsilon

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("version", ["ledger-1"])
def test_a_ledger_of_every_released_format_still_opens(version: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / version, tmp_path / "ledger")
    with open_ledger(tmp_path / "ledger", TERMS, epsilon_of=gaussian_epsilon, now=BEGIN) as ledger:
        assert ledger.head == "ee81024520991227b8bc4b94e026d5de24b86db4f5aa3843b5078b75371f6303"
        assert ledger.released("golden", 0) is None
        assert ledger.released("golden", 1) == RELEASE
        ledger.check_not_rolled_back(ledger.head)
        types = [entry.type for entry in ledger.chain.entries]
        assert types == ["opened", "reserved", "recovered", "budget", "reserved", "committed"]
        assert isinstance(ledger.chain.opened, Opened)
        assert ledger.chain.opened.terms == TERMS
        summary = summarise(ledger.chain, gaussian_epsilon)
    assert summary.budget_epsilon == 8.0
    assert summary.spent_epsilon == pytest.approx(gaussian_epsilon([*EVENTS, EVENTS[1]], 1e-6))
    assert [release.events for release in summary.releases] == [EVENTS[1:], EVENTS]
    assert [release.status for release in summary.releases] == [ReleaseStatus.RESERVED, ReleaseStatus.COMMITTED]
    assert summary.recovered_lines == (3,)


def test_the_fingerprint_of_the_golden_records_stays_what_it_is() -> None:
    assert TERMS.data_set.sha256 == "b2e77e5bf3fcabdc6758ce8237d6580ebd49a7091ed0aa359816ebf10313751a"
    assert TERMS.data_set.records == 5
