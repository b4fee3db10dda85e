"""Lost: what becomes of the messages to an incarnation that has died.

The node says how it died and, from the ledger, exactly how many of this process's messages had begun. Calls that had
begun end as ActorDied(started=True). What had not is, by the mailbox's `on_death`, sent again to the next incarnation
or ends as a dead letter, calls as ActorDied(started=False). Nothing that may have begun is ever sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loom.actor import board as rows
from loom.actor.address import Address
from loom.actor.dead_letter import letter
from loom.actor.gate import Sent
from loom.actor.reply import Reply
from loom.errors import ActorDied, LoomError, NodeDown

if TYPE_CHECKING:
    from loom.actor.channel import Channel
    from loom.actor.links import Links


class Obituary(msgspec.Struct):
    """The node's word on a death. `begun`: how many messages of the ticket asked about had begun, -1 when unknown."""

    cause: str = ""
    last_id: int = -1
    """The last message it began; 0 when it began none, -1 when nobody remembers."""
    begun: int = -1


def settle(links: Links, channel: Channel, orphans: list[Reply], *, was_sent: bool = True) -> None:
    """`channel` is dead: find out how its actor died, then end `orphans`, and all that was sent and not begun."""
    if channel is links.node:
        why = links.why_down()
        text = "the node is down" + (f": {why}" if why else "")
        channel.fail_all(orphans, lambda _: NodeDown(text))
        return
    gate = channel.gate if was_sent else None
    ticket = gate.ticket if gate is not None else 0
    obituary = links.ask_node("obituary", channel.address.name, channel.address.incarnation, ticket)

    def tell(_: Reply) -> None:
        _end(links, channel, orphans, obituary, was_sent=was_sent)

    obituary.add_done_callback(tell)
    for loop in channel.loops():
        loop.call_soon_threadsafe(links.node.watch, loop)


def _end(links: Links, channel: Channel, orphans: list[Reply], obituary: Reply, *, was_sent: bool) -> None:
    address, gate, heir = channel.address, channel.gate if was_sent else None, channel.heir
    if obituary.error is not None:
        text = f"and the node cannot say why: {obituary.error}"
        links.node.fail_all(
            orphans, lambda reply: ActorDied(f"actor {address.name!r} died before it replied to {reply.what}, {text}")
        )
        if gate is not None and gate.keeps and heir is not None:
            heir.inherit([])
        return
    found = msgspec.convert(obituary.result(), Obituary)
    unbegun: list[Sent] = []
    is_exact = gate is not None and found.begun >= 0 and channel.is_ordered
    if gate is not None:
        remembered = gate.unbegun(max(0, found.begun))
        # Of a death that the node has forgotten nothing is known: not a word, rather than dead letters that had begun.
        unbegun = remembered if found.last_id >= 0 else []
    ids = {sent.header.id for sent in unbegun}
    if gate is not None and gate.keeps and heir is not None:
        calls = {reply.id: reply for reply in orphans}
        handed = [
            (sent, calls.get(sent.header.id))
            for sent in unbegun
            if is_exact and (sent.header.kind == "tell" or sent.header.id in calls)
        ]
        if handed and links.board is not None:
            links.board.gate.add(address.row, rows.HANDED_ON, len(handed))
        heir.inherit(handed)
        again = {sent.header.id for sent, _ in handed}
        unbegun = [sent for sent in unbegun if sent.header.id not in again]
        orphans = [reply for reply in orphans if reply.id not in again]
    reason = f"incarnation {address.incarnation} died before it began this: {found.cause.partition(chr(10))[0]}"
    links.report([letter(sent.header, address.name, reason) for sent in unbegun])

    def died(reply: Reply) -> LoomError:
        if is_exact:
            started: bool | None = reply.id not in ids
        else:
            started = _started(found, reply, was_sent=was_sent, is_ordered=channel.is_ordered)
        return _died(address, found, reply, started)

    links.node.fail_all(orphans, died)


def _started(found: Obituary, reply: Reply, *, was_sent: bool, is_ordered: bool) -> bool | None:
    """Whether a call had begun, from no more than the id of the last that did. None when that cannot be known."""
    started = None if found.last_id and was_sent else False
    if was_sent and found.last_id >> 32 == reply.id >> 32:  # the last message that it began was ours
        if is_ordered:
            started = reply.id <= found.last_id
        elif reply.id == found.last_id:
            started = True
    return started


def _died(address: Address, found: Obituary, reply: Reply, started: bool | None) -> ActorDied:
    begun = {True: "after it began", False: "before it began", None: "and may have begun"}[started]
    return ActorDied(
        f"actor {address.name!r} (pid {address.pid}, incarnation {address.incarnation}) died {begun} {reply.what}: "
        f"{found.cause}",
        started=started,
        cause=found.cause,
    )
