"""Soak: a million hand-overs of arrays, while readers and owners are killed at random.

    python -m tests.soak.handover                       # 1,000,000 hand-overs; run it from the repository's root
    python -m tests.soak.handover --count 50000 --seed 7 --kill-every-s 0.02

Arrays of 32 to 64 KiB go from this program to readers, from owners to this program, from owners to readers, and there
and back again. Meanwhile SIGKILL strikes actors of both kinds at random moments, and the node restarts them. It must
come out that
  - every ask ended: in the right answer, or in ActorDied of the actor that was asked (or of the one that it asked);
  - no array that anybody received had a wrong byte, and none that was held for a while had one at the end;
  - in the end nothing is in flight, no block is in use, no segment is orphaned and nobody takes part but the living;
  - each actor's counters sum to what it received, and this program has no more descriptors open than at the start.
Progress goes to standard error, the result as JSON to standard output; the exit code is 1 when anything was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, deque
from typing import Any, NamedTuple

import loom
from loom.errors import ActorDied, LoomError
from tests.soak.traffic import READER_DIED, Owner, Reader, array_of, wrong_bytes

READERS = ("reader-a", "reader-b")
OWNERS = ("owner-a", "owner-b")
WINDOW = 64
"""Asks under way at a time."""
HELD = 32
"""Received arrays that are kept for a while: their owners may die meanwhile."""
ANSWER_S = 60.0
"""An ask that has not ended by then is lost."""
SETTLE_S = 30.0

WORTH = {"check": 1, "echo": 2, "make": 1, "kept": 1, "pass_on": 1}
"""Hand-overs that a call of each kind is, when it comes to its answer."""


class Ask(NamedTuple):
    """One call under way."""

    kind: str
    seed: int
    reply: loom.Reply


class Killer(threading.Thread):
    """Kills an actor now and then; `kills` says how many of each."""

    def __init__(self, node: loom.Node, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills: Counter[str] = Counter()
        self._node = node
        self._every_s = every_s
        self._random = random.Random(seed)
        self._done = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._done.wait(self._random.expovariate(1 / self._every_s)):
            alive = [child for child in self._node.tree().children if child.pid]
            if not alive:
                continue
            victim = self._random.choice(alive)
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.kills[victim.name.partition("-")[0]] += 1

    def stop(self) -> None:
        """No more kills after this."""
        self._done.set()
        self.join()


class Soak:
    """The asks and what became of them."""

    def __init__(self, node: loom.Node, seed: int) -> None:
        self.asks = 0
        self.handed_over = 0
        self.ended: Counter[str] = Counter()
        """right, died and reader_died are as it should be; wrong, lost and every error's code are not."""
        self.wrong_bytes = 0
        self.examples: dict[str, str] = {}
        self._actors = {name: node.lookup(name) for name in READERS + OWNERS}
        self._random = random.Random(seed)
        self._under_way: deque[Ask] = deque()
        self._held: deque[tuple[int, Any]] = deque()

    def run(self, count: int) -> None:
        """Ask until `count` hand-overs have come to their answer, then wait for the rest."""
        started = last = time.monotonic()
        while self.handed_over < count:
            while len(self._under_way) < WINDOW:
                self._ask()
            self._end(self._under_way.popleft())
            if time.monotonic() - last > 5.0:
                last = time.monotonic()
                rate = self.handed_over / (last - started)
                print(f"{self.handed_over:>9,} of {count:,}  {rate:,.0f}/s  {dict(self.ended)}", file=sys.stderr)
        while self._under_way:
            self._end(self._under_way.popleft())
        while self._held:
            self._let_go()

    def _ask(self) -> None:
        chance = self._random
        seed = chance.getrandbits(31)
        kind = chance.choice(tuple(WORTH))
        self.asks += 1
        actor = self._actors[chance.choice(READERS if kind in ("check", "echo") else OWNERS)]
        try:
            if kind == "check":
                reply = actor.check(seed, array_of(seed))
            elif kind == "echo":
                reply = actor.echo(array_of(seed))
            elif kind == "make":
                reply = actor.make(seed)
            elif kind == "kept":
                seed %= 200
                reply = actor.kept(seed)
            else:
                reply = actor.pass_on(seed, chance.choice(READERS))
        except LoomError as error:
            self._note(f"{error.code} at the call", error)
            return
        self._under_way.append(Ask(kind, seed, reply))

    def _end(self, ask: Ask) -> None:
        try:
            answer = ask.reply.result(timeout_s=ANSWER_S)
        except ActorDied:
            self.ended["died"] += 1
            return
        except LoomError as error:
            self._note(error.code, error)
            return
        if isinstance(answer, int):
            if answer == READER_DIED:
                self.ended["reader_died"] += 1
                return
            found = answer
        else:
            found = wrong_bytes(answer, ask.seed)
            self._held.append((ask.seed, answer))
            if len(self._held) > HELD:
                self._let_go()
        self.wrong_bytes += found
        self.ended["wrong" if found else "right"] += 1
        self.handed_over += WORTH[ask.kind]

    def _let_go(self) -> None:
        at = self._random.randrange(len(self._held))
        seed, array = self._held[at]
        del self._held[at]
        self.wrong_bytes += wrong_bytes(array, seed)

    def _note(self, how: str, error: LoomError) -> None:
        self.ended[how] += 1
        self.examples.setdefault(how, str(error))


def settle(node: loom.Node) -> dict[str, int]:
    """What is left in the arena when everybody has looked: the last reading, or the first with nothing in it."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        for name in READERS + OWNERS:
            try:
                node.lookup(name).settle().result(timeout_s=ANSWER_S)
            except ActorDied:  # the last to be killed
                continue
        loom.arena.current().collect()
        stats = node.stats().arena
        left = {
            "bytes": stats.in_use_bytes,
            "blocks": stats.blocks,
            "in_flight": stats.in_flight,
            "orphaned_segments": stats.orphaned,
            "participants_too_many": stats.participants - len(READERS + OWNERS) - 2,  # the node, and this program
        }
        if not any(left.values()) or time.monotonic() > until_s:
            return left
        time.sleep(0.05)


def unaccounted(node: loom.Node) -> int:
    """Messages that no counter of their actor says the end of."""
    return sum(
        abs(one.received - one.processed - one.failed - one.rejected - one.expired - one.dead_lettered)
        for one in node.stats().actors
    )


def soak(count: int, seed: int, kill_every_s: float) -> dict[str, Any]:
    """Run it; the result says whether all was as it should be, in `ok`."""
    children = (
        *(loom.ChildSpec(Reader, name=name, shutdown_s=2.0) for name in READERS),
        *(loom.ChildSpec(Owner, name=name, shutdown_s=2.0) for name in OWNERS),
    )
    spec = loom.SupervisorSpec(max_restarts=100_000_000, within_s=60.0, children=children)
    with loom.Node(supervisor=spec) as node:
        traffic = Soak(node, seed)
        killer = Killer(node, kill_every_s, seed)
        settle(node)  # so that there is a link to everybody
        descriptors = len(os.listdir("/proc/self/fd"))
        started = time.monotonic()
        killer.start()
        try:
            traffic.run(count)
        finally:
            killer.stop()
        took_s = time.monotonic() - started
        left = settle(node)
        missing = unaccounted(node)
        stats = node.stats()
        descriptors = len(os.listdir("/proc/self/fd")) - descriptors
    as_it_should = {"right", "died", "reader_died"}
    return {
        "ok": not (
            any(left.values())
            or descriptors > len(READERS + OWNERS)
            or missing
            or traffic.wrong_bytes
            or traffic.ended.keys() - as_it_should
            or sum(traffic.ended.values()) != traffic.asks
        ),
        "hand_overs": traffic.handed_over,
        "seconds": round(took_s, 2),
        "hand_overs_per_s": round(traffic.handed_over / took_s),
        "asks": traffic.asks,
        "ended": dict(traffic.ended),
        "wrong_bytes": traffic.wrong_bytes,
        "kills": dict(killer.kills),
        "restarts": stats.restart_count,
        "left": left,
        "unaccounted_messages": missing,
        "descriptors_more": descriptors,
        "references_sent": stats.arena.references_sent,
        "references_accepted": stats.arena.references_accepted,
        "reserved_bytes": stats.arena.reserved_bytes,
        "examples": traffic.examples,
        "seed": seed,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="hand-overs (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of the choices made")
    parser.add_argument("--kill-every-s", type=float, default=0.05, help="mean seconds between kills (default: 0.05)")
    chosen = parser.parse_args()
    os.environ.setdefault("LOOM_LOG", "error")  # a line for every kill would be too many
    result = soak(chosen.count, chosen.seed, chosen.kill_every_s)
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
