"""From the rounds' own state to the audit log, so that no crash between the two loses an event."""

from datetime import UTC, datetime
from pathlib import Path

from fl_server.audit_log import AuditLog
from fl_server.owner import OwnerRunSettings
from fl_server.round_store import RoundStore


def publish_events(store: RoundStore, directory: Path, settings: OwnerRunSettings) -> str | None:
    """Appends the events that wait in the store to the run's audit log, and returns the log's head; ``None`` without.

    An event whose append a crash interrupted is appended again, with the same number.

    Raises:
        ChainError: the audit log is damaged.
        OutputError: the log cannot be written; the events go on waiting.
    """
    if settings.audit_log is None:
        for event in store.events():
            store.forget_event(event.number)
        return None
    log = AuditLog(directory / settings.audit_log)
    for event in store.events():
        body = {"run": settings.run, "event": event.number, **event.body}
        log.append(event.type, body, now=datetime.now(UTC))
        store.forget_event(event.number)
    return log.head.sha256
