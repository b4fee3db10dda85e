"""What every test here stands on: a runtime folder of its own, and the proof that it left nothing behind.

After each test there must be no new process of a node, no new file of one, and no new descriptor in this process.
Things that end by themselves get a few seconds to do so. What a module's own fixtures hold is theirs until the module
is done.
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import loom

GRACE_S = 8.0
"""How long processes, files and descriptors may take to go once a test is over."""

MARK = "LOOM_TEST_RUN"
"""Environment variable that tells this run's processes from those of another run on the same machine."""

SHM = Path("/dev/shm")

_COOKIE = re.compile(rb"(?:^|\0)LOOM_COOKIE_([0-9a-f]+)=")
_FAILED = pytest.StashKey[bool]()


class Remains(NamedTuple):
    """What there is at one moment. `descriptors`: how many of this process's own, by kind."""

    processes: frozenset[str]
    shared_memory: frozenset[str]
    files: frozenset[str]
    descriptors: Counter[str]

    def beyond(self, before: Remains) -> list[str]:
        """What was not there before, one line each."""
        return [
            *(f"process {one}" for one in sorted(self.processes - before.processes)),
            *(f"shared memory {one}" for one in sorted(self.shared_memory - before.shared_memory)),
            *(f"file {one}" for one in sorted(self.files - before.files)),
            *(f"{count} x {kind} descriptor" for kind, count in (self.descriptors - before.descriptors).items()),
        ]


def look(mark: str, folder: Path) -> Remains:
    """What this run, known by `mark`, has on the machine now."""
    ours: set[str] = set()
    cookies: set[str] = set()
    foreign: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            continue
        found = {match.decode() for match in _COOKIE.findall(environ)}
        if f"{MARK}={mark}\0".encode() in environ:
            # By cookie, not by pid: a module's node may restart its actors while a test runs.
            ours.update(f"with LOOM_COOKIE_{cookie}" for cookie in found)
            cookies |= found
        else:
            foreign |= found
    return Remains(
        processes=frozenset(ours),
        # By arena and by node, for these may grow while a test runs, too.
        shared_memory=frozenset(
            name.partition(".")[0] for name in _shared_memory() if not _is_foreign(name, foreign - cookies)
        ),
        files=frozenset(str(path.relative_to(folder)) for path in folder.glob("loom/*")),
        descriptors=_descriptors(),
    )


def _shared_memory() -> list[str]:
    """Files that a node or a test of this process may have made; a test's own arenas have our pid in their name."""
    return [
        path.name
        for path in SHM.glob("loom-*")
        if path.name.startswith(f"loom-{os.getuid()}-") or str(os.getpid()) in re.split(r"[-.]", path.name)
    ]


def _is_foreign(name: str, cookies: set[str]) -> bool:
    return any(cookie in name for cookie in cookies)


def _descriptors() -> Counter[str]:
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the one that lists the folder
            continue
        if target.startswith(("socket:", "pipe:", "/memfd:", "/dev/shm/loom-")):
            kinds[target.partition(":")[0].removeprefix("/")] += 1
        elif target.startswith("anon_inode:"):
            kinds[target] += 1
    return kinds


def _holds_a_node() -> bool:
    """Whether this process is connected to a node now: then what it opens towards actors is that connection's."""
    links: Any = sys.modules.get("loom.actor.links")
    return links is not None and any(not one.context.closed for one in list(links._by_endpoint.values()))


def _left_behind(mark: str, folder: Path, before: Remains, *, descriptors: bool) -> list[str]:
    """What is there that was not there before, after a while; empty as soon as there is nothing."""
    until_s = time.monotonic() + GRACE_S
    while True:
        now = look(mark, folder)
        left = (now if descriptors else now._replace(descriptors=Counter())).beyond(before)
        if not left or time.monotonic() > until_s:
            return left
        gc.collect()
        time.sleep(0.02)


@pytest.fixture(scope="session")
def runtime_folder() -> Iterator[Path]:
    """This run's own XDG_RUNTIME_DIR: nodes of the tests meet no other nodes. Short, for socket paths are."""
    folder = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv(MARK, secrets.token_hex(8))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(request: pytest.FixtureRequest, runtime_folder: Path) -> Iterator[None]:
    """A module, its fixtures included, leaves no process, file or descriptor."""
    mark = os.environ[MARK]
    failed_before = request.session.testsfailed
    held = _holds_a_node()
    before = look(mark, runtime_folder)
    yield
    failed = request.session.testsfailed > failed_before
    left = _left_behind(mark, runtime_folder, before, descriptors=not (failed or held))
    assert not left, "the module left behind: " + "; ".join(left)


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest, runtime_folder: Path) -> Iterator[None]:
    """A test leaves no process, file or descriptor.

    Descriptors are not counted when the test failed, for its traceback keeps what it held; nor while a wider fixture
    holds a node.
    """
    mark = os.environ[MARK]
    held = _holds_a_node()
    before = look(mark, runtime_folder)
    yield
    failed = request.node.stash.get(_FAILED, False)
    request.node.funcargs.clear()  # pytest would keep what the test's fixtures gave until after this
    left = _left_behind(mark, runtime_folder, before, descriptors=not (failed or held))
    assert not left, "the test left behind: " + "; ".join(left)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture
def node() -> Iterator[loom.Node]:
    """A node of the test's own that restarts its children as often as they die."""
    with loom.Node(supervisor=loom.SupervisorSpec(max_restarts=100_000, within_s=60)) as node:
        yield node


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(predicate, within_s=10)`: look again and again until it is true, and return what it said."""

    def wait(predicate: Callable[[], Any], within_s: float = 10.0) -> Any:
        end_s = time.monotonic() + within_s
        while True:
            found = predicate()
            if found:
                return found
            if time.monotonic() > end_s:
                pytest.fail(f"not so within {within_s:g} s, the last look gave {found!r}: {predicate}")
            time.sleep(0.005)

    return wait
