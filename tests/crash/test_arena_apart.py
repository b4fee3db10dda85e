"""Who may not: an attach that fails destroys nothing, and another user neither reads nor removes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loom import _native
from loom.arena import Arena, FullPolicy, destroy_files
from loom.errors import LoomError, NodeNotFound, ProtocolError, StaleReference

NOBODY = 65534
CONTROL_SIZE = 200704 + 1024 * 2048 * 32


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to all, as /tmp and /var/tmp are."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="loom-apart-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)
        assert os.listdir(name) == []


@pytest.fixture
def node(folder: Path) -> Iterator[Arena]:
    node = Arena.create(f"loom-apart-{os.getpid()}", 4 << 20, FullPolicy("spill", 1.0, str(folder)))
    yield node
    node.destroy()
    node.close()
    assert not list(Path("/dev/shm").glob(f"{node.name}*"))


def files(node: Arena) -> dict[str, tuple[int, int, int, int]]:
    """Every file of an arena, with its size, its room, its mode and its owner."""
    paths = [*Path("/dev/shm").glob(f"{node.name}*"), *Path(node.policy.spill).glob("*"), Path(node.policy.spill)]
    found = {str(path): path.stat() for path in paths}
    return {path: (about.st_size, about.st_blocks, about.st_mode, about.st_uid) for path, about in found.items()}


# --- A failed attach -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\0" * 8),  # magic
        (8, (_native.LAYOUT_VERSION + 1).to_bytes(4, "little")),
        (8, (_native.LAYOUT_VERSION - 1).to_bytes(4, "little")),
        (12, b"\1\0\0\0"),  # header_size
        (16, b"\1" * 8),  # total_size
        (32, b"\1" * 16),  # boot_id
        (48, b"\1" * 4),  # participants
        (56, b"\1" * 4),  # tokens
        (60, b"\x09\0\0\0"),  # full
        (60, b"\0\0\0\0"),  # wait, and there is a spill folder
        (2048, b"/elsewhere\0"),
        (2048, b"\0"),
    ],
)
def test_an_attach_to_a_damaged_control_file_destroys_nothing(node: Arena, at: int, value: bytes) -> None:
    held, spilled = node.lease(4 << 20), node.lease(1000)
    memoryview(spilled)[:] = b"s" * 1000
    reference, _ = node.send(spilled)
    reader = Arena.attach(node.name)
    with open(f"/dev/shm/{node.name}.ctl", "r+b", buffering=0) as control:
        control.seek(at)
        before = control.read(len(value))
        control.seek(at)
        control.write(value)
        found = files(node)
        for _ in range(3):
            with pytest.raises(LoomError):
                Arena.attach(node.name)
        assert files(node) == found
        control.seek(at)
        control.write(before)
    taken = reader.accept(reference)  # as if nothing had been
    assert bytes(taken) == b"s" * 1000
    assert node.stats().participants == 2
    taken.release()
    del held
    spilled.release()
    reader.close()


@pytest.mark.parametrize("size", [0, 4096, CONTROL_SIZE - 1, CONTROL_SIZE + 1])
def test_an_attach_to_a_file_of_another_size_leaves_it(size: int) -> None:
    name = f"loom-apart-{os.getpid()}-x"
    path = Path(f"/dev/shm/{name}.ctl")
    path.touch(0o600)
    os.truncate(path, size)
    with pytest.raises((ProtocolError, NodeNotFound)):
        Arena.attach(name)
    assert path.stat().st_size == size
    assert destroy_files(name) == 1


def test_an_attach_without_descriptors_or_slots_destroys_nothing(node: Arena) -> None:
    """When the system, or the table, refuses."""
    import resource

    block = node.lease(1000)
    found, participants = files(node), node.stats().participants
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fill = [os.dup(0) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")) + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        with pytest.raises(LoomError, match="Too many open files"):
            Arena.attach(node.name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)
    everybody = [Arena.attach(node.name) for _ in range(_native.PARTICIPANTS - participants)]
    with pytest.raises(LoomError, match="L3003"):
        Arena.attach(node.name)
    for one in everybody:
        one.close()
    assert {path: rest for path, rest in files(node).items() if not path.endswith(".ctl")} == {
        path: rest for path, rest in found.items() if not path.endswith(".ctl")
    }
    assert node.stats().participants == participants
    block.release()


# --- Another user ----------------------------------------------------------------------------------------------------

OTHER = """
import ctypes, json, os, sys
from loom.arena import Arena, FullPolicy, clear_spill, destroy_files
from loom.errors import LoomError
from loom.supervise import sweep
name, spill, segments, uid = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
tried = {}
def attempt(what, work):
    try:
        tried[what] = repr(work())
    except (LoomError, OSError) as error:
        tried[what] = f"{type(error).__name__} {error}"
attempt("attach", lambda: Arena.attach(name))
attempt("destroy_files", lambda: destroy_files(name))
attempt("remove_shared_memory", lambda: sweep.remove_shared_memory(name))
attempt("clear_spill", lambda: clear_spill(os.path.dirname(spill)))
attempt("create", lambda: Arena.create(name, 1 << 20))
for path in segments:
    attempt(f"open {path}", lambda: open(path, "rb"))
    attempt(f"unlink {path}", lambda: os.unlink(path))
own = Arena.create(name + "-own", 1 << 20, FullPolicy("spill", 1.0, os.path.dirname(spill)))
held = [own.lease(1 << 20), own.lease(10)]
own.sweep()
tried["own"] = len(os.listdir(own.policy.spill))
held.clear()
own.destroy()
own.close()
print(json.dumps(tried))
"""


def other_user(node: Arena) -> dict[str, Any]:
    """What comes of another user's attempts."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    paths = [path for path in files(node) if path != node.policy.spill]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})\n{OTHER}"
    done = subprocess.run(
        [sys.executable, "-c", code, node.name, node.policy.spill, json.dumps(paths), str(NOBODY)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_another_user_reads_and_removes_nothing(node: Arena) -> None:
    held, spilled = node.lease(4 << 20), node.lease(1000)
    memoryview(spilled)[:] = b"s" * 1000
    reference, _ = node.send(spilled)
    before = files(node)
    assert len(before) == 4  # control file, a segment in memory, the folder and a segment in it
    tried = other_user(node)
    assert files(node) == before
    assert tried.pop("own") == 1
    assert "ProtocolError" in tried["attach"]
    assert "another user" in tried["attach"]
    assert "not permitted" in tried["destroy_files"]
    assert "not permitted" in tried["remove_shared_memory"]
    assert tried.pop("clear_spill") == "0"
    assert "StartFailed" in tried["create"]
    assert all("Error" in outcome or "StartFailed" in outcome for outcome in tried.values()), tried
    reader = Arena.attach(node.name)
    taken = reader.accept(reference)
    assert bytes(taken) == b"s" * 1000
    taken.release()
    reader.close()
    del held, spilled


def test_root_spares_what_is_another_users(folder: Path) -> None:
    """Root could unlink it: whose file it is decides, not who could."""
    if os.getuid() != 0:
        pytest.skip("only root can make another user's file")
    node = Arena.create(f"loom-apart-{os.getpid()}", 4 << 20, FullPolicy("spill", 1.0, str(folder)))
    held = [node.lease(4 << 20), node.lease(10)]
    paths = list(files(node))
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
    with pytest.raises(ProtocolError, match="another user"):
        Arena.attach(node.name)
    with pytest.raises(LoomError, match="not permitted"):
        destroy_files(node.name)
    assert list(files(node)) == paths
    for path in paths:
        os.chown(path, 0, 0)
    held.clear()
    node.destroy()
    node.close()


def test_references_of_one_arena_are_nothing_in_another(node: Arena) -> None:
    """Two nodes: numbers that are right in one name nothing in the other."""
    other = Arena.create(f"{node.name}-b", 4 << 20)
    block = node.lease(1000)
    reference, _ = node.send(block)
    twin = other.lease(1000)
    with pytest.raises(StaleReference):
        other.accept(reference)
    assert not other.holds(block)
    with pytest.raises(LoomError):
        Arena.attach(f"{node.name}-c")
    other.sweep()
    node.sweep()
    destroy_files(other.name)
    assert bytes(node.accept(reference)) == bytes(block)
    twin.release()
    block.release()
    other.close()
