"""A payload as Flower's records, and back.

The data owner's side has the same: neither side imports the other, and the core, where both could, knows no Flower.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from scaleot_core.errors import MalformedStatementError
from scaleot_core.federation.messages import Payload

# Array's ``stype`` names a serialisation; ours is no pickle and no npy, so nothing of Flower's ever parses the bytes.
_SAFETENSORS = "safetensors"


def to_records(payload: Payload) -> RecordDict:
    """Returns a message's content: the statement, and the tensors as one array of bytes where there are any."""
    records = RecordDict({"statement": ConfigRecord({"bytes": payload.statement})})
    if payload.tensors:
        array = Array("uint8", (len(payload.tensors),), _SAFETENSORS, payload.tensors)
        records["tensors"] = ArrayRecord({"blob": array})
    return records


def from_records(records: RecordDict) -> Payload:
    """Reads what ``to_records`` made.

    Raises:
        MalformedStatementError: the records are others, more or fewer.
    """
    statement, tensors = records.get("statement"), records.get("tensors", ArrayRecord())
    if records.keys() <= {"statement", "tensors"} and isinstance(statement, ConfigRecord):
        encoded = statement.get("bytes")
        if isinstance(encoded, bytes) and isinstance(tensors, ArrayRecord) and tensors.keys() <= {"blob"}:
            return Payload(encoded, tensors["blob"].data if tensors else b"")
    raise MalformedStatementError((), "a statement and at most one blob", "other records")
