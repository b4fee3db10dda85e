"""Messages <-> ZeroMQ frames: the header, then the bulk buffers that do not go by reference.

A small body is part of the header, so that most messages are one frame; a larger one is the second frame.

Where a buffer rides is said in the header's `buffers`, one entry each: nil for the next frame, or an arena reference.
References are made only for a receiver that told its arena participant number, which is to say: on this node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from loom.errors import NotSendable, ProtocolError
from loom.wire.codec import Body
from loom.wire.envelope import MSGPACK, PICKLE, Envelope, encode

if TYPE_CHECKING:
    from loom.arena import Arena

ARENA_BYTES = 32 * 1024
"""Buffers of this size and more go through the arena: below it two small copies beat the bookkeeping (bench/arena)."""

MAX_FRAME_BYTES = 2**31 - 1
"""The receiver ends the connection of whoever sends a longer frame, so it is refused here."""

INLINE_BODY_BYTES = 4096
"""Bodies up to this size ride in the header: beyond it one more frame is cheaper than one more copy."""

encode_bytes = msgspec.msgpack.Encoder().encode
decode_bytes = msgspec.msgpack.Decoder(bytes).decode


def pack(envelope: Envelope, body: Body, arena: Arena | None, receiver: int, deadline: float = 0.0) -> list[Any]:
    """Frames of one message; sets `encoding`, `body` and `buffers` of the envelope.

    `receiver`: the peer's arena participant, -1 when it has none. An array that lives in the arena is sealed by this:
    it turns read-only for its sender too. `deadline`: until when it may wait for room in the arena, where the policy is
    to wait; 0 for that of the envelope.
    Raises: ArenaFull (L3003) when a buffer finds no room.
    """
    if len(body.data) > MAX_FRAME_BYTES:
        raise NotSendable(
            f"the message is {len(body.data)} bytes, the most is {MAX_FRAME_BYTES}: "
            "send arrays, which go through shared memory, or several messages"
        )
    envelope.encoding = body.encoding
    frames: list[Any] = [b""]
    if len(body.data) > INLINE_BODY_BYTES:
        frames.append(body.data)
    elif body.encoding == MSGPACK:
        envelope.body = msgspec.Raw(body.data)
    else:
        envelope.body = msgspec.Raw(encode_bytes(body.data))
    if not body.buffers:
        frames[0] = encode(envelope)
        return frames
    places: list[tuple[int, ...] | None] = []
    by_reference = arena is not None and receiver >= 0
    try:
        for buffer in body.buffers:
            view = memoryview(buffer)
            if by_reference and view.nbytes >= ARENA_BYTES:
                assert arena is not None
                reference, copied = arena.send(buffer, receiver, None, deadline or envelope.deadline)
                places.append(reference)
                if not copied:
                    seal(view.obj)
            else:
                if view.nbytes > MAX_FRAME_BYTES:
                    raise NotSendable(f"a buffer of {view.nbytes} bytes is too large for a frame, and finds no arena")
                if arena is not None:
                    arena.count_copied(view.nbytes)
                # A copy, for ZeroMQ's thread reads the frame later, when the sender may have written to the array.
                frames.append(view.tobytes("A"))
                places.append(None)
    except BaseException:
        recall(places, arena)
        raise
    envelope.buffers = tuple(places)
    frames[0] = encode(envelope)
    return frames


def split(envelope: Envelope, frames: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Body and buffer frames of a received message; `frames` are those after the header.

    Raises: ProtocolError (L2006) when there is no body, or a pickle is not carried as bytes.
    """
    body = envelope.body
    if not body:
        if not frames:
            raise ProtocolError("message has no body: expected `$.body` in the header, or a second frame")
        return frames[0], frames[1:]
    if envelope.encoding != PICKLE:
        return body, frames
    try:
        return decode_bytes(body), frames
    except msgspec.DecodeError as error:
        raise ProtocolError(f"body is not a pickle: {error} (at `$.body`)") from None


def recall(places: Sequence[tuple[int, ...] | None], arena: Arena | None) -> None:
    """Take back the references of a message that was never handed over."""
    if arena is not None:
        for place in places:
            if place is not None:
                arena.recall(place)


def unpack(envelope: Envelope, frames: Sequence[Any], arena: Arena | None) -> list[Any]:
    """The buffers of a received message, in order; `frames` are those of the buffers.

    References are accepted here: from now on this process holds the blocks, or, after an error, none of them.
    Raises: ProtocolError (L2006) when header and frames disagree; StaleReference (L2009).
    """
    try:
        return _unpack(envelope, frames, arena)
    except BaseException:
        discard(envelope, arena)
        raise


def _unpack(envelope: Envelope, frames: Sequence[Any], arena: Arena | None) -> list[Any]:
    inline = sum(place is None for place in envelope.buffers)
    if inline != len(frames):
        raise ProtocolError(f"header announces {inline} buffer frames, the message has {len(frames)}")
    if not envelope.buffers:
        return []
    rest = iter(frames)
    buffers: list[Any] = []
    for place in envelope.buffers:
        if place is None:
            buffers.append(next(rest))
        elif arena is None:
            raise ProtocolError("message has an arena reference, and this side has no arena")
        else:
            buffers.append(arena.accept(place))
    return buffers


def discard(envelope: Envelope, arena: Arena | None) -> None:
    """Let go of what a message holds that nobody will read."""
    if arena is None:
        return
    for place in envelope.buffers:
        if place is not None:
            try:
                arena.accept(place).release()
            except Exception:  # stale or hostile: there is nothing to let go of
                continue


def seal(owner: Any) -> None:
    """Make an arena array read-only for its sender, up to the array that owns the memory."""
    while owner is not None and hasattr(owner, "flags"):
        owner.flags.writeable = False
        owner = owner.base
