"""A server without the model owner's certificate cannot make a client train, nor learn who it is."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_clients.introduction import introduce
from fl_clients.session import EmulatorShelf, take_part
from fl_server.owner import INITIAL_ADAPTER_FILE
from scaleot_core.bundle import SigningKey, VerifyingKey, generate_signing_key
from scaleot_core.errors import VerificationError
from scaleot_core.federation.messages import (
    Instructions,
    IntroductionRequest,
    Payload,
    Receipt,
    UpdateStatement,
    digest_of,
)
from scaleot_core.federation.signing import certify_run, open_signed, sign
from tests.support.federations import Federation, build_federation, server_key

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(days=1)
QUESTION = IntroductionRequest(run="run-1", nonce="a" * 64)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("requests"), clients=1)


def certificate(
    federation: Federation,
    *,
    run: str = "run-1",
    bundle: str = "",
    key: VerifyingKey | None = None,
    owner: SigningKey | None = None,
    end: datetime = LATER,
) -> bytes:
    return certify_run(
        run,
        bundle or federation.settings.bundle_digest,
        key or server_key().public,
        owner=owner or federation.owner_key,
        not_after=end,
    )


HOSTILE: dict[str, tuple[Callable[[Federation], Payload], str]] = {
    "no certificate": (lambda f: Payload(sign(QUESTION, server_key())), "certificate.json"),
    "another owner's certificate": (
        lambda f: Payload(sign(QUESTION, server_key()), certificate=certificate(f, owner=generate_signing_key())),
        "certificate.signature",
    ),
    "a certificate for another key": (
        lambda f: Payload(sign(QUESTION, generate_signing_key()), certificate=certificate(f)),
        "statement.signature",
    ),
    "a certificate for another run": (
        lambda f: Payload(sign(QUESTION, server_key()), certificate=certificate(f, run="run-2")),
        "certificate.run",
    ),
    "a certificate that is over": (
        lambda f: Payload(sign(QUESTION, server_key()), certificate=certificate(f, end=NOW - timedelta(seconds=1))),
        "certificate.expired",
    ),
    "another kind of statement": (
        lambda f: Payload(
            sign(Receipt(run="run-1", round=1, client="x", status="accepted"), server_key()), certificate=certificate(f)
        ),
        "statement.signature",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_s12_a_server_that_the_owner_has_not_certified_is_refused(federation: Federation, name: str) -> None:
    ask, code = HOSTILE[name]
    with pytest.raises(VerificationError) as refused:
        introduce(federation.data_owner_directories[0], ask(federation), now=NOW)
    assert refused.value.code == code


def instructions(federation: Federation, **changes: object) -> tuple[Instructions, bytes]:
    blob = (federation.owner_directory / INITIAL_ADAPTER_FILE).read_bytes()
    settings = federation.settings
    fields = {
        **{name: getattr(settings, name) for name in ("run", "bundle_digest", "adapter", "local_steps", "batch_size")},
        **{name: getattr(settings, name) for name in ("learning_rate", "optimizer", "max_tokens", "seed")},
        **{"round": 1, "attempt": 1, "nonce": "a" * 64, "client": "clinic-0", "base_sha256": digest_of(blob)},
        **changes,
    }
    return Instructions(**fields), blob  # type: ignore[arg-type]


def test_a_server_certified_for_another_bundle_cannot_make_a_client_train(federation: Federation) -> None:
    asked, blob = instructions(federation)
    payload = Payload(sign(asked, server_key()), blob, certificate(federation, bundle="d" * 64))
    with pytest.raises(VerificationError, match=r"certificate\.bundle"):
        take_part(federation.data_owner_directories[0], payload, EmulatorShelf(), now=NOW)


def test_f03_a_finished_update_is_on_the_disk_before_it_leaves_and_leaves_again_as_it_was(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=1)
    directory, key = federation.data_owner_directories[0], federation.members["clinic-0"]
    first = take_part(directory, federation.ask(*instructions(federation)), EmulatorShelf(), now=NOW)
    (blob,) = directory.rglob("releases/run-run-1/1/update.safetensors")
    assert blob.read_bytes() == first.tensors
    (directory / "train.jsonl.gz").unlink()  # nothing is trained again
    asked, base = instructions(federation, attempt=2, nonce="b" * 64)
    again = take_part(directory, federation.ask(asked, base), EmulatorShelf(), now=NOW)
    assert again.tensors == first.tensors
    statement = open_signed(again.statement, UpdateStatement, key)
    assert (statement.attempt, statement.nonce) == (2, "b" * 64)


def test_receipts_are_kept_if_they_are_the_servers_and_this_data_owners(tmp_path: Path) -> None:
    federation = build_federation(tmp_path, clients=1)
    directory = federation.data_owner_directories[0]
    own = Receipt(run="run-1", round=3, client="clinic-0", status="refused", code="E_NORM", update_sha256="c" * 64)
    question = federation.ask(QUESTION)
    introduce(directory, replace(question, receipts=(sign(own, server_key()),)), now=NOW)
    (kept,) = directory.rglob("receipt.json")
    assert open_signed(kept.read_bytes(), Receipt, server_key().public) == own
    for forged in (sign(own, generate_signing_key()), sign(own.model_copy(update={"client": "x"}), server_key())):
        with pytest.raises(VerificationError):
            introduce(directory, replace(question, receipts=(forged,)), now=NOW)
