"""A /dev/shm of 8 MiB, in a mount namespace of its own: running out is ArenaFull with the numbers, never SIGBUS."""

from __future__ import annotations

import shutil
import subprocess
import sys

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


def test_a_small_dev_shm() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare(1) here")
    if subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")
    mounted = 'mount -t tmpfs -o size=8M tmpfs /dev/shm && exec "$0" -c "$1"'
    ran = subprocess.run(
        [unshare, "-m", "sh", "-c", mounted, sys.executable, PROGRAM], capture_output=True, text=True, timeout=60
    )
    if "mount" in ran.stderr and ran.returncode:
        pytest.skip(f"cannot mount a tmpfs: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    first, second, third, done = ran.stdout.splitlines()
    blocks, text = first.split(" ", 1)
    assert 5 <= int(blocks) <= 7
    assert text.startswith("L3003 arena 'loom-small' has no room for 1.0 MiB")
    assert "/dev/shm is smaller than the budget: mount -o remount,size=8G /dev/shm" in text
    assert second.startswith("L3003")
    assert third.startswith("L3003 cannot create arena 'loom-none'")
    assert done == "done"
