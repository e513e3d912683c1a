"""Rounds of format 1, as they were written once, must still be understood (``tests/golden/make_rounds.py``)."""

import shutil
from pathlib import Path

from fl_server.membership import read_members
from fl_server.owner import read_rounds, read_settings
from fl_server.reception import stated_update
from fl_server.round_store import open_round_store
from fl_server.run_status import read_status
from scaleot_core.errors import Reason
from scaleot_core.federation.messages import Receipt, RunCertificate, decode_statement
from scaleot_core.federation.signing import claimed

GOLDEN = Path(__file__).parents[1] / "golden" / "rounds-1"


def test_rounds_of_format_1_still_open(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(GOLDEN, directory)
    settings = read_settings(directory)
    with open_round_store(directory, settings.run) as store:
        current = store.newest()
        assert current is not None
        assert (current.number, current.state, current.cohort) == (2, "COMMITTED", ("clinic-0", "clinic-1"))
        assert list(current.accepted) == ["clinic-0"] and store.hard_refusals() == {"clinic-1": [1, 2]}
        assert stated_update(current.accepted["clinic-0"].envelope).num_examples == 10
        assert store.blobs.get(current.adapter_sha256) == (directory / "adapter.safetensors").read_bytes()
        envelopes = [row[0] for row in store._connection.execute("select envelope from receipt order by round, client")]
    receipts = [decode_statement(claimed(envelope), Receipt) for envelope in envelopes]
    assert [(one.client, one.code) for one in receipts] == [("clinic-0", None), ("clinic-1", "E_NORM")] * 2
    status = read_status(directory)
    assert status.is_finished and [one.refused for one in status.history] == [{"clinic-1": Reason.NORM}] * 2
    assert read_rounds(directory)[1].train_loss == 1.0
    certificate = decode_statement(claimed((directory / "run.certificate.json").read_bytes()), RunCertificate)
    assert (certificate.run, certificate.bundle_digest) == (settings.run, settings.bundle_digest)
    assert read_members(directory / "members.json").verifying_key("clinic-1") is not None
