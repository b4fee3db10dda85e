"""The tag in the environment of an incarnation and of everything it starts: by it the node knows whose they are.

See loom/supervise/orphans.py.
"""

from __future__ import annotations

import ctypes
import os

TAG_BYTES = 24
BLANK = "-" * TAG_BYTES
"""The value before anybody is tagged."""


def variable(cookie: str) -> str:
    """Name of the environment variable that holds the tag, on the node with that cookie."""
    return f"LOOM_ACTOR_{cookie}"


def put(cookie: str, tag: str) -> None:
    """Tag this process, and what it will start. Written over the blank, so that /proc shows it without an exec."""
    name = variable(cookie)
    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = getenv(name.encode())
    if address is not None and len(ctypes.string_at(address)) == TAG_BYTES:
        ctypes.memmove(address, tag.encode().ljust(TAG_BYTES, b"\0"), TAG_BYTES)
    os.environ[name] = tag


def tag_of(pid: int, cookie: str) -> str:
    """The tag of a process; "" when it has none, is gone, or is not ours to look at."""
    begin = f"{variable(cookie)}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            found = next((one for one in file.read().split(b"\0") if one.startswith(begin)), b"")
    except OSError:
        return ""
    tag = found[len(begin) :].decode(errors="replace")
    return "" if tag == BLANK else tag
