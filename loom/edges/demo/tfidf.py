"""Token counts of all chunks become one matrix of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loom.edges.demo.tokens import TokenCounts, join, words


@dataclass(frozen=True, slots=True)
class Matrix:
    r"""TF-IDF weights of n files over all their tokens, a sparse matrix by rows; each row has length 1, or is empty.

    vocabulary: uint8 (bytes,), the tokens in byte order, joined by "\n"; column j is token j of `tokens.words`.
    columns: how many tokens there are.
    indptr: int64 (n + 1,); indices: int32 (pairs,), ascending within a row; data: float64 (pairs,), above zero.
    """

    vocabulary: NDArray[np.uint8]
    columns: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float64]


def merge(chunks: Sequence[TokenCounts], keep: NDArray[np.bool_] | None = None) -> Matrix:
    """Weigh the files of all chunks, in the order given.

    The result is the same, to the last bit, however the files were cut into chunks.

    keep: bool (files,), False for a row that is no text file: it is taken out and does not count in n.
    A weight is count x (ln((1 + n) / (1 + df)) + 1), and a row is divided by its Euclidean length.
    Raises: ValueError when `keep` is not as long as the chunks have files.
    """
    chunk_words = [words(chunk.vocabulary) for chunk in chunks]
    tokens = sorted(set().union(*chunk_words))
    column = {token: number for number, token in enumerate(tokens)}

    # Both vocabularies are sorted, so the indices of a row still ascend after they are renumbered.
    indices = [np.empty(0, dtype=np.int32)]
    for chunk, its_words in zip(chunks, chunk_words, strict=True):
        renumber = np.fromiter(map(column.__getitem__, its_words), dtype=np.int32, count=len(its_words))
        indices.append(renumber[chunk.indices])
    all_indices = np.concatenate(indices)
    counts = np.concatenate([np.empty(0, dtype=np.int64), *(chunk.counts for chunk in chunks)])
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *(np.diff(chunk.indptr) for chunk in chunks)])
    if keep is not None:
        if keep.shape != lengths.shape:
            raise ValueError(f"keep: expected {lengths.shape}, one for each file, got {keep.shape}")
        kept_pairs = np.repeat(keep, lengths)
        all_indices, counts, lengths = all_indices[kept_pairs], counts[kept_pairs], lengths[keep]

    indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    frequency = np.bincount(all_indices, minlength=len(tokens))
    rarity = np.log((1 + len(lengths)) / (1 + frequency)) + 1
    data = counts * rarity[all_indices]
    filled = np.flatnonzero(lengths)
    if filled.size:
        norms = np.sqrt(np.add.reduceat(data * data, indptr[filled]))
        data /= np.repeat(norms, lengths[filled])
    return Matrix(join(tokens), len(tokens), indptr, all_indices, data)
