"""What the server of the rounds signs with.

The owner key signs bundles and grants, so it has no business on a machine that talks to clients. The server has a key
of its own for each run, and the owner key's certificate that it may speak in this run, with this bundle, until a day.
Who steals it can ask data owners to train, within their policies, and forge receipts of that run: no more.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from scaleot_core.bundle import SigningKey, generate_signing_key, load_signing_key, save_signing_key
from scaleot_core.bundle.files import replace_file
from scaleot_core.bundle.seal import whole_second
from scaleot_core.errors import InputError
from scaleot_core.federation.messages import Payload, StatementKind
from scaleot_core.federation.signing import certify_run, sign

RUN_KEY_FILE, CERTIFICATE_FILE = "run.key", "run.certificate.json"
RUN_LIFETIME = timedelta(days=90)
"""As long as a TLS certificate; a run that takes longer is made anew."""


@dataclass(frozen=True)
class RunVoice:
    """The server's key of one run, and by what right it speaks."""

    key: SigningKey
    certificate: bytes

    def say(self, statement: StatementKind, tensors: bytes = b"", receipts: tuple[bytes, ...] = ()) -> Payload:
        """Returns a signed request."""
        return Payload(sign(statement, self.key), tensors, self.certificate, receipts)


def write_run_key(directory: Path, run: str, bundle_digest: str, *, owner: SigningKey, now: datetime) -> None:
    """Makes the key of a new run and certifies it; an earlier run's goes."""
    key, not_after = generate_signing_key(), whole_second(now + RUN_LIFETIME)
    (directory / RUN_KEY_FILE).unlink(missing_ok=True)
    save_signing_key(key, directory / RUN_KEY_FILE)
    certificate = certify_run(run, bundle_digest, key.public, owner=owner, not_after=not_after)
    replace_file(directory / CERTIFICATE_FILE, certificate, mode=0o644)


def read_run_voice(directory: Path) -> RunVoice:
    """Reads what ``write_run_key`` wrote; raises ``InputError`` or ``VerificationError`` if it cannot be used."""
    try:
        certificate = (directory / CERTIFICATE_FILE).read_bytes()
    except OSError as error:
        raise InputError(f"the run's certificate cannot be read: {error}") from error
    return RunVoice(load_signing_key(directory / RUN_KEY_FILE), certificate)
