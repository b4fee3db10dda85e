"""NumPy arrays that live in the arena: sending one to another process of the node copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from loom.arena.default import current
from loom.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from loom.arena.arena import Arena

_Scalar = TypeVar("_Scalar", bound="np.generic")


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex], dtype: DTypeLike = float, *, arena: Arena | None = None
) -> NDArray[Any]:
    """A writable array in the arena, C order, 64-byte aligned; its contents are arbitrary.

    The array keeps the memory alive, and so does every view of it, here or in a process it was sent to.
    Raises: ArenaFull (L3003); UsageError (L1008) for a dtype with Python objects, a bad shape, or no arena.
    """
    import numpy as np

    kind = np.dtype(dtype)
    # hasattr is all that isinstance(shape, SupportsIndex) asks, and takes 3 us to
    lengths: tuple[int, ...] = (int(shape),) if hasattr(shape, "__index__") else tuple(map(int, shape))
    if kind.hasobject:
        raise UsageError(f"expected a dtype of plain data, got {kind}: Python objects cannot live in shared memory")
    if lengths and min(lengths) < 0:
        raise UsageError(f"expected a shape without negative lengths, got {lengths}")
    block = (arena or current()).lease(prod(lengths) * kind.itemsize)
    return np.ndarray(lengths, kind, buffer=memoryview(block))


def share(array: NDArray[_Scalar], *, arena: Arena | None = None) -> NDArray[_Scalar]:
    """A copy of `array` that lives in the arena: same shape, dtype and values.

    Fortran-contiguous arrays stay so; every other layout becomes C-contiguous.
    Raises: as `empty`.
    """
    import numpy as np

    array = np.asanyarray(array)
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        copy = empty(array.shape[::-1], array.dtype, arena=arena).T
    else:
        copy = empty(array.shape, array.dtype, arena=arena)
    copy[...] = array
    return copy
