"""Vectors that are kept in memory and searched."""

from collections.abc import Iterator

import numpy as np

import loom


class Index(loom.Actor):
    """Rows of `dim` numbers, found again by how near they are."""

    def __init__(self, dim: int) -> None:
        self.rows = np.empty((0, dim))

    def add(self, vectors: np.ndarray | list[list[float]]) -> int:
        """Add rows, shape (n, dim); how many there are now."""
        self.rows = np.concatenate([self.rows, np.asarray(vectors, dtype=float)])
        return len(self.rows)

    def count(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def search(self, vector: np.ndarray | list[float], k: int = 1) -> list[int]:
        """The numbers of the k nearest rows, nearest first."""
        distances = np.linalg.norm(self.rows - np.asarray(vector, dtype=float), axis=1)
        return [int(row) for row in np.argsort(distances, kind="stable")[:k]]

    def scan(self, chunk: int) -> Iterator[np.ndarray]:
        """All rows, `chunk` at a time: a stream."""
        for start in range(0, len(self.rows), chunk):
            yield self.rows[start : start + chunk]
