"""What is asked of a server of sealed bundles, and in which form: ``scaleot.distribution.v1``, over gRPC.

There is no protobuf: a request is a small document of canonical JSON, a reply a stream of raw bytes. So nothing has to
be generated or kept in step, and what the server parses is read by the same strict reader as every signed document.

FORMAT. The service is ``scaleot.distribution.v1.Distribution``; all methods are unary-stream. ``<hex64>`` is a
SHA-256.

``Range``
    asks with ``{"length":n,"object":"<hex64>","start":n}`` for bytes of an object, by its name (``FORMAT.md``,
    section 5): 1 to 16 MiB that all lie within it. The reply is exactly these bytes.

``RepositoryFile``
    asks with ``{"file":"metadata/timestamp.json"}`` for a small file of the repository (``repository.py`` beside this
    file): the name is one of those that its pattern has, each looked up and none followed. At most 6 MiB.

``Grant``
    asks with ``{"bundle":"<hex64>"}`` for the grant of the organisation that asks. At most 16 KiB.

``Training``
    tells with ``{"attempt":n,"round":n,"step":n,"steps":n}`` how far the organisation's training is. It is for people
    to look at, and nothing is decided by it. The reply is empty.

A request has at most 512 bytes and a deadline of at most 600 seconds, a message of a reply at most 1 MiB. No path ever
crosses the wire. Who may ask is decided by mutual TLS: the organisation is the common name of the client's certificate.

| status | meaning | ask again? |
|---|---|---|
| ``UNAUTHENTICATED`` | the certificate names no organisation | no |
| ``PERMISSION_DENIED`` | the organisation is unknown or revoked | no |
| ``INVALID_ARGUMENT`` | the request is not of this form, or has no such deadline | no |
| ``NOT_FOUND`` | nothing served has this digest or name, or the organisation has no grant for it | no |
| ``OUT_OF_RANGE`` | the range passes the object's end | no |
| ``DATA_LOSS`` | the server's own file is missing or cut | no |
| ``RESOURCE_EXHAUSTED`` | too many streams or requests at once | yes, later |
"""

from typing import Annotated, Final

from pydantic import Field, model_validator

from scaleot_core.bundle.canonical import Document, Sha256
from scaleot_core.bundle.manifest import BLOCK_BYTES, Size
from scaleot_core.bundle.repository import FILE_PATTERN

SERVICE: Final = "scaleot.distribution.v1.Distribution"
RANGE_METHOD: Final = "Range"
REPOSITORY_FILE_METHOD: Final = "RepositoryFile"
GRANT_METHOD: Final = "Grant"
TRAINING_METHOD: Final = "Training"

MAX_REQUEST_BYTES: Final = 512
MAX_PIECE_BYTES: Final = 1024 * 1024
"""Of one message of a reply: well under gRPC's own limit of 4 MiB, and all that a stream holds in memory."""
MAX_RANGE_BYTES: Final = BLOCK_BYTES
MAX_DEADLINE_SECONDS: Final = 600


class RangeRequest(Document):
    """Asks for bytes of one object."""

    length: Annotated[int, Field(ge=1, le=MAX_RANGE_BYTES)]
    object: Sha256
    start: Size


class RepositoryFileRequest(Document):
    """Asks for a small file of the repository."""

    file: Annotated[str, Field(pattern=FILE_PATTERN)]


class GrantRequest(Document):
    """Asks for the asking organisation's grant of one bundle."""

    bundle: Sha256


class TrainingRequest(Document):
    """Tells at which of ``steps`` steps the asking organisation's training for an attempt at a round is.

    It has room for no loss and no name: the one would be a release of private data, the other the certificate has.
    """

    attempt: Annotated[int, Field(ge=1)]
    round: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _is_within(self) -> "TrainingRequest":
        if self.step > self.steps:
            raise ValueError(f"expected at most step {self.steps}, got {self.step}")
        return self
