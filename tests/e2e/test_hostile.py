"""Strangers at the mailbox: whatever bytes arrive, the actor answers what it can, counts it, and goes on as the same
process.

Each case is sent over a bare ZeroMQ socket to an actor and to the node itself. Answers to one connection come in the
order of its messages, so a sane call sent behind the hostile one shows when all answers to that are in.
"""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import zmq

import loom
from loom.errors import ActorDied

ID = 77
"""Of every hostile message that can say one."""

SANE_IDS = iter(range(1000, 10**9))
DEEP = 100_000
NAN, INF = float("nan"), float("inf")


class Hermit(loom.Actor):
    """Answers questions, and has awkward methods."""

    def add(self, first: int, second: int) -> int:
        return first + second

    def echo(self, value: Any) -> Any:
        return value

    def zeros(self, n: int) -> Any:
        return np.zeros(n)

    def unsendable(self) -> Any:
        return lambda: None

    def surrogate(self) -> None:
        raise ValueError("caf\udce9")

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def nap(self, s: float) -> str:
        time.sleep(s)
        return "rested"

    def _private(self) -> None: ...


class Answer(NamedTuple):
    to: int
    kind: str
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["code"]) if self.kind == "error" else ""


class Stranger:
    """A peer that knows ZeroMQ and MessagePack and no manners."""

    def __init__(self, endpoint: str, sane: tuple[str, list[Any], Any], **options: int) -> None:
        self.sane = sane
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in options.items():
            self.socket.set(getattr(zmq, option), value)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.context.destroy()

    def read(self) -> Answer:
        assert self.socket.poll(20_000), "no answer in 20 s"
        frames = self.socket.recv_multipart()
        if not frames[0]:  # the delimiter that was sent comes back
            frames = frames[1:]
        header = msgpack.unpackb(frames[0])
        if header["kind"] == "ping":
            return self.read()
        body = header["body"] if "body" in header else msgpack.unpackb(frames[1])
        found = Answer(header.get("correlation_id", 0), header["kind"], body)
        assert found.kind in ("reply", "error", "item", "end")
        return found

    def ask(self, frames: list[bytes]) -> Answer:
        """Send a message and read the next answer, which may come later than those to what is sent behind it."""
        self.socket.send_multipart(frames)
        return self.read()

    def items(self, frames: list[bytes], count: int) -> list[Any]:
        """Send a message and read `count` items of a stream; no more than these come."""
        self.socket.send_multipart(frames)
        found = [self.read() for _ in range(count)]
        assert {answer.kind for answer in found} <= {"item"}
        assert self.sane_answer() == []
        assert self.sane_answer() == []
        return [answer.body for answer in found]

    def answers(self, frames: list[bytes]) -> list[Answer]:
        """Send a message and a sane call behind it; all answers but the sane one, which must be right."""
        self.socket.send_multipart(frames)
        return self.sane_answer()

    def sane_answer(self) -> list[Answer]:
        name, args, expected = self.sane
        call_id = next(SANE_IDS)
        self.socket.send_multipart(call(name, *args, id=call_id))
        before = []
        while (answer := self.read()).to != call_id:
            before.append(answer)
        assert (answer.kind, answer.body) == ("reply", expected)
        return before


def head(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"id": ID, "kind": "call", "name": "add", **fields}))


def call(name: str, *args: Any, **fields: Any) -> list[bytes]:
    return [head(name=name, body=[args], **fields)]


def packed(*values: Any) -> bytes:
    return b"".join(map(msgpack.packb, values))


def nested(opening: bytes, closing: bytes = b"\xc0") -> bytes:
    return opening * DEEP + closing


FINE = msgpack.packb([[1, 2]])
ARRAY = msgpack.packb([[msgpack.ExtType(1, msgpack.packb(["<f8", [1], 0]))]])

Case = tuple[list[bytes], list[tuple[int, str]]]
"""A message, and the (id, error code) that are to come back."""

FRAMING: dict[str, Case] = {
    "one empty frame": ([b""], [(0, "L2006")]),
    "two empty frames": ([b"", b""], [(0, "L2006")]),
    "five empty frames": ([b""] * 5, [(0, "L2006")]),
    "ten thousand empty frames": ([b""] * 10_000, [(0, "L2006")]),
    "ten thousand frames of garbage": ([b"\xc1"] * 10_000, [(0, "L2006")]),
    "sixteen megabytes of garbage": ([b"\xc1" * (16 << 20)], [(0, "L2006")]),
    "no body": ([head()], [(ID, "L2006")]),
    "a delimiter and no body": ([b"", head()], [(ID, "L2006")]),
    "frames that nobody announced": ([head(), FINE, b"more", b"more"], [(ID, "L2006")]),
    "ten thousand frames that nobody announced": ([head(), FINE, *[b"x"] * 10_000], [(ID, "L2006")]),
    "frames announced that are not there": ([head(buffers=[None] * 3), FINE], [(ID, "L2006")]),
    "a million frames announced": ([head(buffers=[None] * 1_000_000), FINE], [(ID, "L2006")]),
}

HEADERS: dict[str, Case] = {
    "a map of four thousand million fields": ([b"\xdf\xff\xff\xff\xff", FINE], [(0, "L2006")]),
    "a list of four thousand million": ([b"\xdd\xff\xff\xff\xff", FINE], [(0, "L2006")]),
    "four thousand million tags": ([head()[:-9] + b"\xa4tags\xdd\xff\xff\xff\xff", FINE], [(0, "L2006")]),
    "cut off": ([head()[:-1], FINE], [(0, "L2006")]),
    "something after it": ([head() + b"\x00", FINE], [(0, "L2006")]),
    "no map": ([msgpack.packb([ID, "call"]), FINE], [(0, "L2006")]),
    "text that is not UTF-8": ([b"\x82\xa2id\x4d\xa4kind\xa4\xff\xfe\xfd\xfc", FINE], [(0, "L2006")]),
    "a hundred thousand lists": ([nested(b"\x91"), FINE], [(0, "L2006")]),
    "a hundred thousand maps": ([nested(b"\x81\xa1a"), FINE], [(0, "L2006")]),
    "depth in an unknown field": ([b"\x83\xa2id\x4d\xa4kind\xa4call\xa1x" + nested(b"\x91"), FINE], [(0, "L2006")]),
    "no id": ([msgpack.packb({"kind": "call", "name": "add"}), FINE], [(0, "L2006")]),
    "no kind": ([msgpack.packb({"id": ID}), FINE], [(ID, "L2006")]),
    "id below zero": ([head(id=-1), FINE], [(0, "L2006")]),
    "id as text": ([head(id="77"), FINE], [(0, "L2006")]),
    "kind as a number": ([head(kind=7), FINE], [(ID, "L2006")]),
    "a newer schema": ([head(schema=2), FINE], [(ID, "L2007")]),
    "a much newer schema": ([head(schema=2**64 - 1, tags=7), FINE], [(ID, "L2007")]),
    "name as bytes": ([head(name=b"add"), FINE], [(ID, "L2006")]),
    "priority below 0": ([head(priority=-1), FINE], [(ID, "L2006")]),
    "priority above 100": ([head(priority=101), FINE], [(ID, "L2006")]),
    "priority beyond 63 bits": ([head(priority=2**64 - 1), FINE], [(ID, "L2006")]),
    "participant below -1": ([head(participant=-2), FINE], [(ID, "L2006")]),
    "participant as text": ([head(participant="0"), FINE], [(ID, "L2006")]),
    "credit below zero": ([head(credit=-1), FINE], [(ID, "L2006")]),
    "ttl below zero": ([head(ttl=-1), FINE], [(ID, "L2006")]),
    "too many hops": ([head(hop=16), FINE], [(ID, "L2004")]),
    "hops beyond 63 bits": ([head(hop=2**64 - 1), FINE], [(ID, "L2004")]),
    "no hops allowed": ([head(ttl=0), FINE], [(ID, "L2004")]),
    "a deadline that is no number": ([head(deadline=NAN), FINE], [(ID, "L2002")]),
    "a deadline before the beginning": ([head(deadline=-INF), FINE], [(ID, "L2002")]),
    "a deadline long ago": ([head(deadline=1e-300), FINE], [(ID, "L2002")]),
    "an encoding nobody knows": ([head(encoding="json"), FINE], [(ID, "L2006")]),
    "buffers that are no list": ([head(buffers=7), FINE], [(ID, "L2006")]),
    "an unknown kind": ([head(kind="gossip"), FINE], [(ID, "L2006")]),
    "a reply to nothing": ([head(kind="reply", correlation_id=5), FINE], [(ID, "L2006")]),
    "an error about nothing": ([head(kind="error", correlation_id=5), FINE], [(ID, "L2006")]),
    "an item of nothing": ([head(kind="item"), FINE], [(ID, "L2006")]),
    "an end of nothing": ([head(kind="end"), FINE], [(ID, "L2006")]),
    "credit for nothing": ([head(kind="credit", correlation_id=5, credit=2**64 - 1)], []),
    "credit with garbage behind it": ([head(kind="credit"), b"\xc1", b"\xc1"], []),
    "cancel of nothing": ([head(kind="cancel", correlation_id=2**64 - 1)], []),
}

INLINE: dict[str, Case] = {
    "and a frame too": ([head(body=[[1, 2]]), FINE], [(ID, "L2006")]),
    "nil": ([head(body=None)], [(ID, "L2006")]),
    "arguments not in a list of their own": ([head(body=[1, 2])], [(ID, "L2006")]),
    "a pickle that is no bytes": ([head(body=[[1, 2]], encoding="pickle")], [(ID, "L2006")]),
    "garbage for a pickle": ([head(body=b"\xc1", encoding="pickle")], [(ID, "L2006")]),
    "an encoding nobody knows": ([head(body=[[1, 2]], encoding="json")], [(ID, "L2006")]),
    "text that is not UTF-8": ([head(body="??").replace(b"??", b"\xff\xfe")], [(ID, "L2006")]),
    "an array without its buffer": ([head(body=[[msgpack.ExtType(1, b"")]])], [(ID, "L2006")]),
    "a frame that nobody announced": ([head(body=[[1, 2]]), b""], [(ID, "L2006")]),
    "a frame announced that is not there": ([head(body=[[1, 2]], buffers=[None])], [(ID, "L2006")]),
    "a hundred thousand lists": ([b"\x83\xa2id\x4d\xa4kind\xa4call\xa4body" + nested(b"\x91")], [(0, "L2006")]),
}

BODIES: dict[str, Case] = {
    "nothing": ([head(), b""], [(ID, "L2006")]),
    "garbage": ([head(), b"\xc1\xc1"], [(ID, "L2006")]),
    "cut off": ([head(), FINE[:-1]], [(ID, "L2006")]),
    "something after it": ([head(), FINE + b"\x00"], [(ID, "L2006")]),
    "nil": ([head(), b"\xc0"], [(ID, "L2006")]),
    "a number": ([head(), b"\x01"], [(ID, "L2006")]),
    "an empty list": ([head(), b"\x90"], [(ID, "L2006")]),
    "arguments not in a list of their own": ([head(), msgpack.packb([1, 2])], [(ID, "L2006")]),
    "three parts": ([head(), msgpack.packb([[1, 2], {}, 3])], [(ID, "L2006")]),
    "named arguments that are no map": ([head(), msgpack.packb([[1, 2], 5])], [(ID, "L2006")]),
    "a number for a name": ([head(), msgpack.packb([[1], {2: 3}])], [(ID, "L2006")]),
    "nil for a name": ([head(), msgpack.packb([[1], {None: 3}])], [(ID, "L2006")]),
    "bytes for a name": ([head(), msgpack.packb([[1], {b"second": 3}])], [(ID, "L2006")]),
    "a hundred thousand lists": ([head(), nested(b"\x91")], [(ID, "L2006")]),
    "a hundred thousand maps": ([head(), nested(b"\x81\xa1a")], [(ID, "L2006")]),
    "a list of four thousand million": ([head(), b"\x91\xdd\xff\xff\xff\xff"], [(ID, "L2006")]),
    "bytes of four thousand million": ([head(), b"\x91\x91\xc6\xff\xff\xff\xff"], [(ID, "L2006")]),
    "a map as a key": ([head(), b"\x91\x91\x81\x81\x01\x02\x03"], [(ID, "L2006")]),
    "an extension nobody knows": ([head(), msgpack.packb([[msgpack.ExtType(5, b"")]])], [(ID, "L2006")]),
    "an array without its buffer": ([head(), ARRAY], [(ID, "L2006")]),
    "an array of another size": ([head(buffers=[None]), ARRAY, b"1234"], [(ID, "L2006")]),
    "an empty pickle": ([head(encoding="pickle"), b""], [(ID, "L2006")]),
    "a pickle cut off": ([head(encoding="pickle"), pickle.dumps(([1, 2], {}))[:-1]], [(ID, "L2006")]),
    "a pickle of what is not there": ([head(encoding="pickle"), b"cno_such\nthing\n."], [(ID, "L2006")]),
    "a pickle that raises": ([head(encoding="pickle"), b"coperator\ntruediv\n(I1\nI0\ntR."], [(ID, "L2006")]),
    "a pickle of no arguments": ([head(encoding="pickle"), pickle.dumps(7)], [(ID, "L2006")]),
}


def reference(*numbers: int) -> Case:
    return [head(buffers=[numbers]), FINE], [(ID, "L2009")]


REFERENCES: dict[str, Case] = {
    "no numbers": reference(),
    "one number": reference(1),
    "nine numbers": reference(*[0] * 9),
    "zeros": reference(*[0] * 8),
    "below zero": reference(*[-1] * 8),
    "beyond 63 bits": reference(*[2**64 - 1] * 8),
    "the last of everything": reference(1023, 8191, 2**53 - 1, 0, 2**53 - 1, 1023, 2047, 2**53 - 1),
    "a hundred": ([head(buffers=[[0] * 8] * 100), FINE], [(ID, "L2009")]),
    "among frames": ([head(buffers=[None, [0] * 8]), FINE, b"frame"], [(ID, "L2009")]),
    "of what is no number": ([head(buffers=[["a"] * 8]), FINE], [(ID, "L2006")]),
}

NAMES: dict[str, Case] = {
    repr(name)[:20]: ([head(name=name), FINE], [(ID, "L1005")])
    for name in ("", "ad", "__init__", "__class__", "_private", "on_start", "ctx", "add\0", "é", "x" * 5_000_000)
}

ARGUMENTS: dict[str, Case] = {
    "too few": (call("add", 1), [(ID, "L2005")]),
    "too many": (call("add", 1, 2, 3), [(ID, "L2005")]),
    "of the wrong name": ([head(), msgpack.packb([[], {"third": 3}])], [(ID, "L2005")]),
    "of the wrong type": (call("add", 1, None), [(ID, "L2005")]),
    "a result that cannot travel": (call("unsendable"), [(ID, "L2005")]),
    "an exception with odd text": (call("surrogate"), [(ID, "L2005")]),
    "a large result for participant 1000": (call("zeros", 100_000, participant=1000), [(ID, "L2005")]),
    "a large result for participant 2**63": (call("zeros", 100_000, participant=2**63), [(ID, "L2005")]),
}

TELLS: dict[str, Case] = {
    "a tell without a body": ([head(kind="tell")], []),
    "a tell with garbage": ([head(kind="tell"), b"\xc1"], []),
    "a tell to no method": ([head(kind="tell", name="nobody"), FINE], []),
    "a tell too late": ([head(kind="tell", deadline=1.0), FINE], []),
    "a tell of a stream": ([head(kind="tell", name="count"), msgpack.packb([[3]])], []),
    "a tell that raises": ([head(kind="tell", name="surrogate"), msgpack.packb([[]])], []),
    "a tell with a bad header": ([head(kind="tell", priority=500), FINE], [(ID, "L2006")]),
}

GENERAL = {
    f"{group}: {name}": case
    for group, cases in {
        "frames": FRAMING,
        "header": HEADERS,
        "body in the header": INLINE,
        "body": BODIES,
        "reference": REFERENCES,
    }.items()
    for name, case in cases.items()
}
FOR_ACTORS = {
    f"{group}: {name}": case
    for group, cases in {"name": NAMES, "call": ARGUMENTS, "tell": TELLS}.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def house() -> Iterator[loom.Node]:
    with loom.Node(arena="64MiB") as node:
        node.spawn(Hermit, name="hermit")
        yield node


@pytest.fixture(scope="module")
def address(house: loom.Node) -> dict[str, Any]:
    stranger = Stranger(house.endpoint, ("lookup", ["hermit"], "hermit"))
    stranger.socket.send_multipart(call("resolve", "hermit"))
    found = stranger.read().body
    stranger.close()
    assert isinstance(found, dict)
    return found


@pytest.fixture
def stranger(address: dict[str, Any]) -> Iterator[Stranger]:
    stranger = Stranger(address["endpoint"], ("add", [40, 2], 42))
    yield stranger
    stranger.close()


@pytest.fixture
def node_stranger(house: loom.Node) -> Iterator[Stranger]:
    stranger = Stranger(house.endpoint, ("lookup", ["hermit"], "hermit"))
    yield stranger
    stranger.close()


@pytest.fixture(autouse=True)
def goes_on(house: loom.Node, address: dict[str, Any], until: Callable[..., Any]) -> Iterator[None]:
    """After each test: the same process answers, nothing is left under way, and the counters sum."""
    yield
    assert house.lookup("hermit").add(1, 2).result(timeout_s=20) == 3
    # A stream whose consumer left may rest until it is looked at.
    until(lambda: is_at_rest(house), within_s=30)
    found = hermit(house)
    assert (found.pid, found.incarnation) == (address["pid"], 1)
    assert house.stats().pid == house.pid
    assert house.stats().restart_count == 0
    assert house.stats().arena.in_flight == 0


def hermit(house: loom.Node) -> Any:
    (found,) = (one for one in house.stats().actors if one.name == "hermit")
    return found


def is_at_rest(house: loom.Node) -> bool:
    now = hermit(house)
    return bool(now.depth == now.running == now.unaccounted == 0)


@pytest.mark.parametrize("case", [*GENERAL.values(), *FOR_ACTORS.values()], ids=[*GENERAL, *FOR_ACTORS])
def test_an_actor(house: loom.Node, stranger: Stranger, until: Callable[..., Any], case: Case) -> None:
    frames, expected = case
    stranger.sane_answer()
    until(lambda: is_at_rest(house))
    before = hermit(house).received
    assert [(answer.to, answer.code) for answer in stranger.answers(frames)] == expected
    until(lambda: is_at_rest(house))
    is_counted = expected or b"tell" in frames[0]
    assert hermit(house).received - before == (2 if is_counted else 1)


@pytest.mark.parametrize("ticket", [1, 256, 257, 2**40 + 1, 2**63, 2**64 - 1])
def test_a_ticket_that_nobody_gave_out(house: loom.Node, stranger: Stranger, until: Any, ticket: int) -> None:
    """The call is run, or passed over as one that its sender took back; the counters sum, and nobody is kept out."""
    stranger.sane_answer()
    until(lambda: is_at_rest(house))
    answers = stranger.answers([head(ticket=ticket), FINE])
    assert [(answer.to, answer.code) for answer in answers] in ([(ID, "")], [])
    until(lambda: is_at_rest(house))


def test_a_ping_is_answered(stranger: Stranger) -> None:
    assert [(answer.to, answer.code) for answer in stranger.answers([head(kind="ping"), b"\xc0"])] == [(ID, "")]


@pytest.mark.parametrize("case", GENERAL.values(), ids=GENERAL.keys())
def test_the_node(node_stranger: Stranger, case: Case) -> None:
    frames, expected = case
    frames = [frame.replace(packed("name", "add"), packed("name", "info")) for frame in frames]
    assert [(answer.to, answer.code) for answer in node_stranger.answers(frames)] == expected


VERBS: dict[str, list[bytes]] = {
    "no such verb": call("explode"),
    "a private verb": call("_branch", 1),
    "a name that is a list": call("resolve", ["hermit"]),
    "a name that is a map": call("resolve", {"hermit": 1}),
    "a name of five million letters": call("lookup", "x" * 5_000_000),
    "nobody's name": call("resolve", "nobody"),
    "an incarnation that is text": call("obituary", "nobody", "x"),
    "no class": call("spawn", "x", "x", b"", []),
    "a name with a slash": call("spawn", "../x", "x", b"", []),
    "a base that is a number": call("spawn", None, 7, b"", []),
    "a path that is a number": call("spawn", "x", "x", b"", 7),
    "too few arguments": call("spawn"),
    "stop nobody": call("stop_child", "nobody"),
}


@pytest.mark.parametrize("frames", VERBS.values(), ids=VERBS.keys())
def test_verbs_that_make_no_sense(house: loom.Node, node_stranger: Stranger, frames: list[bytes]) -> None:
    answer = node_stranger.ask(frames)
    assert node_stranger.sane_answer() == []
    if answer.kind == "error":
        assert answer.code[:2] in ("L1", "L2")
        assert len(answer.body["message"]) < 2000
    elif isinstance(answer.body, str):  # whatever was spawned cannot have come up
        with pytest.raises(ActorDied):
            house.lookup(answer.body).anything().result(timeout_s=20)


class TestWhatIsOddAndAllowed:
    @pytest.mark.parametrize(
        "fields",
        [
            {"id": 2**64 - 1},
            {"id": 2**53},
            {"deadline": INF},
            {"deadline": 1e308},
            {"priority": 0},
            {"priority": 100},
            {"timestamp": NAN},
            {"confidence": -INF},
            {"tags": ["x"] * 100_000},
            {"to": "somebody else", "sender": "nobody", "reply_to": "elsewhere", "dedup": "k", "thread_id": "t"},
            {"accept": "carrier pigeon"},
            {"participant": 1000},
            {"credit": 2**64 - 1},
            {"hop": 15},
            {"ttl": 2**64 - 1},
            {f"unknown{number}": number for number in range(100_000)},
            {"unknown": b"\xff" * 1_000_000},
        ],
        ids=lambda fields: ",".join(list(fields)[:3]),
    )
    def test_headers(self, stranger: Stranger, fields: dict[str, Any]) -> None:
        (answer,) = stranger.answers([head(**fields), FINE])
        assert answer == (fields.get("id", ID), "reply", 3)

    def test_a_delimiter(self, stranger: Stranger) -> None:
        assert stranger.answers([b"", head(), FINE]) == [(ID, "reply", 3)]

    def test_a_req_socket(self, address: dict[str, Any]) -> None:
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.connect(address["endpoint"])
            socket.send(head(body=[[1, 2]]))
            answer = msgpack.unpackb(socket.recv())
            assert (answer["correlation_id"], answer["kind"], answer["body"]) == (ID, "reply", 3)

    @pytest.mark.parametrize("args", [[[1, 2]], [[1, 2], {}], [[1], {"second": 2}], [[], {"first": 1, "second": 2}]])
    def test_shapes_of_arguments(self, stranger: Stranger, args: Any) -> None:
        assert stranger.answers([head(), msgpack.packb(args)]) == [(ID, "reply", 3)]

    def test_an_id_that_is_used_again(self, stranger: Stranger) -> None:
        assert stranger.answers([head(), FINE]) == stranger.answers([head(), FINE]) == [(ID, "reply", 3)]


class TestStreams:
    def test_all_the_credit_in_the_world(self, stranger: Stranger) -> None:
        stranger.socket.send_multipart(call("count", 500, credit=2**64 - 1))
        assert [stranger.read().body for _ in range(500)] == list(range(500))
        assert stranger.read().kind == "end"

    def test_nothing_goes_beyond_the_credit(self, stranger: Stranger) -> None:
        assert stranger.items(call("count", 10, credit=3), 3) == [0, 1, 2]
        assert stranger.items([head(kind="credit", correlation_id=ID, credit=2)], 2) == [3, 4]
        assert stranger.answers([head(kind="cancel", correlation_id=ID)]) == []

    def test_the_first_credit_is_32(self, stranger: Stranger) -> None:
        assert stranger.items(call("count", 100), 32) == list(range(32))
        assert stranger.answers([head(kind="cancel", correlation_id=ID)]) == []

    def test_credit_that_comes_before_the_stream_begins(self, stranger: Stranger) -> None:
        """While the actor sleeps, both wait; the credit must not be lost, or the stream would rest for ever."""
        stranger.socket.send_multipart(call("nap", 0.3, id=1))
        stranger.socket.send_multipart(call("count", 10, credit=1))
        stranger.socket.send_multipart([head(kind="credit", correlation_id=ID, credit=100)])
        assert [stranger.read().body for _ in range(12)] == ["rested", *range(10), None]

    def test_cancel_that_comes_before_the_call_begins(self, stranger: Stranger) -> None:
        stranger.socket.send_multipart(call("nap", 0.3, id=1))
        stranger.socket.send_multipart(call("count", 10, priority=90))
        stranger.socket.send_multipart([head(kind="cancel", correlation_id=ID)])
        answers = [stranger.read(), stranger.read()]
        assert sorted((one.to, one.kind) for one in answers) == [(1, "reply"), (ID, "error")]
        assert {one.code for one in answers} == {"", "L2004"}
        assert stranger.sane_answer() == []

    def test_an_id_that_is_under_way(self, stranger: Stranger) -> None:
        assert stranger.items(call("count", 10, credit=1), 1) == [0]
        (refused,) = stranger.answers(call("count", 10, credit=1))
        assert (refused.to, refused.code) == (ID, "L2006")
        stranger.socket.send_multipart([head(kind="credit", correlation_id=ID, credit=100)])
        assert [stranger.read().body for _ in range(9)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert stranger.read().kind == "end"

    def test_an_id_whose_stream_was_cancelled(self, stranger: Stranger) -> None:
        for _ in range(3):
            assert stranger.items(call("count", 10, credit=2), 2) == [0, 1]
            assert stranger.answers([head(kind="cancel", correlation_id=ID)]) == []

    def test_nobody_elses_stream(self, stranger: Stranger, address: dict[str, Any]) -> None:
        assert stranger.items(call("count", 10, credit=1), 1) == [0]
        other = Stranger(address["endpoint"], stranger.sane)
        assert other.answers([head(kind="credit", correlation_id=ID, credit=100)]) == []
        assert other.answers([head(kind="cancel", correlation_id=ID)]) == []
        other.close()
        assert stranger.items([head(kind="credit", correlation_id=ID, credit=1)], 1) == [1]
        assert stranger.answers([head(kind="cancel", correlation_id=ID)]) == []

    def test_whoever_leaves_in_mid_stream(self, address: dict[str, Any]) -> None:
        leaver = Stranger(address["endpoint"], ("add", [40, 2], 42))
        leaver.socket.send_multipart(call("count", 10**9, credit=2**63))
        assert leaver.read().body == 0
        leaver.close()  # `goes_on` sees that the stream ends


class TestFloods:
    def test_a_consumer_that_reads_late_gets_everything_in_order(
        self, house: loom.Node, address: dict[str, Any], until: Callable[..., Any]
    ) -> None:
        """More items than ZeroMQ's queues hold: the rest waits in the actor, and new ones wait behind it."""
        n = 35_000
        late = Stranger(address["endpoint"], ("add", [40, 2], 42), RCVHWM=1)
        before = hermit(house)
        late.socket.send_multipart(call("count", n, credit=2**63))
        until(lambda: hermit(house).processed > before.processed, within_s=60)
        late.socket.send_multipart(call("count", n, credit=2**63, id=ID + 1))
        found = [late.read() for _ in range(2 * (n + 1))]
        assert found == [
            Answer(to, "item", at) if at < n else Answer(to, "end", None) for to in (ID, ID + 1) for at in range(n + 1)
        ]
        late.close()

    def test_a_consumer_that_never_reads_and_leaves(
        self, house: loom.Node, address: dict[str, Any], until: Callable[..., Any]
    ) -> None:
        never = Stranger(address["endpoint"], ("add", [40, 2], 42), RCVHWM=1)
        before = hermit(house)
        never.socket.send_multipart(call("count", 40_000, credit=2**63))
        until(lambda: hermit(house).processed > before.processed, within_s=60)
        never.close()  # `goes_on` sees that the answers nobody gets are not counted as messages

    def test_a_flood_of_garbage(self, stranger: Stranger) -> None:
        for _ in range(20_000):
            stranger.socket.send_multipart([b"\xc1"])
        assert [one.code for one in stranger.sane_answer()] == ["L2006"] * 20_000

    def test_a_flood_of_calls_whose_answers_nobody_reads(self, house: loom.Node, address: dict[str, Any]) -> None:
        flooder = Stranger(address["endpoint"], ("add", [40, 2], 42))
        for _ in range(60_000):  # more than the queues on the way back hold
            flooder.socket.send_multipart([head(), FINE])
        assert house.lookup("hermit").add(1, 2).result(timeout_s=30) == 3
        flooder.close()

    def test_random_damage(self, stranger: Stranger) -> None:
        """Sane messages with bytes changed, cut off and put in, by the thousand: seeded, so a failure repeats."""
        chance = random.Random(4711)
        sane = [
            [head(), FINE],
            [head(kind="tell", tags=["a"], deadline=1e9), msgpack.packb([[1], {"second": 2}])],
            [head(name="echo", buffers=[None]), ARRAY, b"12345678"],
            [head(name="echo", buffers=[[0] * 8]), ARRAY],
            [head(body=[[1, 2]])],
            [head(body=pickle.dumps(([1], {"second": 2})), encoding="pickle", accept="pickle")],
            [head(kind="credit", correlation_id=3, credit=4), b"\xc0"],
            [b"", head(name="count"), msgpack.packb([[5]])],
        ]
        for _ in range(300):
            for _ in range(10):
                frames = [damaged(frame, chance) for frame in chance.choice(sane)]
                stranger.socket.send_multipart(frames)
            stranger.sane_answer()


def damaged(frame: bytes, chance: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.choice([0, 1, 1, 3])] = chance.randbytes(chance.choice([0, 1, 1, 2]))
    return bytes(data)
