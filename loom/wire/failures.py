"""Error bodies: exceptions <-> the map that an `error` message carries.

A map {code, type, message, traceback, ...}. Code L2005 is a handler's exception and comes back as RemoteError; any
other code is Loom's own refusal and comes back as that class of `loom.errors`.
"""

from __future__ import annotations

import traceback
from typing import Any

from loom import errors
from loom.errors import ActorDied, ChildError, LoomError, RemoteError

_BY_CODE: dict[str, type[LoomError]] = {
    found.code: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, LoomError) and found is not LoomError
}

TRACEBACK_CHARS = 32_000
"""A longer remote traceback loses its middle."""


def refusal(error: LoomError) -> dict[str, Any]:
    """Loom's own error -> map; the other side raises the same class."""
    body: dict[str, Any] = {"code": error.code, "type": type(error).__name__, "message": _text(error.text)}
    if isinstance(error, ActorDied):
        body["started"] = error.started
        body["cause"] = _text(error.cause)
    elif isinstance(error, ChildError):
        body["reason"] = error.reason
    return body


def raised(error: BaseException, skip: int = 1) -> dict[str, Any]:
    """A handler's exception -> map; the other side raises RemoteError. `skip`: Loom's own frames at the top."""
    return {
        "code": RemoteError.code,
        "type": _text(type(error).__qualname__),
        "message": _text(message_of(error)),
        "traceback": _text(traceback_of(error, skip)),
    }


def from_wire(body: Any, actor: str) -> LoomError:
    """Map -> exception, also for maps that no Loom wrote."""
    if not isinstance(body, dict):
        return RemoteError("Error", repr(body), "", actor)
    code, message = body.get("code"), str(body.get("message", ""))
    if not isinstance(code, str) or code == RemoteError.code or code not in _BY_CODE:
        return RemoteError(str(body.get("type", code)), message, str(body.get("traceback", "")), actor)
    if code == ActorDied.code:
        return ActorDied(message, started=body.get("started"), cause=str(body.get("cause", "")))
    if code == ChildError.code:
        return ChildError(message, reason=str(body.get("reason", "")))
    return _BY_CODE[code](message)


def _text(text: str) -> str:
    """What MessagePack can carry of it: lone surrogates (file names have them) are written as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def message_of(error: BaseException) -> str:
    """str(error), even when its __str__ raises."""
    try:
        return str(error)
    except Exception:
        return "<its __str__ raised>"


def traceback_of(error: BaseException, skip: int = 0) -> str:
    """The formatted traceback, without the first `skip` frames."""
    frames = error.__traceback__
    for _ in range(skip):
        if frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:
        text = f"{type(error).__qualname__}: {message_of(error)}\n"
    if len(text) > TRACEBACK_CHARS:
        half = TRACEBACK_CHARS // 2
        text = f"{text[:half]}\n... {len(text) - TRACEBACK_CHARS} characters left out ...\n{text[-half:]}"
    return text
