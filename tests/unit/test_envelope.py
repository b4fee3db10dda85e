"""The header: what it reads, what it refuses, and what it says when it does."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from loom.errors import ProtocolError, SchemaMismatch
from loom.wire import envelope
from loom.wire.envelope import Envelope

LEAST = {"id": 7, "kind": "call"}

EVERY_FIELD: dict[str, Any] = {
    "id": 2**53 - 1,
    "kind": "call",
    "schema": 1,
    "to": "index",
    "sender": "reader",
    "name": "add",
    "thread_id": "t-1",
    "correlation_id": 12,
    "reply_to": "sink",
    "ttl": 3,
    "hop": 2,
    "timestamp": 1_700_000_000.25,
    "deadline": 12345.5,
    "priority": 100,
    "confidence": 0.5,
    "tags": ["a", "b"],
    "dedup": "k1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "encoding": "pickle",
    "accept": "pickle",
    "participant": 3,
    "credit": 8,
    "buffers": [None, [0, 1, 2, 0, 64, 0, 5, 9]],
    "bulk_body": True,
    "ticket": 12,
    "body": [[1, None], {"by": b"x"}],
}


def decode(**fields: Any) -> Envelope:
    return envelope.decode(msgpack.packb({**LEAST, **fields}))


def test_a_field_at_its_default_is_not_sent() -> None:
    assert msgpack.unpackb(envelope.encode(Envelope(7, "call"))) == LEAST


def test_every_field_arrives() -> None:
    found = envelope.decode(msgpack.packb(EVERY_FIELD))
    assert msgpack.unpackb(envelope.encode(found)) == {
        field: value for field, value in EVERY_FIELD.items() if field != "schema"
    }


def test_no_field_is_missing_from_this_test() -> None:
    assert set(EVERY_FIELD) == set(Envelope.__struct_fields__)


def test_unknown_fields_are_ignored() -> None:
    assert decode(colour="red", nested={"a": [1, {"b": None}]}) == Envelope(7, "call")


def test_the_order_of_fields_is_free() -> None:
    assert envelope.decode(msgpack.packb({"name": "add", "kind": "tell", "id": 1})) == Envelope(1, "tell", name="add")


def test_an_unknown_kind_is_read() -> None:
    assert decode(kind="gossip").kind == "gossip"


@pytest.mark.parametrize("field", ["id", "kind"])
def test_what_must_be_there(field: str) -> None:
    with pytest.raises(ProtocolError, match=field):
        envelope.decode(msgpack.packb({name: value for name, value in LEAST.items() if name != field}))


WRONG: list[tuple[str, Any]] = [
    ("id", "7"),
    ("id", 7.0),
    ("id", None),
    ("id", -1),
    ("kind", 3),
    ("kind", b"call"),
    ("schema", "1"),
    ("to", 5),
    ("name", b"add"),
    ("name", None),
    ("correlation_id", -1),
    ("ttl", -1),
    ("hop", -1),
    ("hop", 0.5),
    ("timestamp", "now"),
    ("deadline", "soon"),
    ("priority", -1),
    ("priority", 101),
    ("priority", 2**64 - 1),
    ("priority", True),
    ("confidence", "high"),
    ("tags", "a"),
    ("tags", [1]),
    ("participant", -2),
    ("participant", "3"),
    ("credit", -1),
    ("buffers", 3),
    ("buffers", [3]),
    ("buffers", [["a"]]),
    ("buffers", {"0": None}),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}={value!r}" for field, value in WRONG])
def test_a_wrong_value_is_refused_and_its_place_named(field: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=rf"\$\.{field}"):
        decode(**{field: value})


@pytest.mark.parametrize("message_id", [1, 2**53, 2**63, 2**64 - 1])
def test_ids_up_to_64_bits(message_id: int) -> None:
    found = decode(id=message_id)
    assert found.id == message_id
    answer = envelope.encode(Envelope(1, "reply", correlation_id=message_id))
    assert msgpack.unpackb(answer)["correlation_id"] == message_id


GARBAGE = {
    "nothing": b"",
    "nil": b"\xc0",
    "a number": b"\x07",
    "a list": msgpack.packb([7, "call"]),
    "never used byte": b"\xc1",
    "cut off": msgpack.packb(LEAST)[:-1],
    "something after it": msgpack.packb(LEAST) + b"\x00",
    "a map of four thousand million": b"\xdf\xff\xff\xff\xff",
    "tags of four thousand million": b"\x83\xa2id\x05\xa4kind\xa4call\xa4tags\xdd\xff\xff\xff\xff",
    "text that is not UTF-8": b"\x82\xa2id\x05\xa4kind\xa4\xff\xfe\xfd\xfc",
    "100,000 levels in an unknown field": b"\x83\xa2id\x05\xa4kind\xa4call\xa1x" + b"\x91" * 100_000 + b"\xc0",
    "100,000 levels": b"\x91" * 100_000,
    "100,000 levels of maps": b"\x81\xa1a" * 100_000,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        envelope.decode(data)
    assert caught.value.code == "L2006"
    assert envelope.id_of(data) in (0, 5)


class TestNewerSchema:
    def test_is_named(self) -> None:
        with pytest.raises(SchemaMismatch, match=r"schema 2, this side reads <= 1 \(at `\$\.schema`\)") as caught:
            decode(schema=2)
        assert caught.value.code == "L2007"

    def test_is_named_even_when_fields_have_changed(self) -> None:
        with pytest.raises(SchemaMismatch, match="schema 9"):
            decode(schema=9, tags={"now": "a map"})

    def test_is_named_even_when_fields_are_gone(self) -> None:
        with pytest.raises(SchemaMismatch, match="schema 9"):
            envelope.decode(msgpack.packb({"schema": 9}))

    def test_an_older_one_is_read(self) -> None:
        assert decode(schema=0).schema == 0


class TestIdOf:
    def test_a_header_that_is_wrong_elsewhere(self) -> None:
        assert envelope.id_of(msgpack.packb({"id": 7, "kind": 3})) == 7

    @pytest.mark.parametrize("found", [-1, "7", 7.0, True, None, [7]])
    def test_no_usable_id(self, found: Any) -> None:
        assert envelope.id_of(msgpack.packb({"id": found})) == 0

    def test_no_map(self) -> None:
        assert envelope.id_of(msgpack.packb([7])) == 0
