"""A payload as Flower's records, and back.

The data owner's side has the same: neither side imports the other, and the core, where both could, knows no Flower.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from scaleot_core.errors import MalformedStatementError
from scaleot_core.federation.messages import Payload

# Array's ``stype`` names a serialisation; ours is no pickle and no npy, so nothing of Flower's ever parses the bytes.
_SAFETENSORS = "safetensors"


def to_records(payload: Payload) -> RecordDict:
    """Returns a message's content: the statement and what goes with it, and the tensors as one array of bytes."""
    signed: dict[str, bytes | list[bytes]] = {"bytes": payload.statement}
    if payload.certificate:
        signed["certificate"] = payload.certificate
    if payload.receipts:
        signed["receipts"] = list(payload.receipts)
    records = RecordDict({"statement": ConfigRecord({**signed})})
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
        encoded, certificate = statement.get("bytes"), statement.get("certificate", b"")
        receipts = statement.get("receipts", [])
        is_blob = isinstance(tensors, ArrayRecord) and tensors.keys() <= {"blob"}
        are_receipts = isinstance(receipts, list) and all(isinstance(receipt, bytes) for receipt in receipts)
        if isinstance(encoded, bytes) and isinstance(certificate, bytes) and is_blob and are_receipts:
            return Payload(encoded, tensors["blob"].data if tensors else b"", certificate, tuple(receipts))
    raise MalformedStatementError((), "a statement and at most one blob", "other records")
