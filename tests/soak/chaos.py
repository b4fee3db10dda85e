"""Soak: a tree of 50 actors under load, while chaos strikes: SIGKILL, SIGSTOP, exceptions, full mailboxes.

    python -m tests.soak.chaos --minutes 10            # run it from the repository's root
    python -m tests.soak.chaos --seconds 20 --seed 7 --strike-every-s 0.05

Supervisors of every strategy, one within another; actors with state, with small mailboxes, actors that ask one another.
Threads and an event loop ask and tell all the time, some with deadlines. It must come out that
  - every ask ended, in the right answer or in an error that says what happened;
  - an actor that saves after each message has every number that it ever answered;
  - each actor's counters sum to what it received;
  - in the end there is no process, no file, no socket and no segment of the node, this program has as many descriptors
    and threads as before, and before the end the node has no more memory or descriptors in use than before the chaos.
Progress goes to standard error, the result as JSON to standard output; the exit code is 1 when anything was not so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import loom
from loom.errors import LoomError, NodeDown
from loom.supervise import sweep
from tests.soak.troupe import ACTORS, KEEPERS, tree

ANSWER_S = 20.0
"""An ask that has not ended by then is lost."""
SETTLE_S = 60.0
STOPPED_S = 0.3
"""The longest that an actor is left stopped."""
GROWTH_BYTES = 48 << 20
"""What the node process may have more in the end: heap that Python and ZeroMQ keep for reuse."""

EXPECTED = frozenset(("right", "raised", "L2001", "L2002", "L2003", "L2004"))
"""How an ask may end: answered, with the exception it asked for, died, too late, mailbox full, refused."""


class Strikes(threading.Thread):
    """Kills and stops actors at random; `counts` says how often. Nobody is stopped any more after `stop`."""

    def __init__(self, node: loom.Node, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.counts: Counter[str] = Counter()
        self._node = node
        self._every_s = every_s
        self._random = random.Random(seed)
        self._done = threading.Event()
        self._stopped: deque[tuple[float, int]] = deque()

    def run(self) -> None:
        """Until `stop`."""
        while not self._done.wait(self._random.expovariate(1 / self._every_s)):
            self._wake(time.monotonic())
            victims = [one for one in self._node.stats().actors if one.pid]
            if not victims:
                continue
            how = self._random.choice(("SIGKILL", "SIGSTOP"))
            pidfd = _pidfd(self._random.choice(victims).pid)
            if pidfd is None:
                continue
            try:
                signal.pidfd_send_signal(pidfd, getattr(signal, how))
            except ProcessLookupError:
                os.close(pidfd)
                continue
            self.counts[how] += 1
            if how == "SIGSTOP":
                self._stopped.append((time.monotonic() + self._random.uniform(0, STOPPED_S), pidfd))
            else:
                os.close(pidfd)
        self._wake(float("inf"))

    def _wake(self, now: float) -> None:
        """SIGCONT to those whose time has come."""
        for _ in range(len(self._stopped)):
            until, pidfd = self._stopped.popleft()
            if until > now:
                self._stopped.append((until, pidfd))
                continue
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            except ProcessLookupError:
                pass
            os.close(pidfd)

    def stop(self) -> None:
        """No more strikes after this."""
        self._done.set()
        self.join()


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


class Load:
    """Asks and tells from several threads and one event loop, and what became of them."""

    def __init__(self, node: loom.Node, seed: int) -> None:
        self.asks: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.wrong = 0
        self.examples: dict[str, str] = {}
        self.kept: dict[str, set[int]] = {name: set() for name in KEEPERS}
        """Numbers that keepers have answered."""
        self._node = node
        self._seed = seed
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._numbers = iter(range(1, 1 << 62))
        self._threads = [threading.Thread(target=self._thread, args=(number,)) for number in range(3)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._loop())))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask nothing more; returns when every ask has ended."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _thread(self, number: int) -> None:
        chance = random.Random(self._seed + number)
        while not self._done.is_set():
            under_way = [self._ask(chance) for _ in range(chance.choice((1, 5, 60)))]
            for asked in under_way:
                if asked is not None:
                    name, value, check, reply = asked
                    try:
                        self._answered(name, value, check, reply.result(timeout_s=ANSWER_S))
                    except LoomError as error:
                        self._failed(check, error)

    async def _loop(self) -> None:
        chance = random.Random(self._seed + 1000)
        while not self._done.is_set():
            under_way = [self._ask(chance) for _ in range(chance.choice((1, 5, 60)))]
            for asked in under_way:
                if asked is not None:
                    name, value, check, reply = asked
                    try:
                        self._answered(name, value, check, await asyncio.wait_for(_wait(reply), ANSWER_S))
                    except LoomError as error:
                        self._failed(check, error)
                    except TimeoutError:
                        self._note("lost", f"{reply!r}")

    def _ask(self, chance: random.Random) -> tuple[str, Any, str, loom.Reply] | None:
        """One ask, or some tells."""
        kind = chance.choice(("echo", "echo", "array", "nap", "relay", "fail", "keep", "keep", "deadline", "tells"))
        name = chance.choice(KEEPERS if kind == "keep" else ACTORS)
        with self._lock:
            value: Any = next(self._numbers)
            self.asks[kind] += 1
        try:
            actor = self._node._verbs.reference(name)
            if kind == "tells":
                for _ in range(20):
                    actor.echo.tell(value)
                with self._lock:
                    self.asks[kind] -= 1
                return None
            if kind == "echo":
                return name, value, kind, actor.echo(value)
            if kind == "array":
                return name, value, kind, actor.sum(np.full(20_000, value % 1000, np.int64))
            if kind == "nap":
                return name, value, kind, actor.nap(value, chance.uniform(0, 0.02))
            if kind == "relay":
                return name, value, kind, actor.relay(chance.choice(ACTORS), value)
            if kind == "fail":
                return name, value, kind, actor.fail(value)
            if kind == "keep":
                return name, value, kind, actor.keep(value)
            return name, value, kind, actor.work.options(timeout_s=chance.uniform(0.001, 0.05))(value, 0.002)
        except LoomError as error:
            if kind != "tells":
                self._failed(kind, error)
            else:
                with self._lock:
                    self.asks[kind] -= 1
            return None

    def _answered(self, name: str, value: Any, kind: str, answer: Any) -> None:
        expected = value % 1000 * 20_000 if kind == "array" else value
        with self._lock:
            right = answer == expected or (kind == "relay" and answer == "the other one failed")
            self.wrong += not right
            self.ended["right"] += 1
            if kind == "keep" and right:
                self.kept[name].add(value)

    def _failed(self, kind: str, error: LoomError) -> None:
        how = "lost" if error.code == "L2002" and kind != "deadline" else error.code
        if kind == "fail" and error.code == "L2005" and getattr(error, "type_name", "") == "ValueError":
            how = "raised"
        self._note(how, str(error))

    def _note(self, how: str, text: str) -> None:
        with self._lock:
            self.ended[how] += 1
            self.examples.setdefault(how, text[:500])


async def _wait(reply: loom.Reply) -> Any:
    return await reply


class Figures:
    """What the node and this program have in use at one moment."""

    def __init__(self, node: loom.Node) -> None:
        gc.collect()
        self.node_fds = len(os.listdir(f"/proc/{node.pid}/fd"))
        self.node_bytes = _rss_bytes(node.pid)
        self.arena_bytes = node.stats().arena.in_use_bytes
        self.processes = len(_processes(node))


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _processes(node: loom.Node) -> list[int]:
    return sweep.processes_of(_cookie(node))


def _cookie(node: loom.Node) -> str:
    return str(node.info()["arena"]).rpartition("-")[2]


def settle(node: loom.Node, before: Figures) -> Figures:
    """The figures when all is as before, or after SETTLE_S."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        for name in ACTORS:
            ask(node, name, "echo", 0)  # who answers has looked at what it sent
        loom.arena.current().collect()
        now = Figures(node)
        is_settled = (
            now.arena_bytes <= before.arena_bytes
            and now.processes == before.processes
            and now.node_fds <= before.node_fds + 8
            and not unaccounted(node)
        )
        if is_settled or time.monotonic() > until_s:
            return now
        time.sleep(0.2)


def ask(node: loom.Node, name: str, method: str, *args: Any) -> Any:
    """The first answer of whoever bears the name: a strike may still be on its way."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        try:
            return getattr(node.lookup(name), method)(*args).result(timeout_s=ANSWER_S)
        except NodeDown:
            raise
        except LoomError:
            if time.monotonic() > until_s:
                raise


def unaccounted(node: loom.Node) -> dict[str, int]:
    """Messages of each actor that no counter says the end of."""
    return {one.name: one.unaccounted for one in node.stats().actors if one.unaccounted}


def own_descriptors() -> Counter[str]:
    """This program's open descriptors, by kind."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]] += 1
        except OSError:
            continue
    return kinds


def soak(seconds: float, seed: int, every_s: float) -> dict[str, Any]:
    """Run it; the result."""
    descriptors, threads = own_descriptors(), threading.active_count()
    result = _play(seconds, seed, every_s)
    left = result["left"]
    left["descriptors"] = dict(_gone(lambda: own_descriptors() - descriptors))
    left["threads"] = threading.active_count() - threads
    result["ok"] = result["ok"] and not any(left.values())
    return result


def _play(seconds: float, seed: int, every_s: float) -> dict[str, Any]:
    """All but a look at what this program itself still holds, which must not be while this function's names live."""
    with loom.Node(arena="256MiB", supervisor=tree()) as node:
        for name in ACTORS:
            ask(node, name, "echo", 0)
        before = settle(node, Figures(node))
        cookie, folder = _cookie(node), Path(node.endpoint.removeprefix("ipc://")).parent
        load, strikes = Load(node, seed), Strikes(node, every_s, seed)
        load.start()
        strikes.start()
        _watch(seconds, load, strikes)
        strikes.stop()
        load.stop()
        after = settle(node, before)
        lost = {
            name: sorted(gone)[:10] for name in KEEPERS if (gone := load.kept[name] - set(ask(node, name, "numbers")))
        }
        missing = _gone(lambda: Counter(unaccounted(node)))  # who has answered may be about to count that
        stats = node.stats()
    left = {
        "processes": len(sweep.processes_of(cookie)),
        "folder": [str(folder)] if folder.exists() else [],
        "shared_memory": [str(path) for path in Path("/dev/shm").glob(f"*{cookie}*")],
        "arena_bytes": max(0, after.arena_bytes - before.arena_bytes),
        "node_descriptors": max(0, after.node_fds - before.node_fds - 8),
        "node_bytes": max(0, after.node_bytes - before.node_bytes - GROWTH_BYTES),
    }
    asked, ended = sum(load.asks.values()), sum(load.ended.values())
    unexpected = {how: load.examples.get(how, "") for how in load.ended.keys() - EXPECTED}
    return {
        "ok": not (unexpected or load.wrong or lost or missing or asked != ended),
        "seconds": seconds,
        "asks": asked,
        "ended": dict(load.ended),
        "not_ended": asked - ended,
        "wrong": load.wrong,
        "unexpected": unexpected,
        "strikes": dict(strikes.counts),
        "restarts": stats.restart_count,
        "lost_numbers": lost,
        "kept_numbers": sum(map(len, load.kept.values())),
        "unaccounted_messages": missing,
        "left": left,
        "node_mib": [round(before.node_bytes / 2**20, 1), round(after.node_bytes / 2**20, 1)],
        "seed": seed,
    }


def _gone(look: Callable[[], Counter[str]]) -> Counter[str]:
    """What is still there after a while: the garbage collector closes some things, actors come to rest."""
    until_s = time.monotonic() + 10
    while (found := look()) and time.monotonic() < until_s:
        gc.collect()
        time.sleep(0.05)
    return found


def _watch(seconds: float, load: Load, strikes: Strikes) -> None:
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        time.sleep(min(10.0, seconds - passed))
        print(f"{passed:6.0f} s  {dict(load.ended)}  {dict(strikes.counts)}", file=sys.stderr)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the chaos lasts (default: 10)")
    parser.add_argument("--seconds", type=float, help="the same, in seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of the choices made")
    parser.add_argument("--strike-every-s", type=float, default=0.1, help="mean seconds between strikes (default: 0.1)")
    chosen = parser.parse_args()
    os.environ.setdefault("LOOM_LOG", "critical")  # a line for every strike would be too many
    seconds = chosen.minutes * 60 if chosen.seconds is None else chosen.seconds
    result = soak(seconds, chosen.seed, chosen.strike_every_s)
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
