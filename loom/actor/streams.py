"""Streams: generator handlers that are under way, each sent item by item as its consumer asks for more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from loom.wire.envelope import Envelope


class Stream:
    """One generator under way. `credit`: items its consumer still has room for."""

    __slots__ = ("credit", "generator", "is_stepping", "message", "route")

    def __init__(
        self,
        route: list[bytes],
        message: Envelope,
        generator: Generator[Any, Any, Any] | AsyncGenerator[Any, Any],
        credit: int,
    ) -> None:
        self.route = route
        self.message = message
        self.generator = generator
        self.credit = credit
        self.is_stepping = False


class Streams:
    """All streams of one actor, found by whom they go to and the call that began them."""

    def __init__(self) -> None:
        self._by_call: dict[tuple[bytes, int], Stream] = {}

    def __len__(self) -> int:
        return len(self._by_call)

    def __iter__(self) -> Any:
        return iter(list(self._by_call.values()))

    def add(self, stream: Stream) -> None:
        """Remember a stream that has begun."""
        self._by_call[stream.route[0], stream.message.id] = stream

    def find(self, peer: bytes, call_id: int) -> Stream | None:
        """The stream that `peer` began with call `call_id`."""
        return self._by_call.get((peer, call_id))

    def remove(self, stream: Stream) -> None:
        """Forget a stream that has ended. Does nothing when it was forgotten already."""
        self._by_call.pop((stream.route[0], stream.message.id), None)
