"""A federation of data owners that insist on differential privacy, and what a server asks of them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_clients.own_ledger import create_own_ledger
from fl_clients.policy import read_data_owner_file
from fl_server.owner import INITIAL_ADAPTER_FILE
from scaleot_core.federation.messages import Instructions, Payload, PrivacyRequest, digest_of
from scaleot_core.training.data import read_records
from tests.support.federations import Federation, build_federation, rewrite_data_owner

OWN_PRIVACY = """
[privacy]
epsilon = 8.0
delta = 1e-3
mechanisms = ["dp-sgd", "dpzero"]
"""


def own_privacy(mechanism: str) -> str:
    """Returns a data owner's budget for a mechanism and others of its unit."""
    return (
        OWN_PRIVACY.replace('"dp-sgd", "dpzero"', '"update-gaussian"')
        if mechanism == "update-gaussian"
        else OWN_PRIVACY
    )


def privacy_request(mechanism: str = "dp-sgd", **changes: Any) -> PrivacyRequest:
    fields = {"mechanism": mechanism, "rounds": 2, "max_grad_norm": 1.0, "num_directions": 2, "smoothing": 1e-3}
    return PrivacyRequest(**{**fields, **changes})


def private_federation(root: Path, mechanism: str, *, own: str | None = None, **changes: Any) -> Federation:
    """Writes a federation whose data owners have a budget and a ledger, and declare how many records they have."""
    federation = build_federation(root, privacy=privacy_request(mechanism), **changes)
    for directory in federation.data_owner_directories:
        declared = f"declared_records = {len(read_records(directory / 'train.jsonl.gz'))}\n"
        privacy = f"{own or own_privacy(mechanism)}{declared}"
        rewrite_data_owner(directory, 'device = "cpu"\n', f'device = "cpu"\n{privacy}')
        create_own_ledger(read_data_owner_file(directory), now=datetime.now(UTC))
    return federation


def instructions(federation: Federation, **changes: Any) -> Payload:
    """Returns the first round's request to the first client."""
    blob = (federation.owner_directory / INITIAL_ADAPTER_FILE).read_bytes()
    settings = federation.settings
    fields = {
        "run": settings.run,
        "round": 1,
        "attempt": 1,
        "nonce": "a" * 64,
        "client": "clinic-0",
        "base_sha256": digest_of(blob),
        "bundle_digest": settings.bundle_digest,
        "adapter": settings.adapter,
        "local_steps": settings.local_steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "optimizer": settings.optimizer,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "privacy": settings.privacy,
    }
    return federation.ask(Instructions(**{**fields, **changes}), blob)
