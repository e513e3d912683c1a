"""A payload as Flower's records, and back.

The model owner's side has the same: neither side imports the other, and the core, where both could, knows no Flower.
"""

from dataclasses import dataclass

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
        signed = _Signed.read(statement)
        if signed is not None and isinstance(tensors, ArrayRecord) and tensors.keys() <= {"blob"}:
            return Payload(
                signed.encoded, tensors["blob"].data if tensors else b"", signed.certificate, signed.receipts
            )
    raise MalformedStatementError((), "a statement and at most one blob", "other records")


@dataclass(frozen=True)
class _Signed:
    encoded: bytes
    certificate: bytes
    receipts: tuple[bytes, ...]

    @classmethod
    def read(cls, record: ConfigRecord) -> "_Signed | None":
        encoded, certificate = record.get("bytes"), record.get("certificate", b"")
        receipts = record.get("receipts", [])
        if not isinstance(encoded, bytes) or not isinstance(certificate, bytes) or not isinstance(receipts, list):
            return None
        envelopes = tuple(receipt for receipt in receipts if isinstance(receipt, bytes))
        return cls(encoded, certificate, envelopes) if len(envelopes) == len(receipts) else None
