"""The most similar other file of each file, by a numba kernel over an inverted index.

The kernel adds up one row of the similarity matrix at a time: for each token of the row, for each file that holds the
token, `scores[file] += weight * its weight`. A pair's products are added in the order of the tokens, so a score does
not depend on which rows are asked for together.

Measured on the standard library (2,281 rows, 182,317 columns, 664,167 weights, 140 million products, one core): row by
row 0.158 s; blocks of 4, 8, 16 rows that share a walk of each posting list 0.132, 0.137, 0.157 s. A fifth is not worth
the merge of the rows' token lists that it takes, so rows it is.

numba is imported, and the kernels compiled or loaded from its cache on disk, at the first call: `warm` is that call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loom.errors import UsageError

TIE: Final = 1e-12
"""Scores this close to the best are the same score but for rounding; the first path has it."""


def transpose(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """The inverted index of a matrix: which rows hold each column.

    indptr: int64 (n + 1,); indices: int32 (pairs,); data: float64 (pairs,), as in Matrix. Any may be read-only.
    Returns: t_indptr, int64 (columns + 1,); t_indices, int32 (pairs,), rows, ascending in a column; t_data, float64.
    Raises: UsageError when the arrays do not make up a matrix with that many columns.
    """
    indptr, indices, data = _by_rows(indptr, indices, data, columns)
    t_indptr = np.zeros(columns + 1, dtype=np.int64)
    np.cumsum(np.bincount(indices, minlength=columns), out=t_indptr[1:])
    t_indices, t_data = np.empty_like(indices), np.empty_like(data)
    _kernels()[0](indptr, indices, data, t_indptr[:-1].copy(), t_indices, t_data)
    return t_indptr, t_indices, t_data


def nearest(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float64],
    t_indptr: NDArray[np.int64],
    t_indices: NDArray[np.int32],
    t_data: NDArray[np.float64],
    start: int,
    stop: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each row in start:stop the other row with the highest dot product; of equal ones, the first.

    indptr, indices, data: the matrix by rows, n of them. t_indptr, t_indices, t_data: its `transpose`. All of them may
    be read-only; the GIL is released.
    Returns: nearest, int64 (stop - start,), -1 when there is no other row; similarity, float64 (stop - start,), 0 to 1.
    Raises: UsageError when the arrays do not fit together, or start:stop is not in 0..n.
    """
    indptr, indices, data = _by_rows(indptr, indices, data, len(t_indptr) - 1)
    t_indptr, t_indices, t_data = _by_rows(t_indptr, t_indices, t_data, len(indptr) - 1)
    if not 0 <= start <= stop < len(indptr):
        raise UsageError(f"rows {start}:{stop}: expected 0 <= start <= stop <= {len(indptr) - 1}, the number of rows")
    rows = np.empty(stop - start, dtype=np.int64)
    similarity = np.empty(stop - start, dtype=np.float64)
    _kernels()[1](indptr, indices, data, t_indptr, t_indices, t_data, start, rows, similarity)
    return rows, similarity


def warm() -> None:
    """Have the kernels ready: about a second and a half once on a machine, a third of a second in each process."""
    _kernels()


def _by_rows(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """The arrays in the one layout the kernels take. Raises: UsageError: a kernel checks no bounds, so this does."""
    indptr = np.require(indptr, np.int64, ["C", "A"])
    indices = np.require(indices, np.int32, ["C", "A"])
    data = np.require(data, np.float64, ["C", "A"])
    fits = (
        indptr.ndim == indices.ndim == data.ndim == 1
        and indptr.size > 0
        and indptr[0] == 0
        and indptr[-1] == indices.size == data.size
        and not np.any(indptr[1:] < indptr[:-1])
    )
    if not fits:
        raise UsageError(
            f"not a sparse matrix: indptr {indptr.shape}, indices {indices.shape}, data {data.shape}; "
            "expected an ascending indptr from 0 to the length of the other two"
        )
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        raise UsageError(f"indices reach from {indices.min()} to {indices.max()}: expected 0 to {columns - 1}")
    return indptr, indices, data


def _transpose(indptr, indices, data, cursor, t_indices, t_data):  # type: ignore[no-untyped-def]  # compiled by numba
    for row in range(indptr.size - 1):
        for pair in range(indptr[row], indptr[row + 1]):
            place = cursor[indices[pair]]
            cursor[indices[pair]] = place + 1
            t_indices[place] = row
            t_data[place] = data[pair]


def _nearest(  # type: ignore[no-untyped-def]  # compiled by numba
    indptr, indices, data, t_indptr, t_indices, t_data, start, rows, similarity
):
    n = indptr.size - 1
    scores = np.empty(n, dtype=np.float64)
    for place in range(rows.size):
        row = start + place
        scores[:] = 0.0
        for pair in range(indptr[row], indptr[row + 1]):
            token = indices[pair]
            weight = data[pair]
            for other in range(t_indptr[token], t_indptr[token + 1]):
                scores[t_indices[other]] += weight * t_data[other]
        scores[row] = -1.0
        best = scores.max()
        rows[place] = -1
        similarity[place] = 0.0
        for other in range(n):
            if other != row and scores[other] >= best - TIE:
                rows[place] = other
                similarity[place] = min(scores[other], 1.0)
                break


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """The compiled `_transpose` and `_nearest`.

    The signatures are spelled out with read-only inputs, which writable arrays fit too: numba tells the two apart, and
    would otherwise compile again for the views that come out of shared memory.
    """
    import numba  # here, because the import takes a quarter of a second

    types = numba.types

    def read_only(dtype: Any) -> Any:
        return types.Array(dtype, 1, "C", readonly=True)

    matrix = (read_only(types.int64), read_only(types.int32), read_only(types.float64))
    transposing = types.void(*matrix, types.int64[::1], types.int32[::1], types.float64[::1])
    searching = types.void(*matrix, *matrix, types.int64, types.int64[::1], types.float64[::1])
    return _compiled(numba, transposing, _transpose), _compiled(numba, searching, _nearest)


def _compiled(numba: Any, signature: Any, function: Callable[..., None]) -> Callable[..., None]:
    """`function`, compiled, from the cache on disk if that can be used."""
    try:
        return numba.njit(signature, cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except Exception:  # the cache cannot be written, is full or damaged; a compile error comes again
        return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]
