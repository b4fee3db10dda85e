"""Arrays on the wire: what a body says of one whose bytes ride beside it.

In MessagePack an array is extension type 1, [dtype, shape, buffer index]: every language can read it, and building one
costs a tenth of unpickling it. Between Python peers that is how plain C-ordered arrays travel when they are arguments
or results of their own; those inside other objects are part of the pickle, by the reductions at the end of this file.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from loom.errors import ProtocolError

NDARRAY = 1
"""MessagePack extension type of an array: msgpack [dtype, shape, buffer index]."""

BESIDE_BYTES = 2048
"""Buffers smaller than this stay inside the body: a frame of their own would cost more than the copy."""

_PLAIN_KINDS = "biufc"
"""Kinds of dtype that are wholly described by their string: booleans and numbers, of either byte order."""

_VIEW_FORMATS = frozenset("cbB?hHiIlLqQnNfd")
"""What `memoryview.cast` can make of bytes."""

_ndarray: Any = None
_description_of: dict[Any, str] = {}  # of plain dtypes: there are a few dozen
_dtype_of: dict[str, Any] = {}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Any, list[int], int]).decode


def extension(value: Any, buffers: list[Any]) -> msgspec.msgpack.Ext | None:
    """A plain array as MessagePack, and itself as the last of `buffers`; None for every other value.

    Plain is exactly an ndarray, not small, of numbers, in C order.
    """
    kind = _ndarray
    if kind is None:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        kind = globals()["_ndarray"] = numpy.ndarray
    if type(value) is not kind or value.nbytes < BESIDE_BYTES or not value.flags.c_contiguous:
        return None
    description = _description_of.get(value.dtype)
    if description is None:
        if value.dtype.kind not in _PLAIN_KINDS:
            return None
        description = _description_of[value.dtype] = value.dtype.str
    buffers.append(value)
    return msgspec.msgpack.Ext(NDARRAY, _encode((description, value.shape, len(buffers) - 1)))


def neutral(array: Any, buffers: list[Any]) -> msgspec.msgpack.Ext:
    """Any array without Python objects as MessagePack; its bytes become the last of `buffers`."""
    import numpy

    contiguous = numpy.ascontiguousarray(array).reshape(array.shape)
    buffers.append(contiguous.reshape(-1).view(numpy.uint8) if contiguous.size else b"")
    header = [_description(contiguous.dtype), list(contiguous.shape), len(buffers) - 1]
    return msgspec.msgpack.Ext(NDARRAY, _encode(header))


def build(payload: memoryview, buffers: Sequence[Any]) -> Any:
    """The array that an extension of type 1 means, over its buffer of bytes: read-only where the buffer is.

    Raises: ProtocolError (L2006).
    """
    import numpy

    try:
        description, shape, index = _decode(payload)
        if not 0 <= index < len(buffers):
            raise ValueError(f"buffer {index} of {len(buffers)}")
        dtype = _dtype(description)
        if shape and min(shape) < 0:  # before NumPy sees it: of -1 and elements of no size it makes a SIGFPE
            raise ValueError(f"shape {shape} of {description!r} has a length below 0")
        array: Any = numpy.ndarray(shape, dtype, buffers[index])
        if array.nbytes != len(buffers[index]):
            raise ValueError(f"shape {shape} of {description!r} is not all of a buffer of {len(buffers[index])} bytes")
        return array
    except (msgspec.DecodeError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"body has a malformed array: {error}") from None


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
        known = _dtype_of.get(description)
        if known is not None:
            return known
        dtype = numpy.dtype(_harmless(description))
    else:
        from numpy.lib.format import descr_to_dtype

        dtype = descr_to_dtype(_tuples(description))
    if dtype.hasobject:
        raise ValueError(f"dtype {description!r} holds Python objects")
    if isinstance(description, str) and dtype.kind in _PLAIN_KINDS and len(_dtype_of) < 256:
        _dtype_of[description] = dtype
    return dtype


def _harmless(text: str) -> str:
    """A dtype's name. Raises: ValueError for a divided time unit: NumPy dies (SIGFPE) of "<M8[s/0]"."""
    if "/" in text:
        raise ValueError(f"dtype {text!r}: expected a time unit without a divisor")
    return text


def _tuples(description: Any) -> Any:
    """The fields of a record as tuples, which NumPy insists on and MessagePack has not."""
    if not isinstance(description, list):
        raise TypeError(f"dtype: expected a string or a list of fields, got {description!r}")
    return [
        (
            name if isinstance(name, str) else tuple(name),  # [title, name]
            _harmless(below) if isinstance(below, str) else _tuples(below),
            *map(tuple, shape),
        )
        for name, below, *shape in description
    ]


# --- in a pickle ---


def reduce(obj: Any) -> Any:
    """How to pickle what the pickler would refuse or copy into the pickle, so that its bytes go beside it.

    Those are memoryviews; large strided arrays, which are made contiguous; and dates and times, which export no buffer.
    NotImplemented for everything else.
    """
    if type(obj) is memoryview:
        return _reduce_view(obj)
    numpy = sys.modules.get("numpy")
    if numpy is None or type(obj) is not numpy.ndarray or obj.nbytes < BESIDE_BYTES or obj.dtype.hasobject:
        return NotImplemented
    array = obj if obj.flags.forc else numpy.ascontiguousarray(obj)
    try:
        memoryview(array)
        return array.__reduce_ex__(5)
    except ValueError:
        order = "C" if array.flags.c_contiguous else "F"
        raw = array.reshape(-1, order=order).view(numpy.uint8)
        return _array_of, (raw, array.dtype, array.shape, order)


def _reduce_view(view: memoryview) -> Any:
    if view.format.lstrip("@") not in _VIEW_FORMATS or (view.ndim > 1 and not view.nbytes):
        raise TypeError(
            f"a memoryview of format {view.format!r} and shape {view.shape} cannot be rebuilt: send numpy.asarray(view)"
        )
    data = view if view.c_contiguous else view.tobytes()
    return _view_of, (pickle.PickleBuffer(data), view.format, view.shape)


def _array_of(raw: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """The inverse of `reduce` for dates and times; pickles name it."""
    return raw.view(dtype).reshape(shape, order=order)


def _view_of(data: Any, layout: str, shape: tuple[int, ...]) -> memoryview:
    """The inverse of `reduce` for memoryviews, read-only whatever it was; pickles name it."""
    view = memoryview(data).toreadonly().cast("B")
    return view.cast(layout) if len(shape) == 1 else view.cast(layout, shape)  # type: ignore[call-overload,no-any-return]
