"""Pool: several actors with one name, and which of them a message goes to.

Every sender chooses for itself, from the pool's members as the node last told them and from the status board as it is
now: a member that is down, or restarting, is passed over, so its share goes to the others. One word of the board says
whether the members have changed.

    round_robin       one after the other
    least_loaded      the one with the fewest messages waiting, wherever they wait, and under way
    consistent_hash   by `options(key=...)`: the same key goes to the same member, while that lives; when members come
                      and go only their own keys move (rendezvous hashing)
    broadcast         all of them; a call gives a Reply whose result is the list of theirs, in the order of the members
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from loom.actor import board as rows
from loom.actor.reply import Reply
from loom.actor.target import Options, Target
from loom.clock import monotonic
from loom.errors import ActorNotFound, UsageError

if TYPE_CHECKING:
    from loom.actor.links import Links


class Members(msgspec.Struct, frozen=True):
    """What the node says of a pool. `names` and `rows` go together; `row`, its own, says the `version`."""

    routing: str
    row: int
    version: int
    names: list[str]
    rows: list[int]


class Pool:
    """One process's view of a pool. Raises: LoomError of the node, when it is asked for the members in vain."""

    def __init__(self, links: Links, name: str, members: Members) -> None:
        self.name = name
        self.members = members
        self._links = links
        self._turn = itertools.count(links.pid)  # or all processes would begin with the same member
        self._asking: Reply | None = None

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Reply:
        """As Target.call, to a member; to all of them when it is a broadcast."""
        self._refresh()
        if self.members.routing == "broadcast":
            what = f"{self.name}.{method}"
            return Replies(what, [self._target(one).call(method, args, kwargs, options) for one in self.members.names])
        return self._target(self._choose(options.key)).call(method, args, kwargs, options)

    def tell(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> None:
        """As Target.tell, to a member; to all of them when it is a broadcast."""
        self._refresh()
        if self.members.routing == "broadcast":
            for one in self.members.names:
                self._target(one).tell(method, args, kwargs, options)
        else:
            self._target(self._choose(options.key)).tell(method, args, kwargs, options)

    def _target(self, name: str) -> Target:
        return self._links.target(name)

    def _choose(self, key: str) -> str:
        members = self.members
        if not members.names:
            raise ActorNotFound(f"pool {self.name!r} has no members left")
        board = self._links.board
        alive = range(len(members.names))
        if board is not None:
            words = board.words
            up = [i for i in alive if words[members.rows[i] * rows.WORDS + rows.STATE] == rows.RUNNING_STATE]
            alive = up or alive  # type: ignore[assignment]  # of none that runs, one that may soon
        if members.routing == "consistent_hash":
            if not key:
                raise UsageError(
                    f"pool {self.name!r} goes by keys: call it as {self.name}.method.options(key=...)(...)"
                )
            return members.names[max(alive, key=lambda i: _score(key, members.names[i]))]
        turn = next(self._turn)
        if members.routing == "least_loaded" and board is not None:
            count = len(members.names)
            return members.names[min(alive, key=lambda i: (*self._load(i), (i - turn) % count))]
        return members.names[alive[turn % len(alive)]]

    def _load(self, index: int) -> tuple[int, int]:
        """Messages that wait for a member or run in it, and those that stand in line for it here; then how lately it
        began the present one, the latest first: of two that are as busy, one may be stuck."""
        board, row = self._links.board, self.members.rows[index]
        assert board is not None
        words, at = board.words, row * rows.WORDS
        since = words[at + rows.SINCE_NS]
        waiting = board.depth(row) + self._target(self.members.names[index]).line_length
        return waiting + words[at + rows.RUNNING] + (since != 0), -(since >> 24)  # in steps of 17 ms

    def _refresh(self) -> None:
        """Ask the node for the members, when they have changed: a thread waits for them, a coroutine goes on."""
        board, members = self._links.board, self.members
        if board is None or board.words[members.row * rows.WORDS + rows.INCARNATION] == members.version:
            return
        if self._asking is not None:
            return
        asking = self._asking = self._links.ask_node("pool", self.name)
        asking.add_done_callback(self._told)
        if self._links.is_in_loop():
            self._links.watch_node()
        else:
            asking.result()

    def _told(self, asking: Reply) -> None:
        self._asking = None
        if asking.error is None:
            self.members = msgspec.convert(asking.result(), Members)


class Replies(Reply):
    """The Replies of all members of a pool to one call: done when all are; its result is the list of theirs.

    `parts` are the members' own, for whoever wants to know of each how it went.
    """

    __slots__ = ("parts",)

    def __init__(self, what: str, parts: list[Reply]) -> None:
        super().__init__(0, what)
        self.parts = parts

    def done(self) -> bool:
        """Whether all outcomes are here. Does not read a socket."""
        return all(part.is_done for part in self.parts)

    def result(self, timeout_s: float | None = None) -> list[Any]:
        """Wait for all and return the list of results. Raises: what the first of them that failed has failed with."""
        until = None if timeout_s is None else monotonic() + timeout_s
        return [part.result(None if until is None else max(0.0, until - monotonic())) for part in self.parts]

    def __await__(self) -> Generator[Any, None, list[Any]]:
        found = []
        for part in self.parts:
            found.append((yield from part.__await__()))
        return found

    def __iter__(self) -> Iterator[Any]:
        return (part.result() for part in self.parts)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for part in self.parts:
            yield await part

    def cancel(self, *, kill_after_s: float | None = None) -> None:
        """Cancel every one of them."""
        for part in self.parts:
            part.cancel(kill_after_s=kill_after_s)

    def add_done_callback(self, callback: Callable[[Reply], None]) -> None:
        """Call `callback(self)` when all outcomes are here."""
        waiting = {id(part) for part in self.parts}

        def one_done(part: Reply) -> None:
            waiting.discard(id(part))
            if not waiting:
                callback(self)

        for part in list(self.parts):
            part.add_done_callback(one_done)

    @property
    def error(self) -> BaseException | None:
        """What the first of them that failed has failed with, None when none has."""
        return next((part.error for part in self.parts if part.error is not None), None)


def _score(key: str, name: str) -> bytes:
    """Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998."""
    return hashlib.blake2b(f"{len(key)}:{key}{name}".encode(), digest_size=8).digest()
