"""Kill a process at every system call by which it writes a store: what was committed is there, and no lock stays.

A library that is preloaded counts the calls that change a file of the store, and sends SIGKILL before the Nth, or in
the middle of it: then half of what was to be written is. N = 1, 2, 3 ... until a run comes to its end.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loom.store import Store, Table

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int ours(int fd) {
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, target, sizeof target - 1);
    if (got < 0) return 0;
    target[got] = 0;
    return strstr(target, "data.mdb") != NULL;
}
static int strikes(int fd) {
    static int left = 0;
    if (!ours(fd)) return 0;
    if (!left) left = getenv("KILL_AT") ? atoi(getenv("KILL_AT")) : -1;
    return left > 0 && --left == 0;
}
static int halves(void) { return getenv("KILL_HALF") != NULL; }

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    if (strikes(fd)) { if (halves()) real(fd, data, size / 2, at); raise(SIGKILL); }
    return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwritev");
    if (strikes(fd)) { if (halves()) real(fd, parts, count / 2, at); raise(SIGKILL); }
    return real(fd, parts, count, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    if (strikes(fd)) { if (halves()) real(fd, parts, count / 2); raise(SIGKILL); }
    return real(fd, parts, count);
}
ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (strikes(fd)) { if (halves()) real(fd, data, size / 2); raise(SIGKILL); }
    return real(fd, data, size);
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (strikes(fd)) raise(SIGKILL);
    return real(fd);
}
int ftruncate(int fd, off_t size) {
    static int (*real)(int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "ftruncate");
    if (strikes(fd)) raise(SIGKILL);
    return real(fd, size);
}
"""

WRITER = """
import sys
from loom.store import Store, Table
store = Store.open(sys.argv[1], durable=sys.argv[2] == "True")
table = Table(store, "rows", list[int])
for number in range(1, 6):
    # Two rows in one transaction: both or none. They need fresh pages, an overflow page, and free old ones.
    row = [number] * (700 * number)
    store.write(lambda txn: (table.put("a", row, txn), table.put("b", row, txn)))
    print(number, flush=True)
"""

BUSY = """
import sys
from loom.store import Store, Table
table = Table(Store.open(sys.argv[1], durable=False), "rows", int)
number = table.get(sys.argv[2]) or 0
while True:
    number += 1
    table.put(sys.argv[2], number)
    print(number, flush=True)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, folder / "shim.c", "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library


def write(folder: Path, shim: Path, durable: bool, nth: int, *, half: bool) -> tuple[int, int]:
    """Let the writer live until its Nth call; its exit code, and the last number that it said was committed."""
    environ = {**os.environ, "LD_PRELOAD": str(shim), "KILL_AT": str(nth)}
    if half:
        environ["KILL_HALF"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(durable)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    said = done.stdout.split()
    return done.returncode, int(said[-1]) if said else 0


@pytest.mark.parametrize("half", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not"])
def test_killed_at_each_write_of_a_commit_the_last_commit_is_whole(
    tmp_path: Path, shim: Path, durable: bool, half: bool
) -> None:
    kills = 0
    for nth in range(1, 200):
        folder = tmp_path / f"at-{nth}"
        code, said = write(folder, shim, durable, nth, half=half)
        store = Store.open(folder, durable=durable)
        rows = Table(store, "rows", list[int])
        a, b = rows.get("a"), rows.get("b")
        assert a == b
        number = a[0] if a else 0
        assert a is None or a == [number] * (700 * number)
        assert said <= number <= said + 1  # committed, and killed before it could say so
        rows.put("a", [99])  # no lock stays
        assert rows.get("a") == [99]
        store.close()
        if code == 0:
            break
        kills += 1
    else:
        pytest.fail("the writer never came to its end")
    assert kills >= 10


def test_writers_killed_at_random_hold_up_nobody_and_lose_nothing(tmp_path: Path) -> None:
    """Many of these kills hit a process that holds the writers' lock."""
    folder = tmp_path / "store"
    chance = random.Random(1)
    said: dict[str, int] = {}
    for _ in range(25):
        writers = [
            (key, subprocess.Popen([sys.executable, "-c", BUSY, str(folder), key], stdout=subprocess.PIPE, text=True))
            for key in ("a", "b", "c")
        ]
        for _, writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()  # all are at it
        time.sleep(chance.uniform(0.0, 0.02))
        for _, writer in writers:
            writer.kill()
        for key, writer in writers:
            text, _ = writer.communicate(timeout=60)
            numbers = [int(line) for line in text.split("\n")[:-1] if line]
            said[key] = numbers[-1] if numbers else said.get(key, 0)
        store = Store.open(folder, durable=False)
        table = Table(store, "rows", int)
        for key, number in said.items():
            assert number <= (table.get(key) or 0)
        store.close()
    assert min(said.values()) > 25


@pytest.fixture(autouse=True)
def _closes_all() -> Iterator[None]:
    yield
    from loom.store import environment

    for store in list(environment._open.values()):  # of a test that failed
        store.close()
