"""NumPy arrays that live in the arena."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import DTypeLike

from loom.arena import Arena, destroy_files, empty, share, use
from loom.errors import UsageError


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(f"loom-tensor-{os.getpid()}", 64 << 20)
    use(arena)
    yield arena
    use(None)
    arena.destroy()
    arena.close()
    gc.collect()
    assert destroy_files(arena.name) == 0


@pytest.mark.parametrize("shape", [(), 0, 5, np.int64(2), [2, 2], (0, 3), (3, 0), (2, 3), (2, 3, 4), (1,)])
@pytest.mark.parametrize("dtype", [float, "f4", "i1", "?", "c16", "U3", "M8[s]", "i4,f8"])
def test_empty_has_the_shape_and_dtype_asked_for(arena: Arena, shape: int | tuple[int, ...], dtype: DTypeLike) -> None:
    array = empty(shape, dtype)
    assert array.shape == np.empty(shape).shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous


def test_the_array_keeps_its_memory(arena: Arena) -> None:
    tail = empty(1000)[10:]
    tail[:] = 3
    assert arena.stats().blocks == 1
    assert tail.sum() == 2970
    del tail
    assert arena.stats().blocks == 0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(100)[::7],
        np.float32(2.5),
        np.zeros((0, 4)),
        np.array(["a", "bcd"]),
    ],
)
def test_share_copies_values_and_order(arena: Arena, array: np.ndarray) -> None:
    copy = share(array)
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)
    assert copy.flags.f_contiguous or not np.asarray(array).flags.f_contiguous
    assert copy.flags.c_contiguous or np.asarray(array).flags.f_contiguous
    if copy.size:
        assert arena.holds(copy)


def test_an_array_is_sent_without_a_copy_and_arrives_read_only(arena: Arena) -> None:
    receiver = Arena.attach(arena.name)
    array = share(np.arange(1000.0))
    reference, copied = arena.send(array[100:200])
    assert not copied
    received = np.frombuffer(receiver.accept(reference))
    np.testing.assert_array_equal(received, np.arange(100.0, 200.0))
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        received.flags.writeable = True
    receiver.close()
    assert received[0] == 100.0
    fortran = share(np.asfortranarray(np.ones((3, 4))))
    assert not arena.send(fortran)[1]


@pytest.mark.parametrize(("shape", "dtype"), [((2,), object), ((-1,), float), ((2,), "i4,O")])
def test_what_cannot_be_shared(arena: Arena, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    with pytest.raises(UsageError, match="expected a"):
        empty(shape, dtype)


def test_without_an_arena() -> None:
    with pytest.raises(UsageError, match="pass arena="):
        empty(3)
