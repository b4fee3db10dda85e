"""Messages <-> ZeroMQ frames: the header, then the bulk buffers that do not go by reference.

A small body is part of the header, so that most messages are one frame; a larger one is the second frame.

Where a buffer rides is said in the header's `buffers`, one entry each: nil for the next frame, or an arena reference.
References are made only for a receiver that told its arena participant number, which is to say: on this node. Such a
receiver gets a large body by reference, too, as the last of the buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from loom.errors import NotSendable, ProtocolError
from loom.wire.codec import Body, decode_value
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


def pack(
    envelope: Envelope,
    body: Body,
    arena: Arena | None,
    receiver: int,
    deadline: float = 0.0,
    *,
    is_whole: bool = False,
) -> list[Any]:
    """Frames of one message; sets `encoding`, `body` and `buffers` of the envelope.

    `receiver`: the peer's arena participant, -1 when it has none. An array that lives in the arena is sealed by this:
    it turns read-only for its sender too. `deadline`: until when it may wait for room in the arena, where the policy is
    to wait; 0 for that of the envelope. `is_whole`: one frame only, so that what is not small goes through the arena.
    Raises: ArenaFull (L3003) when a buffer finds no room; NotSendable (L1004) when it would need the arena.
    """
    envelope.encoding = body.encoding
    data = body.data
    shared = arena if receiver >= 0 else None
    least = 0 if is_whole else ARENA_BYTES
    frames: list[Any] = [b""]
    if type(data) is bytes and len(data) <= INLINE_BODY_BYTES:
        envelope.body = msgspec.Raw(data if body.encoding == MSGPACK else encode_bytes(data))
        if not body.buffers:
            frames[0] = encode(envelope)
            return frames
    elif shared is not None and body.size_bytes >= least:
        envelope.bulk_body = True
    else:
        frames.append(_frame(data, body.size_bytes))
    places: list[tuple[int, ...] | None] = []
    try:
        for buffer in body.buffers:
            size_bytes = buffer.nbytes if hasattr(buffer, "nbytes") else memoryview(buffer).nbytes
            if shared is not None and size_bytes >= least:
                reference, copied = shared.send(buffer, receiver, None, deadline or envelope.deadline)
                places.append(reference)
                if not copied:
                    seal(buffer)
                continue
            if arena is not None:
                arena.count_copied(size_bytes)
            # A copy, for ZeroMQ's thread reads the frame later, when the sender may have written to the array.
            frames.append(_frame(memoryview(buffer).tobytes("A"), size_bytes))
            places.append(None)
        if envelope.bulk_body:
            assert shared is not None
            places.append(shared.send(data, receiver, None, deadline or envelope.deadline)[0])
    except BaseException:
        recall(places, arena)
        raise
    envelope.buffers = tuple(places)
    frames[0] = encode(envelope)
    return frames


def _frame(data: bytes | list[bytes], size_bytes: int) -> bytes:
    """One frame. Raises: NotSendable (L1004) when it is too large for that."""
    if size_bytes > MAX_FRAME_BYTES:
        raise NotSendable(
            f"{size_bytes} bytes in one frame, the most is {MAX_FRAME_BYTES}, and the receiver takes no part in the "
            "arena: send several messages"
        )
    return data if isinstance(data, bytes) else b"".join(data)


def read(envelope: Envelope, frames: Sequence[Any], arena: Arena | None) -> Any:
    """The value that a received message carries; `frames` are those after the header.

    References are accepted here: from now on this process holds the blocks, or, after an error, none of them.
    Raises: ProtocolError (L2006) when header, frames and body disagree; StaleReference (L2009).
    """
    body, frames = split(envelope, frames)
    if not envelope.buffers and not frames:
        return decode_value(envelope.encoding, body)
    buffers = unpack(envelope, frames, arena)
    if envelope.bulk_body:
        body = buffers.pop()
    return decode_value(envelope.encoding, body, buffers)


def split(envelope: Envelope, frames: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Body and buffer frames of a received message; `frames` are those after the header.

    Returns: (None, frames) when the body is the last of the buffers.
    Raises: ProtocolError (L2006) when there is no body, or a pickle is not carried as bytes.
    """
    body = envelope.body
    if not body:
        if envelope.bulk_body:
            if envelope.buffers:
                return None, frames
            raise ProtocolError("header has `bulk_body`, and no buffer that could be it (at `$.buffers`)")
        if not frames:
            raise ProtocolError("message has no body: expected `$.body` in the header, or a second frame")
        return frames[0], frames[1:]
    if envelope.bulk_body:
        raise ProtocolError("message has two bodies: one in the header, and `$.bulk_body`")
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
    places = envelope.buffers
    inline = places.count(None)
    buffers: list[Any] = []
    rest = iter(frames)
    try:
        if inline != len(frames):
            raise ProtocolError(f"header announces {inline} buffer frames, the message has {len(frames)}")
        if arena is None and inline != len(places):
            raise ProtocolError("message has an arena reference, and this side has no arena")
        for place in places:
            buffers.append(next(rest) if place is None else arena.accept(place))  # type: ignore[union-attr]
    except BaseException:
        discard(envelope, arena)
        raise
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


def seal(buffer: Any) -> None:
    """Make an arena array read-only for its sender, up to the array that owns the memory.

    Other views that were taken of that before are out of reach, and stay writable: NumPy keeps no list of them.
    """
    owner: Any = buffer if hasattr(buffer, "setflags") else memoryview(buffer).obj
    while True:
        if hasattr(owner, "setflags"):
            owner.setflags(write=False)
            owner = owner.base
        elif type(owner) is memoryview:
            owner = owner.obj
        else:
            return
