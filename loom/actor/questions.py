"""Questions: what the node asks an actor on its control socket while it drains, or upgrades the actor.

    {"ask": number, "what": "left"}      what is yet to be done?
    {"ask": number, "what": "drain"}     the same; and from now on refuse what comes from clients
    {"ask": number, "what": "finish"}    if nothing is left: save, run nothing more, and wait for the stop
    {"answer": number, "left": count, "error": text}

They are answered between messages, on the event loop: an actor that is busy answers when it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loom.wire import failures

if TYPE_CHECKING:
    from loom.actor.links import Links
    from loom.actor.receive import Receiver
    from loom.actor.snapshot import Snapshots


class Questions:
    """Answers for one incarnation; `send` is its control socket's."""

    def __init__(
        self, receiver: Receiver, links: Links, snapshots: Snapshots | None, send: Callable[[dict[str, Any]], None]
    ) -> None:
        self._receiver = receiver
        self._links = links
        self._snapshots = snapshots
        self._send = send

    def answer(self, number: int, what: str) -> None:
        """One question. "error" is why it could not be saved: then it goes on as before."""
        if what == "drain":
            self._receiver.refuse_clients()
        left = self._receiver.left() + self._links.unfinished()
        error = ""
        if what == "finish" and not left:
            self._receiver.hold()
            try:
                if self._snapshots is not None:
                    self._snapshots.save()
            except Exception as problem:
                error = f"its state was not saved: {type(problem).__qualname__}: {failures.message_of(problem)}"
                self._receiver.resume()
        self._send({"answer": number, "left": left, "error": error})
