"""Clients that answer at once, a grid whose replies can be spoilt, and a clock that runs only when one waits."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_server.exchange import Exchange
from fl_server.grid import InProcessGrid
from fl_server.owner import OwnerRunSettings, write_run
from fl_server.wire import from_records, to_records
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.bundle import SigningKey, generate_signing_key
from scaleot_core.bundle.canonical import canonical_json
from scaleot_core.bundle.envelope import sign_statement
from scaleot_core.federation.messages import (
    Instructions,
    Introduction,
    IntroductionRequest,
    Payload,
    UpdateStatement,
    decode_statement,
    digest_of,
    encode_statement,
)
from scaleot_core.federation.signing import claimed, payload_type_of, sign
from scaleot_core.federation.validation import AdapterSchema, decode_tensors, encode_tensors
from scaleot_core.shapes import TensorDict
from tests.support.updates import SHAPES, random_state

Fault = Callable[[Message], Message | None]
"""Makes another reply of a client's honest one; none at all if it returns None."""

FIRST_NODE = 2
"""The node id of the first client on an in-process grid."""


@dataclass
class Clock:
    """Seconds that pass only while somebody sleeps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@cache
def key_of(client: str) -> SigningKey:
    """The key that a client signs with, the same in all tests of a process."""
    del client
    return generate_signing_key()


@cache
def owner_key() -> SigningKey:
    """The model owner's, likewise."""
    return generate_signing_key()


def stepping_client_app(shapes: dict[str, tuple[int, ...]] = SHAPES) -> ClientApp:
    """Clients that add their ``step`` to every value of the global adapter, and name themselves ``name``."""
    app = ClientApp()

    @app.query("introduce")
    def introduce(message: Message, context: Context) -> Message:
        request = decode_statement(claimed(from_records(message.content).statement), IntroductionRequest)
        name = str(context.node_config["name"])
        answer = Introduction(run=request.run, nonce=request.nonce, client=name)
        return Message(to_records(Payload(sign(answer, key_of(name)))), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        payload = from_records(message.content)
        asked = decode_statement(claimed(payload.statement), Instructions)
        base = decode_tensors(payload.tensors, AdapterSchema(shapes))
        state = {name: tensor + float(str(context.node_config["step"])) for name, tensor in base.items()}
        blob = encode_tensors(state)
        statement = UpdateStatement(
            run=asked.run,
            round=asked.round,
            attempt=asked.attempt,
            nonce=asked.nonce,
            client=asked.client,
            base_sha256=asked.base_sha256,
            bundle_digest=asked.bundle_digest,
            instructions_sha256=digest_of(encode_statement(asked)),
            update_sha256=digest_of(blob),
            created=datetime(2027, 1, 1, tzinfo=UTC),
            client_version="1.0",
            num_examples=int(str(context.node_config["examples"])),
            train_loss=1.0,
        )
        return Message(to_records(Payload(sign(statement, key_of(asked.client)), blob)), reply_to=message)

    return app


class SpoiltGrid(InProcessGrid):
    """An in-process grid on which client ``i``'s training replies pass through ``faults[i]``."""

    def __init__(
        self, client_app: ClientApp, node_configs: Sequence[Mapping[str, str]], faults: Mapping[int, Fault]
    ) -> None:
        super().__init__(client_app, node_configs)
        self._faults = {FIRST_NODE + number: fault for number, fault in faults.items()}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [spoilt for reply in super().pull_messages(message_ids) if (spoilt := self._spoil(reply)) is not None]

    def _spoil(self, reply: Message) -> Message | None:
        fault = self._faults.get(reply.metadata.src_node_id)
        return fault(reply) if fault and reply.metadata.message_type == "train" else reply


@dataclass
class Stage:
    """One server with stepping clients, ready to run."""

    directory: Path
    settings: OwnerRunSettings
    initial_adapter: TensorDict
    grid: InProcessGrid
    clock: Clock = field(default_factory=Clock)

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.grid, clock=self.clock, sleep=self.clock.sleep)


def set_stage(
    directory: Path,
    *,
    clients: int = 3,
    faults: Mapping[int, Fault] | None = None,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    **changes: Any,
) -> Stage:
    """Client ``i`` is ``clinic-i``, steps by ``i + 1`` and has ``10 * (i + 1)`` examples."""
    fields = {
        "run": "run-1",
        "clients": clients,
        "clients_per_round": clients,
        "rounds": 1,
        "local_steps": 1,
        "batch_size": 1,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "max_tokens": 16,
        "aggregation": "fedavg",
        "adapter": AdapterSpec(AdapterKind.LORA, (1,), 2, seed=0),
        "bundle_digest": "b" * 64,
        "seed": 0,
        "round_deadline_seconds": 30.0,
        "max_update_norm": 1e5,  # whole steps of every number: their products grow large
        **changes,
    }
    settings, adapter = OwnerRunSettings(**fields), random_state(0, shapes)
    members = {f"clinic-{number}": key_of(f"clinic-{number}").public for number in range(clients)}
    write_run(directory, settings, adapter, owner=owner_key(), members=members)
    grid = SpoiltGrid(stepping_client_app(shapes), stepping_configs(clients), faults or {})
    return Stage(directory, settings, adapter, grid)


def stage_again(stage: Stage, *, faults: Mapping[int, Fault] | None = None) -> Stage:
    """The same server started again: what it knows stands in its directory."""
    grid = SpoiltGrid(stepping_client_app(), stepping_configs(stage.settings.clients), faults or {})
    return Stage(stage.directory, stage.settings, stage.initial_adapter, grid)


def stepping_configs(clients: int) -> list[dict[str, str]]:
    """Client ``i`` is ``clinic-i``, steps by ``i + 1`` and has ``10 * (i + 1)`` examples."""
    return [
        {"name": f"clinic-{number}", "step": str(number + 1), "examples": str(10 * (number + 1))}
        for number in range(clients)
    ]


def respoken(
    reply: Message,
    *,
    state: TensorDict | None = None,
    blob: bytes | None = None,
    signer: SigningKey | None = None,
    **changes: Any,
) -> Message:
    """The same reply with another blob, rightly digested, or with other fields in its statement, signed as it was.

    ``signer`` signs it in the place of the client.
    """
    payload = from_records(reply.content)
    tensors = encode_tensors(state) if state is not None else payload.tensors if blob is None else blob
    said = json.loads(claimed(payload.statement))
    values = {**said, "update_sha256": digest_of(tensors), **changes}
    key = key_of(said["client"]) if signer is None else signer
    envelope = sign_statement(canonical_json(values), payload_type_of(payload.statement), key)
    reply.content = to_records(Payload(envelope, tensors))
    return reply
