"""The demo's daemons: readers, tokenizers and scorers, each a supervised process.

None of them keeps anything from one message to the next. So a daemon that was killed is replaced by one that knows as
much, any chunk can be given to any daemon of its kind, and asking twice gives the same answer.

Every method returns (value, seconds of CPU it took). Large arrays come and go by reference, through the arena.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from loom import Actor
from loom.edges.demo import score
from loom.edges.demo.corpus import FileChunk, read_files
from loom.edges.demo.tokens import TokenCounts, count_tokens

Rows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]
"""A sparse matrix by rows: indptr, indices, data, as in `tfidf.Matrix`."""

_Self = TypeVar("_Self")
_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")


def _timed(
    method: Callable[Concatenate[_Self, _Arguments], _Value],
) -> Callable[Concatenate[_Self, _Arguments], tuple[_Value, float]]:
    @wraps(method)
    def timed(_self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> tuple[_Value, float]:
        start_s = time.thread_time()
        value = method(_self, *args, **kwargs)
        return value, time.thread_time() - start_s

    return timed


class Reader(Actor):
    """Reads files."""

    @_timed
    def read(self, folder: str, paths: list[str], max_bytes: int) -> FileChunk:
        """The contents of some files: `corpus.read_files`."""
        return read_files(folder, paths, max_bytes)


class Tokenizer(Actor):
    """Counts tokens."""

    @_timed
    def count(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> TokenCounts:
        """The tokens of the files of one chunk: `tokens.count_tokens`."""
        return count_tokens(data, offsets)


class Scorer(Actor):
    """Compares files, with compiled kernels.

    The kernels are made ready by `warm`, or else by the first call that needs them, and not in `on_start`: the children
    of a supervisor start one after the other, and the whole tree would wait for each.
    """

    @_timed
    def warm(self) -> None:
        """Load the kernels, or compile them and leave them in the cache for the others."""
        score.warm()

    @_timed
    def invert(self, rows: Rows, columns: int) -> Rows:
        """The matrix by columns: `score.transpose`."""
        return score.transpose(*rows, columns)

    @_timed
    def nearest(
        self, rows: Rows, inverted: Rows, start: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For the files start:stop, the most similar other one and how similar it is: `score.nearest`."""
        return score.nearest(*rows, *inverted, start, stop)
