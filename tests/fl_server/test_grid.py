from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_server.grid import InProcessGrid


def recording_app(seen: list[tuple[str, object]]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append((str(context.node_config["name"]), message.content))
        return Message(RecordDict({"name": ConfigRecord({"name": context.node_config["name"]})}), reply_to=message)

    return app


def content() -> RecordDict:
    blob = bytes(range(256))
    return RecordDict({"tensors": ArrayRecord({"blob": Array("uint8", (256,), "safetensors", blob)})})


def test_a_client_runs_when_its_reply_is_asked_for_and_not_before() -> None:
    seen: list[tuple[str, object]] = []
    grid = InProcessGrid(recording_app(seen), [{"name": "a"}, {"name": "b"}])
    nodes = list(grid.get_node_ids())
    first, second = grid.push_messages([Message(content(), node, "train") for node in nodes])
    assert seen == []
    (reply,) = grid.pull_messages([second])
    assert [name for name, _ in seen] == ["b"]
    assert reply.metadata.src_node_id == nodes[1]
    assert reply.metadata.reply_to_message_id == second
    (reply,) = grid.pull_messages([first, second])
    assert reply.metadata.reply_to_message_id == first


def test_a_reply_is_given_out_once() -> None:
    grid = InProcessGrid(recording_app([]), [{"name": "a"}])
    (message_id,) = grid.push_messages([Message(content(), next(iter(grid.get_node_ids())), "train")])
    assert len(list(grid.pull_messages([message_id]))) == 1
    assert list(grid.pull_messages([message_id])) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_a_message_goes_through_flowers_wire_format() -> None:
    seen: list[tuple[str, object]] = []
    grid = InProcessGrid(recording_app(seen), [{"name": "a"}])
    sent = content()
    (reply,) = grid.send_and_receive([Message(sent, next(iter(grid.get_node_ids())), "train")])
    received = seen[0][1]
    assert isinstance(received, RecordDict)
    assert received is not sent
    array = received["tensors"]["blob"]
    assert isinstance(array, Array)
    assert (array.data, array.shape, array.stype) == (bytes(range(256)), (256,), "safetensors")
    assert reply.content["name"]["name"] == "a"
