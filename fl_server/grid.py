"""A Grid inside one process: no Ray, no SuperLink, no thread.

Every message goes through Flower's own serialisation both ways, so a client sees what it would see over a network. A
client runs when its reply is asked for, one after another, and its message is serialised only then: memory does not
grow with the clients.
"""

from collections.abc import Iterable, Mapping, Sequence
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1
_SERVER_NODE_ID = 1


class InProcessGrid(Grid):
    """The nodes of one process, each a ClientApp's context.

    Flower's messages take their run and sender from a global of the process, so one grid stands at a time.
    """

    def __init__(self, client_app: ClientApp, node_configs: Sequence[Mapping[str, str]]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE_ID
        self._client_app = client_app
        self._run = Run.create_empty(_RUN_ID)
        self._contexts = {
            node: Context(_RUN_ID, node, dict(config), RecordDict(), {})
            for node, config in enumerate(node_configs, start=_SERVER_NODE_ID + 1)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Sets the run's information."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's information."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message; Flower itself prefers ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns every node: all are always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages and returns their ids; nothing runs yet."""
        message_ids = []
        for message in messages:
            message_id = uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids set it
            self._waiting[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Runs the clients of these messages, and returns their replies."""
        return [self._run_client(self._waiting.pop(i)) for i in list(message_ids) if i in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pushes messages and pulls their replies; no client can be late, so ``timeout`` means nothing."""
        return self.pull_messages(self.push_messages(messages))

    def _run_client(self, message: Message) -> Message:
        return _carried(self._client_app(_carried(message), self._contexts[message.metadata.dst_node_id]))


def _carried(message: Message) -> Message:
    """Returns the message as it arrives: through the bytes of Flower's wire format."""
    proto = message_to_proto(message)
    return message_from_proto(type(proto).FromString(proto.SerializeToString()))
