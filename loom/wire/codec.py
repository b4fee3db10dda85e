"""Bodies: Python values <-> (encoding, bytes, bulk buffers).

Two encodings. `msgpack` is for everyone: any language's stock library reads it, arrays are extension type 1.
`pickle` (protocol 5) is for Python peers of the same user on the same node: any object, bulk buffers out of band.
Calls whose arguments are plain scalars and strings travel as msgpack between Python peers too, as that is faster.

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
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import msgspec

from loom.errors import NotSendable, ProtocolError
from loom.wire.envelope import MSGPACK, PICKLE

INLINE_BYTES = 2048
"""Buffers smaller than this stay inside the body: a frame of their own would cost more than the copy."""

NDARRAY = 1
"""MessagePack extension type of an array: msgpack [dtype, shape, buffer index]."""

_ATOMS = frozenset((type(None), bool, int, float, str, bytes))


class Body(NamedTuple):
    """An encoded value: `encoding` names the format of `data`; `buffers` are referred to from it by index."""

    encoding: str
    data: bytes
    buffers: Sequence[Any] = ()


class _ByValue(Exception):
    """The plain pickler met something only cloudpickle can carry: a lambda, a local, anything of `__main__`."""


class _Pickler(pickle.Pickler):
    """The C pickler, stopping at what would not be importable on the other side."""

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler for everything but the built-in containers and scalars."""
        if isinstance(obj, (FunctionType, type)) and _needs_value(obj):
            raise _ByValue
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(obj) is numpy.ndarray and obj.nbytes >= INLINE_BYTES:
            return _reduce_array(obj)
        return NotImplemented


def _reduce_array(array: Any) -> Any:
    """How to pickle those large arrays that NumPy would copy into the pickle: with their bytes beside it, as others.

    They are strided ones, which are made contiguous, and dates and times, which export no buffer and go as bytes.
    """
    import numpy

    if array.dtype.hasobject:
        return NotImplemented
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = numpy.ascontiguousarray(array)
    try:
        memoryview(array)
        return array.__reduce_ex__(5)
    except ValueError:
        order = "C" if array.flags.c_contiguous else "F"
        raw = array.reshape(-1, order=order).view(numpy.uint8)
        return _array_of, (raw, array.dtype, array.shape, order)


def _array_of(raw: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """The inverse of `_reduce_array`; pickles name it."""
    return raw.view(dtype).reshape(shape, order=order)


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
    for value in args:
        if type(value) not in _ATOMS:
            return _pickle((args, kwargs), "the arguments")
    for value in kwargs.values():
        if type(value) not in _ATOMS:
            return _pickle((args, kwargs), "the arguments")
    try:
        return Body(MSGPACK, _encode_plain((args, kwargs)))
    except (OverflowError, ValueError):  # an int beyond 64 bits, a lone surrogate: pickle has room for them
        return _pickle((args, kwargs), "the arguments")


def encode_value(value: Any, accept: str) -> Body:
    """A result -> Body in an encoding the caller accepts.

    Raises: NotSendable (L1004) naming the type that cannot travel.
    """
    if type(value) in _ATOMS:
        try:
            return Body(MSGPACK, _encode_plain(value))
        except (OverflowError, ValueError):
            pass
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
            contiguous = numpy.ascontiguousarray(obj).reshape(obj.shape)
            buffers.append(contiguous.reshape(-1).view(numpy.uint8) if contiguous.size else b"")
            header = [_description(contiguous.dtype), list(contiguous.shape), len(buffers) - 1]
            return msgspec.msgpack.Ext(NDARRAY, msgspec.msgpack.encode(header))
        if isinstance(obj, numpy.generic):
            return obj.item()
    raise TypeError(f"objects of type {type(obj).__module__}.{type(obj).__qualname__} have no MessagePack form")


def _description(dtype: Any) -> Any:
    """A dtype as .npy files have it: "<f8", or for records a list of [name, dtype, shape], padding included."""
    if dtype.names is None:
        return dtype.str
    from numpy.lib.format import dtype_to_descr

    return dtype_to_descr(dtype)


def _dtype(description: Any) -> Any:
    """The inverse of `_description`. Raises: ValueError, TypeError, SyntaxError."""
    import numpy

    if isinstance(description, str):
        return numpy.dtype(description)
    from numpy.lib.format import descr_to_dtype

    return descr_to_dtype(_tuples(description))


def _tuples(description: Any) -> Any:
    """The fields of a record as tuples, which NumPy insists on and MessagePack has not."""
    if not isinstance(description, list):
        raise TypeError(f"dtype: expected a string or a list of fields, got {description!r}")
    return [
        (
            name if isinstance(name, str) else tuple(name),  # [title, name]
            below if isinstance(below, str) else _tuples(below),
            *map(tuple, shape),
        )
        for name, below, *shape in description
    ]


_plain_encoder = msgspec.msgpack.Encoder()
_encode_plain = _plain_encoder.encode


def _no_array(code: int, payload: memoryview) -> Any:
    raise ProtocolError(f"body has MessagePack extension type {code}, and no buffer comes with it")


_plain_decoder = msgspec.msgpack.Decoder(Any, ext_hook=_no_array)


def decode_value(encoding: str, data: bytes, buffers: Sequence[Any] = (), *, trusted: bool = True) -> Any:
    """Body -> value. Arrays whose buffer is read-only come out read-only.

    `trusted`: whether the peer is the same user on this node; pickles from anyone else are refused.
    Raises: ProtocolError (L2006) for anything malformed, in a pickle too.
    """
    if encoding == MSGPACK:
        if not buffers:
            try:
                return _plain_decoder.decode(data)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise ProtocolError(f"body is not MessagePack: {error}") from None
        return _decode_neutral(data, buffers)
    if encoding != PICKLE:
        raise ProtocolError(f"body encoding: expected 'msgpack' or 'pickle', got {encoding!r}")
    if not trusted:
        raise ProtocolError("body is a pickle, and those are accepted over the node's private sockets only")
    try:
        return pickle.loads(data, buffers=buffers)
    except Exception as error:  # unpickling runs code: whatever it raises is the sender's fault, and must name it
        raise ProtocolError(f"body cannot be unpickled here: {type(error).__name__}: {error}") from error


def _decode_neutral(data: bytes, buffers: Sequence[Any]) -> Any:
    def hook(code: int, payload: memoryview) -> Any:
        if code != NDARRAY:
            raise ProtocolError(f"body has MessagePack extension type {code}, expected {NDARRAY} (an array)")
        return _array(payload, buffers)

    try:
        return msgspec.msgpack.Decoder(Any, ext_hook=hook).decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"body is not MessagePack: {error}") from None


def _array(payload: memoryview, buffers: Sequence[Any]) -> Any:
    import numpy

    try:
        description, shape, index = msgspec.msgpack.decode(payload, type=tuple[Any, list[int], int])
        if not 0 <= index < len(buffers):
            raise ValueError(f"buffer {index} of {len(buffers)}")
        if any(length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
        dtype = _dtype(description)
        if dtype.hasobject:
            raise ValueError(f"dtype {description!r} holds Python objects")
        return numpy.frombuffer(buffers[index], dtype=dtype).reshape(shape)
    except (msgspec.DecodeError, ValueError, TypeError, SyntaxError, RecursionError) as error:
        raise ProtocolError(f"body has a malformed array: {error}") from None


def _pickle(value: Any, what: str) -> Body:
    buffers: list[Any] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < INLINE_BYTES:
            return True
        buffers.append(buffer)
        return False

    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5, buffer_callback=keep).dump(value)
        return Body(PICKLE, out.getvalue(), buffers)
    except (_ByValue, pickle.PicklingError):  # not found under its name: a decorated function, an enum made by a call
        buffers.clear()
        return Body(PICKLE, dumps_by_value(value, keep, what), buffers)
    except Exception as error:  # any __reduce__ may raise anything
        raise NotSendable(f"{what} cannot be sent: {type(error).__name__}: {error}") from error


def dumps_order(cls: type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """A class and what it is called with, all in one pickle without buffers beside it.

    Raises: NotSendable (L1004).
    """
    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5).dump((cls, args, kwargs))
        return out.getvalue()
    except (_ByValue, pickle.PicklingError):
        return dumps_by_value((cls, args, kwargs), None, "the actor's class or arguments")
    except Exception as error:
        raise NotSendable(f"the actor's class or arguments cannot be sent: {type(error).__name__}: {error}") from error


def dumps_by_value(value: Any, keep: Callable[[pickle.PickleBuffer], bool] | None, what: str) -> bytes:
    """Pickle with classes and functions of `__main__`, notebooks and closures carried by value.

    Raises: NotSendable (L1004).
    """
    import cloudpickle

    out = io.BytesIO()
    try:
        cloudpickle.Pickler(out, protocol=5, buffer_callback=keep).dump(value)
    except Exception as error:
        raise NotSendable(f"{what} cannot be sent: {type(error).__name__}: {error}") from error
    return out.getvalue()
