"""The one ClientApp, for every engine and for deployment.

It finds the data owner's directory in its own node's configuration or environment: no path comes over the wire. Heavy
imports stand in the handlers, so that Flower's tools load this module at once.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from scaleot_core.errors import InputError

if TYPE_CHECKING:
    from fl_clients.session import EmulatorShelf
    from scaleot_core.federation.messages import Payload

DATA_OWNER_KEY = "data-owner"
DATA_OWNERS_VARIABLE = "SCALEOT_DATA_OWNERS"
PARTITION_KEY = "partition-id"

app = ClientApp()


@app.query("introduce")
def introduce(message: Message, context: Context) -> Message:
    """Answers who this data owner is."""

    def work(directory: Path, payload: "Payload") -> "Payload":
        from fl_clients.introduction import introduce

        return introduce(directory, payload, now=datetime.now(UTC))

    return _answer(message, context, work)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Takes part in a round."""

    def work(directory: Path, payload: "Payload") -> "Payload":
        from fl_clients.session import take_part

        return take_part(directory, payload, _shelf(), now=datetime.now(UTC))

    return _answer(message, context, work)


def data_owner_directory(context: Context) -> Path:
    """Returns the data owner's directory.

    A node's own configuration names it. Flower's simulation gives a node nothing but a number: there the environment
    names a folder, which holds one directory of that number for every data owner.

    Raises:
        InputError: neither names one.
    """
    if path := context.node_config.get(DATA_OWNER_KEY):
        return Path(str(path))
    folder, number = os.environ.get(DATA_OWNERS_VARIABLE), context.node_config.get(PARTITION_KEY)
    if not folder or not isinstance(number, int):
        raise InputError(f"the client does not know its directory: set {DATA_OWNER_KEY!r} in the node's configuration")
    return Path(folder) / str(number)


def release_emulators() -> None:
    """Gives up the emulators that this process holds."""
    _shelf.cache_clear()


@cache
def _shelf() -> "EmulatorShelf":
    """Returns this process's one shelf."""
    from fl_clients.session import EmulatorShelf

    return EmulatorShelf()


def _answer(message: Message, context: Context, work: Callable[[Path, "Payload"], "Payload"]) -> Message:
    """Replies with the work's result, or with a refusal that holds a code and no text.

    Flower would send an exception's text to the server, and the text of an unforeseen one may quote private data.
    """
    from fl_clients.refusal import log_failure, refuse
    from fl_clients.wire import from_records, to_records
    from scaleot_core.federation.messages import UNREAD_NONCE, nonce_of
    from scaleot_core.federation.signing import claimed

    directory, nonce = None, UNREAD_NONCE
    try:
        directory = data_owner_directory(context)
        payload = from_records(message.content)
        nonce = nonce_of(claimed(payload.statement))
        reply = work(directory, payload)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, nothing but a code may leave
        reply = refuse(error, nonce, directory)
        if directory is not None:
            log_failure(error, directory)
    return Message(to_records(reply), reply_to=message)
