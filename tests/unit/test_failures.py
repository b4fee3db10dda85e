"""Error bodies: which exception each becomes on the other side, whoever wrote them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from loom import errors
from loom.errors import ActorDied, LoomError, MailboxFull, NoSuchMethod, RemoteError
from loom.wire import codec, failures

CLASSES = sorted(
    (
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, LoomError) and one not in (LoomError, RemoteError)
    ),
    key=lambda one: one.code,
)


def sent(body: dict[str, Any]) -> Any:
    """A body as it arrives: through MessagePack, which every value in it must survive."""
    return msgpack.unpackb(codec.encode_neutral(body).data)


def caught(error: BaseException) -> BaseException:
    """The exception with a traceback on it."""
    try:
        raise error
    except BaseException as same:
        return same


@pytest.mark.parametrize("cls", CLASSES, ids=[one.__name__ for one in CLASSES])
def test_a_refusal_comes_back_as_itself(cls: type[LoomError]) -> None:
    body = sent(failures.refusal(cls("no: this and that")))
    assert body["code"] == cls.code
    assert body["type"] == cls.__name__
    assert body["message"] == "no: this and that"
    back = failures.from_wire(body, "store")
    assert type(back) is cls
    assert str(back) == f"{cls.code} no: this and that"


def test_codes_are_unique() -> None:
    assert len({one.code for one in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("started", [True, False, None])
def test_a_death_says_whether_the_call_had_started(started: bool | None) -> None:
    back = failures.from_wire(sent(failures.refusal(ActorDied("gone", started=started, cause="exit code 3"))), "store")
    assert isinstance(back, ActorDied)
    assert (back.started, back.cause) == (started, "exit code 3")


def test_an_exception_comes_back_with_its_traceback() -> None:
    body = sent(failures.raised(caught(KeyError("lost")), skip=0))
    back = failures.from_wire(body, "store")
    assert isinstance(back, RemoteError)
    assert (back.code, back.type_name, back.message, back.actor) == ("L2005", "KeyError", "'lost'", "store")
    assert "raise error" in back.traceback
    assert str(back).startswith("L2005 KeyError in actor 'store': 'lost'\n--- remote traceback ---\nTraceback")


def test_a_loom_error_that_a_handler_raised_is_the_handlers() -> None:
    back = failures.from_wire(sent(failures.raised(caught(MailboxFull("of another")))), "store")
    assert isinstance(back, RemoteError)
    assert back.type_name == "MailboxFull"


class Awkward(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")


def test_an_exception_that_cannot_be_printed() -> None:
    body = sent(failures.raised(caught(Awkward())))
    assert body["type"] == "Awkward"
    assert body["message"] == "<its __str__ raised>"


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800", "ok \udfff ok"])
def test_lone_surrogates_travel_as_escapes(text: str) -> None:
    escaped = text.encode(errors="backslashreplace").decode()
    assert sent(failures.raised(caught(ValueError(text))))["message"] == escaped
    assert sent(failures.refusal(NoSuchMethod(text)))["message"] == escaped
    assert sent(failures.refusal(ActorDied("gone", cause=text)))["cause"] == escaped


def test_other_text_travels_as_it_is() -> None:
    assert sent(failures.raised(caught(ValueError("naïve 漢字 🙂"))))["message"] == "naïve 漢字 🙂"


def test_a_long_traceback_loses_its_middle() -> None:
    text = failures.traceback_of(caught(ValueError("x" * 100_000)))
    assert len(text) < failures.TRACEBACK_CHARS + 100
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("x")
    assert "characters left out" in text


def test_looms_own_frames_are_left_out() -> None:
    def handler() -> None:
        raise ValueError("here")

    def loom_calls_it() -> None:
        handler()

    with pytest.raises(ValueError, match="here") as found:
        loom_calls_it()
    text = failures.traceback_of(found.value, skip=2)
    assert "in handler" in text
    assert "loom_calls_it" not in text


STRANGE: list[tuple[Any, str]] = [
    (None, "L2005 Error in actor 'store': None"),
    ("plain text", "L2005 Error in actor 'store': 'plain text'"),
    ({}, "L2005 None in actor 'store': "),
    ({"code": "X17", "message": "mine"}, "L2005 X17 in actor 'store': mine"),
    ({"code": 17, "type": "Mine", "message": 5}, "L2005 Mine in actor 'store': 5"),
    ({"code": ["L2001"], "message": "listed"}, "L2005 ['L2001'] in actor 'store': listed"),
    ({"code": {"a": 1}}, "L2005 {'a': 1} in actor 'store': "),
    ({"code": "L2001"}, "L2001 "),
    ({"code": "L2003", "message": None}, "L2003 None"),
]


@pytest.mark.parametrize(("body", "text"), STRANGE, ids=[repr(body) for body, _ in STRANGE])
def test_a_body_that_no_loom_wrote(body: Any, text: str) -> None:
    back = failures.from_wire(body, "store")
    assert isinstance(back, LoomError)
    assert str(back) == text
