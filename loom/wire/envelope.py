"""The envelope: the one header that every message carries, whatever it is.

PROTOCOL.md beside this file is the specification; this is its Python form. A field at its default is left out on the
wire, so that a small call has a small header. Unknown fields are ignored, which is how later versions add some.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from loom.errors import ProtocolError, SchemaMismatch

SCHEMA = 1
"""The newest schema version this code writes and reads."""

# What a message is; the names are the protocol's.
CALL = "call"
TELL = "tell"
REPLY = "reply"
ERROR = "error"
ITEM = "item"
END = "end"
CREDIT = "credit"
CANCEL = "cancel"
PING = "ping"
ROOM = "room"

MSGPACK = "msgpack"
PICKLE = "pickle"

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Priority = Annotated[int, msgspec.Meta(ge=0, le=100)]
_Participant = Annotated[int, msgspec.Meta(ge=-1)]


_ABSENT = msgspec.Raw()
NIL = msgspec.Raw(b"\xc0")
"""The body of messages that have nothing to say."""


class Envelope(msgspec.Struct, omit_defaults=True, gc=False):
    """One message's header. Times are seconds; `deadline` is on CLOCK_MONOTONIC, `timestamp` on the wall clock."""

    id: _Count
    kind: str
    schema: int = SCHEMA
    to: str = ""
    sender: str = ""
    name: str = ""
    thread_id: str = ""
    correlation_id: _Count = 0
    reply_to: str = ""
    ttl: _Count = 16
    hop: _Count = 0
    timestamp: float = 0.0
    deadline: float = 0.0
    priority: _Priority = 50
    confidence: float = 1.0
    tags: tuple[str, ...] = ()
    dedup: str = ""
    traceparent: str = ""
    encoding: str = MSGPACK
    accept: str = MSGPACK
    participant: _Participant = -1
    credit: _Count = 0
    ticket: _Count = 0
    buffers: tuple[tuple[int, ...] | None, ...] = ()
    bulk_body: bool = False
    body: msgspec.Raw = _ABSENT


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
_loose = msgspec.msgpack.Decoder(Any)

_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

encode = _encoder.encode
"""Envelope -> MessagePack bytes."""


def decode(data: bytes) -> Envelope:
    """MessagePack bytes -> Envelope.

    Raises: ProtocolError (L2006) naming field, expected and got; SchemaMismatch (L2007) for a newer schema.
    """
    try:
        envelope = _decoder.decode(data)
    except _UNREADABLE as error:  # a ValidationError is a DecodeError
        newer = _schema_of(data)
        if newer is not None and newer > SCHEMA:
            raise SchemaMismatch(f"header has schema {newer}, this side reads <= {SCHEMA} (at `$.schema`)") from None
        raise ProtocolError(f"header is not an envelope: {error}") from None
    if envelope.schema > SCHEMA:
        raise SchemaMismatch(f"header has schema {envelope.schema}, this side reads <= {SCHEMA} (at `$.schema`)")
    return envelope


def _schema_of(data: bytes) -> int | None:
    """The schema of a header that does not decode, when it still says one."""
    try:
        header = _loose.decode(data)
    except _UNREADABLE:
        return None
    schema = header.get("schema") if isinstance(header, dict) else None
    return schema if isinstance(schema, int) else None


def id_of(data: bytes) -> int:
    """The id of a header that does not decode as an envelope, 0 when there is none: for the error reply to name it."""
    try:
        header = _loose.decode(data)
    except _UNREADABLE:
        return 0
    found = header.get("id") if isinstance(header, dict) else None
    return found if type(found) is int and 0 <= found < 2**64 else 0
