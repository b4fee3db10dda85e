"""How a failed command says so: one line on standard error, or with --json one object on standard output.

    loom-node: L1003 no actor named 'indx' on this node: did you mean 'index'?
    {"error": {"code": "L1003", "message": "no actor named 'indx' on this node: did you mean 'index'?"}}

A remote exception's traceback follows, indented, with --verbose; in JSON it is always there.
"""

from __future__ import annotations

import json
import sys
import textwrap
import traceback

from loom.errors import ActorImportError, ConfigError, InputError, InternalError, LoomError, RemoteError, UsageError

_WRONG_INPUT = (ActorImportError, ConfigError, InputError, UsageError)
_MARK = "\n--- remote traceback ---\n"


def report(error: Exception, *, as_json: bool, verbose: bool) -> int:
    """Tell people or a program what went wrong; the exit code. What is not a LoomError is reported as a bug."""
    code, text, remote = _parts(error)
    if as_json:
        body = {"code": code, "message": text}
        if isinstance(error, RemoteError):
            body |= {"type": error.type_name, "actor": error.actor}
        if remote:
            body["traceback"] = remote
        print(json.dumps({"error": body}, ensure_ascii=False))
    else:
        line = f"loom-node: {code} {text}"
        if remote and not verbose:
            line += " (--verbose shows the traceback)"
        print(line, file=sys.stderr)
        if remote and verbose:
            print(textwrap.indent(remote, "    "), file=sys.stderr)
    return 2 if isinstance(error, _WRONG_INPUT) else 1


def _parts(error: Exception) -> tuple[str, str, str]:
    """An error as its code, one line of text, and the traceback that came with it."""
    if not isinstance(error, LoomError):
        text = f"a bug in loom-node, please report it: {type(error).__name__}: {error}"
        return InternalError.code, _one_line(text), "".join(traceback.format_exception(error)).rstrip()
    text, _, remote = error.text.partition(_MARK)
    return error.code, _one_line(text), remote.rstrip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
