"""The organisations of a registry, for a terminal and for other programs."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from fl_server.registry import Member, Registry
from scaleot_core.bundle.canonical import Json


def print_members(members: Iterable[Member], console: Console) -> None:
    """Prints one row for each organisation, in order of approval."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("organisation", "status", "approved", "certificate until", "weighs at most"):
        table.add_column(column, overflow="fold")
    for member in members:
        out = "" if member.revoked_from_round is None else f" from round {member.revoked_from_round}"
        table.add_row(
            member.name,
            f"{member.status}{out}",
            f"{member.approved_at:%Y-%m-%d}",
            f"{member.certificate_not_after:%Y-%m-%d}",
            f"{member.max_examples:,}",
        )
    console.print(table)


def members_to_json(registry: Registry) -> Json:
    """Returns the members and the head of the registry that names them."""
    head = registry.head
    return {
        "head": {"number": head.number, "sha256": head.sha256},
        "organisations": [_to_json(member) for member in registry.members()],
    }


def _to_json(member: Member) -> Json:
    return {
        "approved_at": member.approved_at.isoformat(timespec="seconds"),
        "certificate_not_after": member.certificate_not_after.isoformat(timespec="seconds"),
        "certificate_sha256s": list(member.certificate_sha256s),
        "key_ids": list(member.verifying_key.key_ids),
        "max_examples": member.max_examples,
        "name": member.name,
        "node_public_key": member.node_public_key,
        "request_sha256": member.request_sha256,
        "revoked_from_round": member.revoked_from_round,
        "status": member.status.value,
    }
