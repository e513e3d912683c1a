import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fl_clients.wire
import fl_server.wire
from scaleot_core.errors import MalformedStatementError
from scaleot_core.federation.messages import Payload

SIDES = pytest.mark.parametrize("side", [fl_server.wire, fl_clients.wire])
BLOB = ArrayRecord({"blob": Array("uint8", (3,), "safetensors", b"abc")})
STATEMENT = ConfigRecord({"bytes": b"{}"})


@pytest.mark.parametrize("payload", [Payload(b"{}"), Payload(b"{}", b"\0\1\2" * 1000)])
def test_each_side_reads_what_the_other_wrote(payload: Payload) -> None:
    assert fl_clients.wire.from_records(fl_server.wire.to_records(payload)) == payload
    assert fl_server.wire.from_records(fl_clients.wire.to_records(payload)) == payload


@SIDES
@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"tensors": BLOB}),
        RecordDict({"statement": STATEMENT, "more": STATEMENT}),
        RecordDict({"statement": STATEMENT, "tensors": ArrayRecord({"other": BLOB["blob"]})}),
        RecordDict({"statement": STATEMENT, "tensors": ArrayRecord({"blob": BLOB["blob"], "b": BLOB["blob"]})}),
        RecordDict({"statement": STATEMENT, "tensors": MetricRecord({"blob": 1.0})}),
        RecordDict({"statement": ConfigRecord({"bytes": "{}"})}),
        RecordDict({"statement": ConfigRecord({"bytes": [b"{}"]})}),
        RecordDict({"statement": MetricRecord({"bytes": 1})}),
        RecordDict({"statement": ConfigRecord()}),
    ],
)
def test_other_records_are_refused(side, records: RecordDict) -> None:
    with pytest.raises(MalformedStatementError):
        side.from_records(records)
