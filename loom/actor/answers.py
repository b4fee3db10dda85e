"""Answers: how a message ends. Every call gets one answer, every message one counter of the status board.

What ends without having been run is a dead letter, too: `letters` gathers them for the node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from loom.actor import board as rows
from loom.actor.dead_letter import KEPT, DeadLetter, letter
from loom.actor.links import Links
from loom.actor.mailbox import Mailbox, is_lane, participant_of
from loom.actor.once import Once, Outcome
from loom.errors import ActorDied, LoomError, MailboxFull, NotSendable, Rejected, StoreError
from loom.telemetry import Throttle, log
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
        self._complaints = Throttle()
        self.once = Once()
        self.letters: deque[DeadLetter] = deque(maxlen=KEPT)
        self.on_letter: Callable[[], None] = lambda: None
        """Called when there is a first one to be reported."""

    def returned(self, message: Message, result: Any) -> None:
        """The handler returned `result`; a result that cannot travel is the handler's error."""
        header = message.header
        if self.on_done is not None and not self._is_done(message):
            return
        body = PING_BODY
        if header.kind == envelope.CALL:
            try:
                body = codec.encode_value(result, header.accept)
                self.send(message, envelope.REPLY, body)
            except LoomError as error:
                self.raised(message, error, is_done=True)
                return
        self._words[self._at + rows.PROCESSED] += 1
        if header.dedup:
            self._ended_once(header, envelope.REPLY, body)

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
            body = codec.encode_neutral(failures.raised(error))
            self.send(message, envelope.ERROR, body)
            if header.dedup:
                self._ended_once(header, envelope.ERROR, body)
        else:
            if header.dedup:
                self._ended_once(header, envelope.ERROR, codec.encode_neutral(failures.raised(error)))
            log.error("%s.%s raised, and nobody asked:\n%s", self._name, header.name, failures.traceback_of(error, 1))

    def interrupted(self, message: Message, error: LoomError) -> None:
        """It was begun, and ended by something other than itself."""
        self.count(rows.FAILED)
        self.refuse(message, error)
        if message.header.dedup:
            self._ended_once(message.header, envelope.ERROR, codec.encode_neutral(failures.refusal(error)))

    def is_repeat(self, message: Message) -> bool:
        """Whether a message with a dedup key was sent before; then its answer is, or will be, the first's."""
        header = message.header
        outcome = self.once.outcome(header)
        if outcome is not None:
            self.discard(message)
            self._end_like(message, outcome)
            return True
        if self.once.joins(message):
            self.discard(message)
            self.count(rows.RUNNING)
            return True
        return False

    def _ended_once(self, header: Envelope, kind: str, body: codec.Body) -> None:
        for message in self.once.ended(header, kind, body):
            self.count(rows.RUNNING, -1)
            self._end_like(message, Outcome(kind, body))

    def _end_like(self, message: Message, outcome: Outcome) -> None:
        """End a message as another with the same dedup key did."""
        kind, body = outcome
        if body is None or (body.encoding == envelope.PICKLE and message.header.accept != envelope.PICKLE):
            text = f"{self._name}.{message.header.name} has taken effect before, and its outcome was not kept"
            self._unrun(rows.REJECTED, message, Rejected(text))
            return
        self.count(rows.PROCESSED if kind == envelope.REPLY else rows.FAILED)
        if message.header.kind == envelope.CALL:
            self.send(message, kind, body)

    def misused(self, message: Message, error: TypeError) -> None:
        """The arguments are not what the method takes: its own TypeError, and it was not run."""
        self.count(rows.REJECTED)
        if message.header.kind == envelope.CALL:
            self.send(message, envelope.ERROR, codec.encode_neutral(failures.raised(error)))
        else:
            self.bury(message, f"{type(error).__name__}: {error}")
            self.refuse(message, Rejected(str(error)))
        if message.header.dedup:  # nothing took effect: the next attempt may do better
            for joined in self.once.ended(message.header, envelope.ERROR, PING_BODY):
                self.count(rows.RUNNING, -1)
                self.misused(joined, error)
            self.once.forget(message.header)

    def rejected(self, message: Message, error: LoomError) -> None:
        """The message is wrong: it was not run."""
        self._unrun(rows.REJECTED, message, error)

    def expired(self, message: Message, error: LoomError) -> None:
        """Its deadline passed before it was run."""
        self._unrun(rows.EXPIRED, message, error)

    def dead_letter(self, message: Message, error: LoomError) -> None:
        """The actor ends before it was run."""
        self._unrun(rows.DEAD_LETTERED, message, error)

    def dropped(self, message: Message) -> None:
        """It was the oldest in a full mailbox whose policy lets the oldest go."""
        text = f"the mailbox of actor {self._name!r} was full, and this was the oldest message in it"
        self._unrun(rows.DROPPED, message, MailboxFull(text))

    def cancelled(self, message: Message) -> None:
        """Its caller gave it up before it was run."""
        self._unrun(rows.CANCELLED, message, Rejected("cancelled by its caller before it began"))

    def _unrun(self, word: int, message: Message, error: LoomError) -> None:
        self.count(word)
        self.discard(message)
        if word != rows.CANCELLED:
            size = len(message.header.body) + sum(map(len, message.parts))
            self.bury(message, str(error), size)
        self.refuse(message, error)

    def bury(self, message: Message, reason: str, size_bytes: int = 0) -> None:
        """Have the node remember this message, or the answer to it."""
        if not self.letters:
            self.on_letter()
        self.letters.append(letter(message.header, self._name, reason, size_bytes))

    def report(self) -> None:
        """Send the dead letters there are to the node."""
        if self.letters:
            found = list(self.letters)
            self.letters.clear()
            self._links.report(found)

    def malformed(self, route: list[bytes], message_id: int, error: LoomError) -> None:
        """What came is no message."""
        if self._complaints.allows("malformed"):
            log.warning("%s rejected a message: %s%s", self._name, error, self._complaints.more("malformed"))
        self.count(rows.UNGATED)
        self._links.board.gate.add(self._at // rows.WORDS, rows.LEFT, 1)  # type: ignore[union-attr]
        self.rejected(Message(route, Envelope(message_id, envelope.CALL), []), error)

    def refuse(self, message: Message, error: LoomError) -> None:
        """Tell the caller, if it asked, that the message was not run, or not to its end."""
        header = message.header
        if header.kind == envelope.CALL:
            self.send(message, envelope.ERROR, codec.encode_neutral(failures.refusal(error)))
        elif self._complaints.allows("refused"):
            who = header.sender or "a client"
            log.warning("%s refused a message from %r: %s%s", self._name, who, error, self._complaints.more("refused"))

    def send(self, message: Message, kind: str, body: codec.Body) -> bool:
        """Send one answer; False when the caller is gone. Raises: ArenaFull (L3003)."""
        header = message.header
        answer = Envelope(self._links.next_id(), kind, sender=self._name, correlation_id=header.id)
        route = message.route[0]
        if is_lane(route):
            parts = frames.pack(answer, body, self._arena, participant_of(route), header.deadline, is_whole=True)
        else:
            parts = frames.pack(answer, body, self._arena, header.participant, header.deadline)
        if self._mailbox.send([*message.route, *parts]):
            if answer.buffers:
                self._links.collect_soon()
            return True
        frames.recall(answer.buffers, self._arena)
        if kind != envelope.ITEM:
            self.bury(message, f"the {kind} to it found its caller gone", body.size_bytes)
        return False

    def next_id(self) -> int:
        """An id for a message of this actor's."""
        return self._links.next_id()

    def probe(self, message: Message) -> bool:
        """Whether the caller of `message` can still be reached."""
        ping = envelope.encode(Envelope(self._links.next_id(), envelope.PING, body=envelope.NIL))
        return self._mailbox.reaches([*message.route, ping])

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
