"""The wire vectors, run against this implementation; and PROTOCOL.md, held against the code.

vectors.json is for implementations in other languages, which is why what is not in JSON has a tag there.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq

import loom
from loom import errors
from loom.actor import board
from loom.actor.address import Address, start_time_of
from loom.actor.links import Links
from loom.actor.reply import STREAM_WINDOW
from loom.errors import LoomError
from loom.node.children import ChildVerbs
from loom.node.graceful import GracefulVerbs
from loom.node.monitors import MonitorVerbs
from loom.node.reload import ReloadVerbs
from loom.node.site import Service
from loom.wire import codec, envelope, failures, frames
from loom.wire.envelope import Envelope

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
PROTOCOL = (Path(frames.__file__).parent / "PROTOCOL.md").read_text()


def value_of(tagged: Any) -> Any:
    """A value of vectors.json, its tags resolved."""
    if isinstance(tagged, list):
        return [value_of(one) for one in tagged]
    if not isinstance(tagged, dict):
        return tagged
    match list(tagged.items()):
        case [("$bytes", text)]:
            return bytes.fromhex(text)
        case [("$int", text)]:
            return int(text)
        case [("$float", text)]:
            return float(text)
        case [("$map", pairs)]:
            return {key: value_of(value) for key, value in pairs}
        case [("$array", about)]:
            dtype = about["dtype"]
            dtype = np.dtype([tuple(field) for field in dtype] if isinstance(dtype, list) else dtype)
            data = bytes.fromhex(about["hex"])
            return np.frombuffer(data, dtype).reshape(about["shape"]) if data else np.zeros(about["shape"], dtype)
    return {key: value_of(value) for key, value in tagged.items()}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and (found.dtype, found.shape) == (expected.dtype, expected.shape)
            and found.tobytes() == expected.tobytes()
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[key], value) for key, value in expected.items())
        )
    return type(found) is type(expected) and repr(found) == repr(expected)


def parts(vector: dict[str, Any], key: str) -> list[bytes]:
    return [bytes.fromhex(one) for one in vector[key]]


def each(section: str) -> Any:
    vectors = VECTORS[section]
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


@pytest.mark.parametrize("section", ["headers", "bodies", "answers", "exchanges"])
def test_names_are_unique(section: str) -> None:
    names = [vector["name"] for vector in VECTORS[section]]
    assert len(set(names)) == len(names) > 0


@each("headers")
def test_headers(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if "error" in vector:
        with pytest.raises(LoomError) as caught:
            envelope.decode(data)
        assert caught.value.code == vector["error"]
        assert envelope.id_of(data) == vector["id"]
        return
    fields = {name: value_of(value) for name, value in vector["fields"].items()}
    expected = msgspec.convert(fields, Envelope)
    assert envelope.decode(data) == expected
    again = msgpack.unpackb(envelope.encode(expected))
    assert again == {name: value for name, value in fields.items() if (name, value) != ("schema", 1)}


@each("bodies")
def test_bodies(vector: dict[str, Any]) -> None:
    data, buffers = bytes.fromhex(vector["hex"]), parts(vector, "buffers")
    if "error" in vector:
        with pytest.raises(LoomError) as caught:
            codec.decode_value("msgpack", data, buffers)
        assert caught.value.code == vector["error"]
        return
    expected = value_of(vector["value"])
    assert same(codec.decode_value("msgpack", data, buffers), expected)
    again = codec.encode_neutral(expected)
    assert same(codec.decode_value("msgpack", again.data, [bytes(one) for one in again.buffers]), expected)


@each("answers")
def test_answers(vector: dict[str, Any]) -> None:
    first, *rest = parts(vector, "frames")
    header = envelope.decode(first)
    data, extra = frames.split(header, rest)
    found = codec.decode_value(header.encoding, bytes(data), frames.unpack(header, extra, None))
    assert (header.correlation_id, header.kind) == (vector["to"], vector["kind"])
    assert same(found, value_of(vector["value"]))
    if header.kind == "error":
        error = failures.from_wire(found, "counter")
        known = {one.code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LoomError)}
        assert error.code == (found["code"] if found["code"] in known else "L2005")
        assert found["message"] in str(error)


class Vectors(loom.Actor):
    """The actor of the section "exchanges"."""

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def echo(self, value: Any) -> Any:
        return value

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fail(self, text: str) -> None:
        raise ValueError(text)


@pytest.fixture(scope="module")
def house() -> Iterator[loom.Node]:
    with loom.Node() as node:
        node.spawn(Vectors, name="vectors")
        yield node


def talk(endpoint: str, messages: list[list[bytes]], count: int) -> list[list[bytes]]:
    """Send `messages` on a new connection; the next `count` that come back, and any that come too many."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        for message in messages:
            socket.send_multipart(message)
        found = []
        while len(found) < count:
            assert socket.poll(20_000), f"{len(found)} of {count} messages came"
            found.append(socket.recv_multipart())
        socket.send_multipart([msgpack.packb({"id": 2**53 - 1, "kind": "call", "name": "no such thing", "body": [[]]})])
        assert socket.poll(20_000)
        while msgpack.unpackb(socket.recv_multipart()[0]).get("correlation_id") != 2**53 - 1:
            found.append([])
            assert socket.poll(20_000)
        return found


def resolve(node: loom.Node, name: str) -> dict[str, Any]:
    call = msgpack.packb({"id": 1, "kind": "call", "name": "resolve", "body": [[name]]})
    ((answer,),) = talk(node.endpoint, [[call]], 1)
    header = msgpack.unpackb(answer)
    assert (header["kind"], header["correlation_id"]) == ("reply", 1), header
    found = header["body"]
    assert isinstance(found, dict)
    return found


def test_the_actor_has_the_methods_that_the_vectors_count_on() -> None:
    assert set(VECTORS["actor"]) == {name for name in vars(Vectors) if not name.startswith("_")}


@each("exchanges")
def test_exchanges(house: loom.Node, vector: dict[str, Any]) -> None:
    endpoint = resolve(house, "vectors")["endpoint"]
    sent = [[bytes.fromhex(one) for one in message] for message in vector["send"]]
    found = talk(endpoint, sent, len(vector["receive"]))
    assert len(found) == len(vector["receive"])
    for message, expected in zip(found, vector["receive"], strict=True):
        if expected.get("delimiter"):
            assert message.pop(0) == b""
        header = envelope.decode(message[0])
        assert (header.correlation_id, header.kind) == (expected["to"], expected["kind"])
        assert header.encoding == "msgpack"
        data, extra = frames.split(header, message[1:])
        value = codec.decode_value("msgpack", bytes(data), frames.unpack(header, extra, None))
        if header.kind == "error":
            assert value["code"] == expected["code"]
        else:
            assert same(value, value_of(expected["value"]))


def test_the_address(node: loom.Node) -> None:
    seen = set()
    for incarnation in (1, 2, 3):
        if incarnation == 1:
            node.spawn(Vectors, name="vectors")
        address = resolve(node, "vectors")
        listed = {key for key, *_ in rows("## Finding an actor")}
        assert address.keys() == listed
        assert (address["name"], address["incarnation"]) == ("vectors", incarnation)
        assert start_time_of(address["pid"]) == address["start_time"]
        add = msgpack.packb({"id": 40 + incarnation, "kind": "call", "name": "add", "body": [[1, 2]]})
        talk(address["endpoint"], [[add]], 1)
        os.kill(address["pid"], signal.SIGKILL)
        call = msgpack.packb({"id": 1, "kind": "call", "name": "obituary", "body": [["vectors", incarnation]]})
        ((answer,),) = talk(node.endpoint, [[call]], 1)
        assert msgpack.unpackb(answer)["body"] == {
            "cause": "killed by SIGKILL",
            "last_id": 40 + incarnation,
            "begun": -1,
        }
        seen.add(address["endpoint"])
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("word", "value"),
    [(board.INCARNATION, 2), (board.PID, 78), (board.STATE, board.DOWN)],
    ids=["next", "other", "down"],
)
def test_an_address_is_not_current_any_more(word: int, value: int) -> None:
    """When its row on the board tells of another incarnation, of another actor's process, or of a death."""
    words = [0] * 3 * board.WORDS
    at = 2 * board.WORDS
    words[at + board.STATE], words[at + board.INCARNATION], words[at + board.PID] = board.RUNNING_STATE, 1, 77
    links: Any = SimpleNamespace(_words=words)
    address = Address("a", "ipc:///nowhere/2.1", 77, 1, 1, row=2)
    assert Links.is_current(links, address)
    words[at + word] = value
    assert not Links.is_current(links, address)


# --- the text of the specification ---


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of PROTOCOL.md, backquotes taken off."""
    text = PROTOCOL.split(f"\n{heading}\n", 1)[1]
    table = re.search(r"\n\|.*?\n\n", text, re.DOTALL)
    assert table is not None
    lines = table.group().strip().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_specification_lists_every_field_and_its_default() -> None:
    listed = {name: default for name, _, default, *_ in rows("## Header")}
    defaults = {
        field.name: "required" if field.required else json.dumps(field.default)
        for field in msgspec.structs.fields(Envelope)
        if field.name != "body"
    }
    assert listed == {**defaults, "body": "none"}


def test_the_specification_lists_every_kind() -> None:
    kinds = {value for name, value in vars(envelope).items() if name.isupper() and isinstance(value, str)}
    assert {name for name, *_ in rows("## Kinds")} == kinds - {"msgpack", "pickle"}


def test_the_specification_lists_every_error_code() -> None:
    codes = {
        one.code: name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, LoomError) and one is not LoomError
    }
    assert {code: name for code, name, *_ in rows("### Codes")} == codes


def test_the_specification_lists_every_verb_with_its_arguments() -> None:
    verbs = {}
    kinds = (Service, ChildVerbs, MonitorVerbs, GracefulVerbs, ReloadVerbs)
    for name, verb in (one for kind in kinds for one in inspect.getmembers(kind, inspect.isfunction)):
        if not name.startswith("_"):
            verbs[name] = ", ".join(list(inspect.signature(verb).parameters)[1:])
    assert {name: arguments for name, arguments, *_ in rows("### Verbs")} == verbs


def test_the_numbers_of_the_specification() -> None:
    assert f"**{STREAM_WINDOW}** items" in PROTOCOL
    assert f"up to {frames.INLINE_BODY_BYTES} bytes" in PROTOCOL
    assert f"from {frames.ARENA_BYTES // 1024} KiB" in PROTOCOL
    assert f"protocol {envelope.SCHEMA}" in PROTOCOL.splitlines()[0].lower()


def test_the_worked_example() -> None:
    call, answer = (
        bytes.fromhex(re.sub(r"#.*", "", block)) for block in re.findall(r"```hex\n(.*?)```", PROTOCOL, re.S)
    )
    (exchange,) = (one for one in VECTORS["exchanges"] if one["name"] == "a call")
    assert [[call.hex()]] == exchange["send"]
    (reply,) = (one for one in VECTORS["answers"] if one["name"] == "a reply")
    assert [answer.hex()] == reply["frames"]
