"""A /dev/shm of 8 MiB, a disk of 4 MiB, in a mount namespace of their own: no room is ArenaFull, never SIGBUS."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
from loom.arena import Arena
from loom.errors import ArenaFull
arena = Arena.create("loom-small", 1 << 30)
held = []
try:
    while True:
        block = arena.lease(1 << 20, timeout_s=0)
        memoryview(block)[:] = b"x" * (1 << 20)
        held.append(block)
except ArenaFull as error:
    print(len(held), error)
for block in held:
    assert bytes(block) == b"x" * (1 << 20)
other = Arena.attach("loom-small")
try:
    other.send(bytes(2 << 20), timeout_s=0)
except ArenaFull as error:
    print(error)
held.clear()
arena.trim()
assert other.accept(other.send(bytes(2 << 20))[0]).size_bytes == 2 << 20
other.close()
open("/dev/shm/filler", "wb").write(bytes(os.statvfs("/dev/shm").f_bavail * 4096))
try:
    Arena.create("loom-none", 1 << 20)
except ArenaFull as error:
    print(error)
print("done")
"""


SPILLS = """
import os, sys
import numpy as np
from loom.arena import Arena, FullPolicy, empty, share
from loom.errors import ArenaFull
spill = sys.argv[1]
arena = Arena.create("loom-small", 1 << 30, FullPolicy("spill", 60.0, spill))
held = []
try:
    while True:
        block = arena.lease(1 << 20)
        memoryview(block)[:] = bytes([len(held)]) * (1 << 20)
        held.append(block)
except ArenaFull as error:
    print(len(held), arena.stats().spilled_blocks, error)
for attempt in (lambda: arena.send(bytes(1 << 20)), lambda: empty(1 << 20, np.uint8, arena=arena)):
    try:
        attempt()
    except ArenaFull as error:
        print(error)
other = Arena.attach("loom-small")         # what lies on the full disk can be read by others, and by us again
taken = [other.accept(arena.send(block)[0]) for block in held]
for number, block in enumerate(taken):
    assert bytes(block) == bytes([number]) * (1 << 20)
files = os.listdir(arena.policy.spill)
print(len(files), arena.stats().spill_free_bytes < 1 << 20)
held.clear()
taken.clear()
del block
arena.collect()
assert os.listdir(arena.policy.spill) == []
array = share(np.arange(1 << 17), arena=arena)
assert array.sum() == sum(range(1 << 17))
filler = os.open(os.path.join(spill, "filler"), os.O_WRONLY | os.O_CREAT)
try:
    while True: os.write(filler, bytes(4096))
except OSError:
    os.close(filler)
del array
arena.destroy()
arena.close()
again = Arena.create("loom-small", 1 << 20, FullPolicy("spill", 1.0, spill))  # a full disk is no reason not to start
again.destroy()
again.close()
print(os.listdir(spill), sorted(name for name in os.listdir("/dev/shm")))
"""


def run(mounts: str, program: str, *arguments: str) -> list[str]:
    """What a program prints that runs with these mounts, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare(1) here")
    if subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")
    script = f'{mounts} && exec "$0" -c "$@"'
    ran = subprocess.run(
        [unshare, "-m", "sh", "-c", script, sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "mount" in ran.stderr and ran.returncode:
        pytest.skip(f"cannot mount a tmpfs: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_small_dev_shm() -> None:
    first, second, third, done = run("mount -t tmpfs -o size=8M tmpfs /dev/shm", PROGRAM)
    blocks, text = first.split(" ", 1)
    assert 5 <= int(blocks) <= 7
    assert text.startswith("L3003 arena 'loom-small' has no room for 1.0 MiB")
    assert "/dev/shm is smaller than the budget: mount -o remount,size=8G /dev/shm" in text
    assert second.startswith("L3003")
    assert third.startswith("L3003 cannot create arena 'loom-none'")
    assert done == "done"


def test_a_small_dev_shm_and_a_small_disk(tmp_path: Path) -> None:
    """What finds no room in memory goes to the disk; when that is full too it is ArenaFull at once, never SIGBUS."""
    mounts = f"mount -t tmpfs -o size=8M tmpfs /dev/shm && mount -t tmpfs -o size=4M tmpfs {tmp_path}"
    first, second, third, read, left = run(mounts, SPILLS, str(tmp_path))
    blocks, spilled, text = first.split(" ", 2)
    assert 2 <= int(spilled) <= 3
    assert 5 + int(spilled) <= int(blocks) <= 7 + int(spilled)
    for line in (text, second, third):
        assert line.startswith("L3003 arena 'loom-small' has no room for 1.0 MiB (waited 0 s)")
        assert f"in files in {tmp_path}/loom-small.spill, " in line
        assert "Remedy: that disk is full too: free space there, or name another folder (`arena_spill`" in line
    assert int(read.split()[0]) <= int(spilled)
    assert read.endswith("True")
    assert left == "['filler'] []"


def test_a_small_disk_and_room_in_memory(tmp_path: Path) -> None:
    """A budget that is used up, while /dev/shm is not."""
    program = SPILLS.replace("1 << 30", "4 << 20")
    first, *_, left = run(
        f"mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs -o size=4M tmpfs {tmp_path}", program, str(tmp_path)
    )
    blocks, spilled, _ = first.split(" ", 2)
    assert int(blocks) == 4 + int(spilled)
    assert left == "['filler'] []"
