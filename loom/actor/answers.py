"""Answers: how a message ends. Every call gets one answer, every message one counter of the status board."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from loom.actor import board as rows
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox
from loom.errors import ActorDied, LoomError, NotSendable, StoreError
from loom.telemetry import log
from loom.wire import codec, envelope, failures, frames
from loom.wire.envelope import Envelope

PING_BODY = codec.Body(envelope.MSGPACK, b"\xc0")
"""The body of messages that have nothing to say: nil."""


class Message(NamedTuple):
    """One call or tell: where its answer goes, its header, and the frames after that."""

    route: list[bytes]
    header: Envelope
    parts: list[bytes]


class Answers:
    """Sends what becomes of the messages of one mailbox, and counts it.

    `is_node`: Loom's own errors, raised by a handler, go to the caller as themselves and not as RemoteError.
    `on_exit` is called with the exit code that a handler asks for with SystemExit.
    """

    def __init__(self, name: str, mailbox: Mailbox, links: Links, row: int, *, is_node: bool) -> None:
        assert links.board is not None
        self.on_exit: Callable[[int], None] = lambda code: None
        self.on_done: Callable[[], None] | None = None
        """Called when a message has been run, before its answer is sent; what it raises is the answer."""
        self._name = name
        self._mailbox = mailbox
        self._links = links
        self._arena = links.arena
        self._words = links.board.words
        self._at = row * rows.WORDS
        self._is_node = is_node

    def returned(self, message: Message, result: Any) -> None:
        """The handler returned `result`; a result that cannot travel is the handler's error."""
        header = message.header
        if self.on_done is not None and not self._is_done(message):
            return
        if header.kind == envelope.CALL:
            try:
                self.send(message, envelope.REPLY, codec.encode_value(result, header.accept))
            except LoomError as error:
                self.raised(message, error, is_done=True)
                return
        self._words[self._at + rows.PROCESSED] += 1

    def ended(self, message: Message) -> None:
        """The handler's stream has come to its end."""
        if self.on_done is not None and not self._is_done(message):
            return
        self.send(message, envelope.END, PING_BODY)
        self.count(rows.PROCESSED)

    def _is_done(self, message: Message) -> bool:
        """Do what is to be done before `message` is answered; False when that failed, and is the answer."""
        assert self.on_done is not None
        try:
            self.on_done()
        except BaseException as error:
            self._failed(message, error)
            return False
        return True

    def raised(self, message: Message, error: BaseException, *, is_done: bool = False) -> None:
        """The handler raised. `is_done`: `on_done` was called for this message."""
        if is_done or self.on_done is None or self._is_done(message):
            self._failed(message, error)

    def _failed(self, message: Message, error: BaseException) -> None:
        header = message.header
        self.count(rows.FAILED)
        if isinstance(error, SystemExit):
            died = ActorDied(f"actor {self._name!r} ended itself in {header.name!r}", started=True, cause="SystemExit")
            self.refuse(message, died)
            self.on_exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        elif isinstance(error, StoreError) or (self._is_node and isinstance(error, LoomError)):
            self.refuse(message, error)
        elif header.kind == envelope.CALL:
            if isinstance(error, NotSendable):
                log.error("%s.%s: %s", self._name, header.name, error)
            self.send(message, envelope.ERROR, codec.encode_neutral(failures.raised(error)))
        else:
            log.error("%s.%s raised, and nobody asked:\n%s", self._name, header.name, failures.traceback_of(error, 1))

    def rejected(self, message: Message, error: LoomError) -> None:
        """The message is wrong: it was not run."""
        self.count(rows.REJECTED)
        self.discard(message)
        self.refuse(message, error)

    def expired(self, message: Message, error: LoomError) -> None:
        """Its deadline passed before it was run."""
        self.count(rows.EXPIRED)
        self.discard(message)
        self.refuse(message, error)

    def dead_letter(self, message: Message, error: LoomError) -> None:
        """The actor ends before it was run."""
        self.count(rows.DEAD_LETTERED)
        self.discard(message)
        self.refuse(message, error)

    def malformed(self, route: list[bytes], message_id: int, error: LoomError) -> None:
        """What came is no message."""
        log.warning("%s rejected a message: %s", self._name, error)
        self.count(rows.RECEIVED)
        self.rejected(Message(route, Envelope(message_id, envelope.CALL), []), error)

    def refuse(self, message: Message, error: LoomError) -> None:
        """Tell the caller, if it asked, that the message was not run, or not to its end."""
        header = message.header
        if header.kind == envelope.CALL:
            self.send(message, envelope.ERROR, codec.encode_neutral(failures.refusal(error)))
        else:
            log.warning("%s refused a message from %r: %s", self._name, header.sender or "a client", error)

    def send(self, message: Message, kind: str, body: codec.Body) -> bool:
        """Send one answer; False when the caller is gone. Raises: ArenaFull (L3003)."""
        header = message.header
        answer = Envelope(self._links.next_id(), kind, sender=self._name, correlation_id=header.id)
        parts = frames.pack(answer, body, self._arena, header.participant, header.deadline)
        if self._mailbox.send([*message.route, *parts]):
            if answer.buffers:
                self._links.collect_soon()
            return True
        frames.recall(answer.buffers, self._arena)
        log.info("dead letter: the answer to %s.%s found its caller gone", self._name, header.name)
        return False

    def probe(self, message: Message) -> bool:
        """Whether the caller of `message` can still be reached."""
        answer = Envelope(self._links.next_id(), envelope.PING)
        return self._mailbox.send([*message.route, *frames.pack(answer, PING_BODY, None, -1)])

    def discard(self, message: Message) -> None:
        """Let go of the shared memory that came with a message that is not run."""
        if message.header.buffers:
            frames.discard(message.header, self._arena)

    def count(self, word: int, by: int = 1) -> None:
        """Add to one of the actor's counters on the status board."""
        self._words[self._at + word] += by

    def busy(self, since_ns: int) -> None:
        """Say on the status board since when a message is being run (monotonic ns), 0 for none."""
        self._words[self._at + rows.SINCE_NS] = since_ns
