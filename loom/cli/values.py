"""Values between a shell and an actor: words in, JSON or readable text out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from loom.errors import UsageError

ARRAY_ITEMS = 10_000
"""An array with more items is described instead of listed."""

_BY_NAME = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def read_arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Words of a command line -> (args, kwargs). Raises: UsageError (L1008) for a name given twice."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        named = _BY_NAME.fullmatch(word)
        if named is None:
            args.append(_value(word))
        elif named[1] in kwargs:
            raise UsageError(f"argument {named[1]!r} is given twice: leave one out")
        else:
            kwargs[named[1]] = _value(named[2])
    return args, kwargs


def _value(word: str) -> Any:
    try:
        return json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return word


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are not JSON


def as_json(value: Any, *, full: bool = False) -> str:
    """A value as one line of JSON; what JSON has no form for, as the text that `str` makes of it."""

    def hook(found: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(found, numpy.ndarray):
            if full or found.size <= ARRAY_ITEMS:
                return found.tolist()
            return {"dtype": str(found.dtype), "shape": list(found.shape), "bytes": found.nbytes}
        if numpy is not None and isinstance(found, numpy.generic):
            return found.item()
        return str(found)

    try:
        return msgspec.json.encode(value, enc_hook=hook).decode()
    except UnicodeEncodeError:  # half a surrogate pair, as in file names that are not UTF-8
        return json.dumps(value, default=hook)
    except RecursionError:
        return json.dumps(f"a {type(value).__name__} nested too deeply to be printed")


def as_text(value: Any, *, full: bool = False) -> str | None:
    """A value as people read it; None when there is nothing to show."""
    if value is None or isinstance(value, str):
        return value
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        shape = " x ".join(map(str, value.shape)) or "no dimensions"
        with numpy.printoptions(threshold=sys.maxsize if full else 1000):
            return f"{value.dtype} array, {shape}:\n{value}"
    text = as_json(value, full=full)
    if isinstance(value, (dict, list, tuple)) and len(text) > 100:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text
