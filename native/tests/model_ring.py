"""The ring mailbox's sleeping and waking as a small model, every interleaving of it: nobody sleeps while there is work.

The model is that of native/include/loom_ring.h: two senders with a lane each, a ring that holds one message, one
receiver; every shared access is one step, and steps of the three interleave in every way (sequential consistency, which
is what the seq_cst accesses of the header give). A sender may be killed before any of its steps. In each state in which
nobody can take a step, all must be done: the living have sent everything, and all of that is received.

    python native/tests/model_ring.py [--deep]  prints how many states there are; exit code 1 and a trace for a flaw
    python native/tests/model_ring.py --flaw N  the same for a protocol with the Nth flaw, which it must find
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MESSAGES = (2, 1)
"""That each sender sends. (2, 2) has 4.6 million states and takes minutes: --deep."""

ROOM = 1
FLAWS = (
    "the receiver does not look again before it waits",
    "a sender says that it has rung before it rings",
    "`sleeping` is the same number for each sleep",
    "a sender without room does not look again before it waits",
    "a sender reads `sleeping` before it sets its bit",
)


class Sender(NamedTuple):
    at: str = "send"
    sent: int = 0
    seen: int = 0
    """What it read of `sleeping`."""


class State(NamedTuple):
    senders: tuple[Sender, ...] = (Sender(), Sender())
    tails: tuple[int, ...] = (0, 0)
    heads: tuple[int, ...] = (0, 0)
    ready: int = 0
    sleeping: int = 0
    bell: bool = False
    waits: tuple[bool, ...] = (False, False)
    bells: tuple[bool, ...] = (False, False)
    receiver: str = "claim"
    mine: int = 0
    lane: int = 0
    turn: int = 0


def put(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def steps(state: State, flaw: int) -> Iterator[tuple[str, State]]:
    for index, sender in enumerate(state.senders):
        if sender.at in ("done", "dead"):
            continue
        for label, sent, rest in sender_step(state, index, sender, flaw):
            yield f"sender {index}: {label}", rest._replace(senders=put(state.senders, index, sent))
        yield f"sender {index}: killed", state._replace(senders=put(state.senders, index, sender._replace(at="dead")))
    yield from receiver_step(state, flaw)


def sender_step(state: State, index: int, sender: Sender, flaw: int) -> Iterator[tuple[str, Sender, State]]:
    at = sender.at
    has_room = state.tails[index] - state.heads[index] < ROOM
    if at == "send":
        if sender.sent == MESSAGES[index]:
            yield "done", sender._replace(at="done"), state
        else:
            yield "look for room", sender._replace(at="publish" if has_room else "want room"), state
    elif at == "want room":
        then = "wait" if flaw == 4 else "look again"
        yield "say that it waits", sender._replace(at=then), state._replace(waits=put(state.waits, index, True))
    elif at == "look again":
        yield "look again", sender._replace(at="publish" if has_room else "wait"), state
    elif at == "wait":
        if state.bells[index]:
            yield "wake", sender._replace(at="send"), state._replace(bells=put(state.bells, index, False))
    elif at == "publish":
        tails = put(state.tails, index, state.tails[index] + 1)
        then = "early look" if flaw == 5 else "announce"
        yield "publish", sender._replace(at=then, sent=sender.sent + 1), state._replace(tails=tails)
    elif at == "early look":
        yield "read sleeping", sender._replace(at="late announce", seen=state.sleeping), state
    elif at == "late announce":
        then = "ring" if sender.seen % 2 else "send"
        yield "announce", sender._replace(at=then), state._replace(ready=state.ready | 1 << index)
    elif at == "announce":
        yield "announce", sender._replace(at="look"), state._replace(ready=state.ready | 1 << index)
    elif at == "look":
        first = "say" if flaw == 2 else "ring"
        then = first if state.sleeping % 2 else "send"
        yield "read sleeping", sender._replace(at=then, seen=state.sleeping), state
    elif at == "ring":
        yield "ring", sender._replace(at="send" if flaw == 2 else "say"), state._replace(bell=True)
    elif at == "say":
        is_same = state.sleeping == sender.seen
        after = state._replace(sleeping=sender.seen + 1) if is_same else state
        then = "ring" if flaw == 2 and is_same else "send"
        yield "say that it rang", sender._replace(at=then), after


def receiver_step(state: State, flaw: int) -> Iterator[tuple[str, State]]:
    at, lane = state.receiver, state.lane
    if at == "claim":
        mine = state.mine | state.ready
        if not mine:
            yield "receiver: nothing", state._replace(receiver="lie down", ready=0)
        else:
            found = (mine & -mine).bit_length() - 1
            yield "receiver: claim", state._replace(receiver="read", ready=0, mine=mine, lane=found)
    elif at == "read":
        if state.tails[lane] == state.heads[lane]:
            yield "receiver: read to the end", state._replace(receiver="leave", mine=state.mine & ~(1 << lane))
        else:
            yield "receiver: take", state._replace(heads=put(state.heads, lane, state.heads[lane] + 1))
    elif at == "leave":
        if state.waits[lane]:
            yield (
                "receiver: ring who waits for room",
                state._replace(
                    receiver="claim", waits=put(state.waits, lane, False), bells=put(state.bells, lane, True)
                ),
            )
        else:
            yield "receiver: nobody waits for room", state._replace(receiver="claim")
    elif at == "lie down":
        turn = 2 if flaw == 3 else state.turn + 2
        then = "wait" if flaw == 1 else "look again"
        yield "receiver: say that it sleeps", state._replace(receiver=then, turn=turn, sleeping=turn - 1)
    elif at == "look again":
        if state.ready:
            yield "receiver: there is something", state._replace(receiver="claim", sleeping=state.turn)
        else:
            yield "receiver: really nothing", state._replace(receiver="wait")
    elif at == "wait" and state.bell:
        yield "receiver: awake", state._replace(receiver="empty", sleeping=state.turn)
    elif at == "empty":
        yield "receiver: empty the bell", state._replace(receiver="claim", bell=False)


def is_settled(state: State) -> bool:
    """Whether a state in which nobody moves is one in which nobody needs to.

    The last message of a sender that was killed before it rang may wait for the next one's bell: nobody was told that
    it had been sent.
    """
    return all(
        sender.at == "dead" or (sender.at == "done" and state.tails[index] == state.heads[index])
        for index, sender in enumerate(state.senders)
    )


def search(flaw: int = 0) -> tuple[int, list[str]]:
    """How many states can be reached, and how to reach one in which somebody sleeps who should not: [] for none."""
    start = State()
    came: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        moves = [(label, after) for label, after in steps(state, flaw) if not label.endswith("killed")]
        if not moves and not is_settled(state):
            trace = []
            at: State = state
            while (before := came[at]) is not None:
                at = before[0]
                trace.append(before[1])
            return len(came), trace[::-1]
        for label, after in steps(state, flaw):
            if after not in came:
                came[after] = (state, label)
                queue.append(after)
    return len(came), []


def main(arguments: list[str]) -> int:
    if arguments == ["--deep"]:
        globals()["MESSAGES"] = (2, 2)
    flaw = int(arguments[1]) if arguments[:1] == ["--flaw"] else 0
    count, trace = search(flaw)
    print(f"{count} states{': ' + FLAWS[flaw - 1] if flaw else ''}")
    for line in trace:
        print(f"  {line}")
    return int(bool(trace))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
