r"""Tokens of a chunk of files, counted.

A token is a match of `[A-Za-z_][A-Za-z0-9_]+` in the file decoded as UTF-8 with replacement, lower-cased after that.
The bytes give the same tokens without being decoded: only ASCII can match, no byte of a longer UTF-8 sequence is
below 0x80, and the decoder replaces bytes of 0x80 and above alone, never the ASCII byte that cuts a sequence short.

So: turn every other byte into a space and A-Z into a-z, split at spaces, and count. A run `12ab` holds the token `ab`;
`12a` holds none, since a token has two characters. That is settled once for each distinct run.

Measured on the standard library (2,281 files, 37 MB, one core, best of four): this 0.60 s; `re.findall` on bytes and a
Counter 0.72 s; a numba kernel with its own hash table 0.24 s, but 0.25 s to import numba in each process that counts,
and 3.4 s to compile it once. For a folder of this size the kernel costs what it saves, so there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DIGITS: Final = b"0123456789"
_RUNS: Final = bytes(
    ord(chr(code).lower()) if code < 128 and (chr(code).isalnum() or code == 95) else 32 for code in range(256)
)
_PIECE_BYTES: Final = 1 << 20
"""A file is split piece by piece: each run is an object of some 40 bytes, and a 64 MiB file may hold 20 million."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    r"""How often each token stands in each of n files; a sparse matrix by rows.

    vocabulary: uint8 (bytes,), the tokens in byte order, each once, joined by "\n". `words` takes it apart.
    indptr: int64 (n + 1,). File i has the pairs `indptr[i]:indptr[i + 1]`.
    indices: int32 (pairs,), numbers of tokens in the vocabulary, ascending within a file.
    counts: int64 (pairs,), 1 or more.
    """

    vocabulary: NDArray[np.uint8]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    counts: NDArray[np.int64]


class _Numbers(dict[bytes, int]):
    """The number of each run's token, by first sight; -1 for a run without one. Runs may share a token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[bytes, int] = {}

    def __missing__(self, run: bytes) -> int:
        token = run.lstrip(_DIGITS)
        number = self.tokens.setdefault(token, len(self.tokens)) if len(token) > 1 else -1
        self[run] = number
        return number


def count_tokens(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> TokenCounts:
    """Count the tokens of each file of a chunk.

    data: uint8 (total,); may be read-only. offsets: int64 (n + 1,). Both as in FileChunk.
    Memory beyond the result: the largest file twice, the distinct runs, and some 20 MB.
    """
    numbers = _Numbers()
    columns: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    counts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        runs = _count_runs(data[start:stop].tobytes().translate(_RUNS))
        columns.append(np.fromiter(map(numbers.__getitem__, runs), dtype=np.int64, count=len(runs)))
        counts.append(np.fromiter(runs.values(), dtype=np.int64, count=len(runs)))
    rows = np.repeat(np.arange(len(offsets) - 1), [len(part) for part in columns[1:]])
    return _assemble(list(numbers.tokens), rows, np.concatenate(columns), np.concatenate(counts), len(offsets) - 1)


def words(vocabulary: NDArray[np.uint8]) -> list[bytes]:
    """The tokens of a joined vocabulary, in its order."""
    return vocabulary.tobytes().split(b"\n") if vocabulary.size else []


def join(tokens: list[bytes]) -> NDArray[np.uint8]:
    """One array of a list of tokens; the opposite of `words`."""
    return np.frombuffer(b"\n".join(tokens), dtype=np.uint8)


def _count_runs(text: bytes) -> Counter[bytes]:
    if len(text) <= _PIECE_BYTES:
        return Counter(text.split())
    runs: Counter[bytes] = Counter()
    start = 0
    while start < len(text):
        stop = text.find(b" ", start + _PIECE_BYTES)
        stop = len(text) if stop < 0 else stop
        runs.update(text[start:stop].split())
        start = stop
    return runs


def _assemble(
    tokens: list[bytes], rows: NDArray[np.int64], columns: NDArray[np.int64], counts: NDArray[np.int64], height: int
) -> TokenCounts:
    """Number the tokens in byte order, and add up the runs of a file that share a token.

    rows, columns, counts: int64 (runs,); a column of -1 is no token.
    """
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    rank = np.empty(len(tokens), dtype=np.int64)
    rank[order] = np.arange(len(tokens))
    is_token = columns >= 0
    width = max(len(tokens), 1)
    keys = rows[is_token] * width + rank[columns[is_token]]
    sequence = np.argsort(keys)
    keys = keys[sequence]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    totals = np.add.reduceat(counts[is_token][sequence], first) if first.size else np.empty(0, dtype=np.int64)
    keys = keys[first]
    indptr = np.searchsorted(keys, np.arange(height + 1) * width).astype(np.int64)
    return TokenCounts(join([tokens[number] for number in order]), indptr, (keys % width).astype(np.int32), totals)
