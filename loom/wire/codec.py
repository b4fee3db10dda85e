"""Bodies: Python values <-> (encoding, bytes, bulk buffers).

Two encodings. `msgpack` is for everyone: any language's stock library reads it, arrays are extension type 1.
`pickle` (protocol 5) is for Python peers of the same user on the same node: any object, bulk buffers out of band.
Calls whose arguments are plain scalars, strings and arrays travel as msgpack between Python peers too, as that is
faster.

Large buffers are collected beside the body; `loom.wire.frames` decides whether each rides as a ZeroMQ frame or as an
arena reference.
"""

from __future__ import annotations

import functools
import importlib.machinery
import io
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loom.errors import NotSendable, ProtocolError
from loom.wire import arrays
from loom.wire.envelope import MSGPACK, PICKLE

if TYPE_CHECKING:
    from typing_extensions import Buffer

BULK_BYTES = 32 * 1024
"""Bytes of this size and more, given as an argument or result, are not copied into a body (see `_pickle`)."""

_ATOMS = frozenset((type(None), bool, int, float, str, bytes))


class Body(NamedTuple):
    """An encoded value: `encoding` names the format of `data`; `buffers` are referred to from it by index.

    `data` is one piece when it is small, else maybe several, which are to be read as one.
    """

    encoding: str
    data: bytes | list[bytes]
    buffers: Sequence[Any] = ()

    @property
    def size_bytes(self) -> int:
        """Of `data` alone."""
        return len(self.data) if isinstance(self.data, bytes) else sum(map(len, self.data))


class _ByValue(Exception):
    """The plain pickler met something only cloudpickle can carry: a lambda, a local, anything of `__main__`."""


class _Pickler(pickle.Pickler):
    """The C pickler, stopping at what would not be importable on the other side."""

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler for everything but the built-in containers and scalars."""
        if isinstance(obj, (FunctionType, type)) and _needs_value(obj):
            raise _ByValue
        return arrays.reduce(obj)


def _needs_value(obj: Any) -> bool:
    """Whether a process with our sys.path could not import this class or function by its name."""
    module = getattr(obj, "__module__", None)
    return module == "__main__" or "<" in obj.__qualname__ or module not in sys.modules or not _is_importable(module)


@functools.cache
def _is_importable(name: str) -> bool:
    """Whether `import name` would find this very module. Asked once for each.

    It would not when the module was loaded from a path and put under a name of the loader's choice, as pytest does
    with --import-mode=importlib, or when it was made by hand. cloudpickle is then told to carry what is in it.
    """
    if not _is_found(name):
        import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[name])
        return False
    return True


@functools.cache
def _is_found(name: str) -> bool:
    file: str | None = getattr(sys.modules[name], "__file__", None)
    parent = name.rpartition(".")[0]
    where = None
    if parent:
        if parent not in sys.modules or not _is_found(parent):
            return False
        where = getattr(sys.modules[parent], "__path__", None)
        if where is None:  # a module within a module: its parent's code makes it, as os makes os.path
            return True
    spec = _find(name, where)
    if spec is None:
        return bool(parent) and file is None  # likewise
    if file is None or not spec.has_location or spec.origin is None:
        return True
    return os.path.realpath(spec.origin) == os.path.realpath(file)


def _find(name: str, where: Any) -> importlib.machinery.ModuleSpec | None:
    """What the import system would load: importlib.util.find_spec would only say what is loaded already."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, where)
        except (AttributeError, ImportError):
            continue
        if spec is not None:
            return spec
    return None


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Body:
    """Arguments of a call -> Body.

    Raises: NotSendable (L1004) naming the type that cannot travel.
    """
    buffers: list[Any] = []
    plain = _all_plain(args, buffers)
    named = _all_plain(tuple(kwargs.values()), buffers) if plain is not None and kwargs else ()
    if plain is None or named is None:
        return _pickle((args, kwargs), "the arguments")
    try:
        return Body(
            MSGPACK, _encode_plain((plain, dict(zip(kwargs, named, strict=True)) if kwargs else kwargs)), buffers
        )
    except (OverflowError, ValueError):  # an int beyond 64 bits, a lone surrogate: pickle has room for them
        return _pickle((args, kwargs), "the arguments")


def _all_plain(values: tuple[Any, ...], buffers: list[Any]) -> Sequence[Any] | None:
    """The values as msgspec takes them, arrays beside them; None when they are for pickle.

    They are when one is, and when an array comes twice: the receiver gets one array then, too.
    """
    plain: Sequence[Any] = values
    for index, value in enumerate(values):
        if type(value) in _ATOMS:
            if type(value) is bytes and len(value) >= BULK_BYTES:
                return None
            continue
        array = None if any(value is one for one in buffers) else arrays.extension(value, buffers)
        if array is None:
            return None
        if plain is values:
            plain = list(values)
        plain[index] = array  # type: ignore[index]
    return plain


def encode_value(value: Any, accept: str) -> Body:
    """A result -> Body in an encoding the caller accepts.

    Raises: NotSendable (L1004) naming the type that cannot travel.
    """
    if type(value) in _ATOMS:
        if accept == PICKLE and type(value) is bytes and len(value) >= BULK_BYTES:
            return _pickle(value, "the result")
        try:
            return Body(MSGPACK, _encode_plain(value))
        except (OverflowError, ValueError):
            pass
    else:
        buffers: list[Any] = []
        array = arrays.extension(value, buffers)
        if array is not None:
            return Body(MSGPACK, _encode_plain(array), buffers)
    if accept == PICKLE:
        return _pickle(value, "the result")
    return encode_neutral(value)


def encode_neutral(value: Any) -> Body:
    """Any value that MessagePack knows, arrays included -> Body that every language can read."""
    buffers: list[Any] = []

    def hook(obj: Any) -> Any:
        return _neutral(obj, buffers)

    try:
        data = msgspec.msgpack.Encoder(enc_hook=hook).encode(value)
    except Exception as error:  # whatever a value's own code raises
        raise NotSendable(
            f"the value cannot be sent as MessagePack: {error}; call from Python, or return plain data"
        ) from None
    return Body(MSGPACK, data, buffers)


def _neutral(obj: Any, buffers: list[Any]) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(obj, numpy.ndarray) and not obj.dtype.hasobject:
            return arrays.neutral(obj, buffers)
        if isinstance(obj, numpy.generic):
            return obj.item()
    raise TypeError(f"objects of type {type(obj).__module__}.{type(obj).__qualname__} have no MessagePack form")


_plain_encoder = msgspec.msgpack.Encoder()
_encode_plain = _plain_encoder.encode


class _Given(threading.local):
    """The buffers that come with the body that this thread is decoding."""

    buffers: Sequence[Any] = ()


_given = _Given()


def _extension(code: int, payload: memoryview) -> Any:
    if code != arrays.NDARRAY:
        raise ProtocolError(f"body has MessagePack extension type {code}, expected {arrays.NDARRAY} (an array)")
    return arrays.build(payload, _given.buffers)


_plain_decoder = msgspec.msgpack.Decoder(Any, ext_hook=_extension)


def decode_value(encoding: str, data: Buffer, buffers: Sequence[Any] = (), *, trusted: bool = True) -> Any:
    """Body -> value. Arrays whose buffer is read-only come out read-only.

    `trusted`: whether the peer is the same user on this node; pickles from anyone else are refused.
    Raises: ProtocolError (L2006) for anything malformed, in a pickle too.
    """
    if encoding == MSGPACK:
        if buffers:
            _given.buffers = buffers
        try:
            return _plain_decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"body is not MessagePack: {error}") from None
        finally:
            if buffers:
                _given.buffers = ()
    if encoding != PICKLE:
        raise ProtocolError(f"body encoding: expected 'msgpack' or 'pickle', got {encoding!r}")
    if not trusted:
        raise ProtocolError("body is a pickle, and those are accepted over the node's private sockets only")
    try:
        return pickle.loads(data, buffers=buffers)
    except Exception as error:  # unpickling runs code: whatever it raises is the sender's fault, and must name it
        raise ProtocolError(f"body cannot be unpickled here: {type(error).__name__}: {error}") from error


def _pickle(value: Any, what: str) -> Body:
    """`data` in the pieces that the pickler writes: large bytes and text are pieces of their own, not copied."""
    buffers: list[Any] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < arrays.BESIDE_BYTES:
            return True
        buffers.append(buffer)
        return False

    pieces = _Pieces()
    try:
        _Pickler(pieces, protocol=5, buffer_callback=keep).dump(value)
        return Body(PICKLE, pieces.data(), buffers)
    except (_ByValue, pickle.PicklingError):  # not found under its name: a decorated function, an enum made by a call
        buffers.clear()
        return Body(PICKLE, dumps_by_value(value, keep, what), buffers)
    except Exception as error:  # any __reduce__ may raise anything
        raise NotSendable(f"{what} cannot be sent: {type(error).__name__}: {error}") from error


class _Pieces:
    """A file for a pickler: it keeps what is written, as it is."""

    __slots__ = ("_written", "write")

    def __init__(self) -> None:
        self._written: list[Any] = []
        self.write = self._written.append

    def data(self) -> bytes | list[bytes]:
        """All that was written; a mutable piece is copied, for its owner may change it before it is sent."""
        if len(self._written) == 1:
            return bytes(self._written[0])
        return [bytes(piece) for piece in self._written]


def dumps_order(cls: type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """A class and what it is called with, as `dumps` has it. Raises: NotSendable (L1004)."""
    return dumps((cls, args, kwargs), "the actor's class or arguments")


def dumps(value: Any, what: str) -> bytes:
    """A value in one pickle, without buffers beside it. `what`: for the error's text. Raises: NotSendable (L1004)."""
    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5).dump(value)
        return out.getvalue()
    except (_ByValue, pickle.PicklingError):
        return dumps_by_value(value, None, what)
    except Exception as error:
        raise NotSendable(f"{what} cannot be sent: {type(error).__name__}: {error}") from error


def dumps_by_value(value: Any, keep: Callable[[pickle.PickleBuffer], bool] | None, what: str) -> bytes:
    """Pickle with classes and functions of `__main__`, notebooks and closures carried by value.

    Raises: NotSendable (L1004).
    """
    out = io.BytesIO()
    try:
        _by_value_pickler()(out, protocol=5, buffer_callback=keep).dump(value)
    except Exception as error:
        raise NotSendable(f"{what} cannot be sent: {type(error).__name__}: {error}") from error
    return out.getvalue()


@functools.cache
def _by_value_pickler() -> Any:
    """cloudpickle's pickler with our reductions on top; made when it is first needed, for the import takes time."""
    import cloudpickle

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            found = arrays.reduce(obj)
            return super().reducer_override(obj) if found is NotImplemented else found

    return ByValue
