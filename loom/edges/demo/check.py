"""The demo's answer worked out a second time, by other means: for `loom-node demo --check`.

Nothing here is shared with the fast path: text is decoded and matched as `str`, sums are made by a dictionary of
postings, one process does it all. It takes a few seconds for the standard library.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loom.edges.demo.corpus import printable
from loom.errors import InputError

SIMILARITY_TOLERANCE: Final = 1e-9
TIE_TOLERANCE: Final = 1e-12

_TOKEN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """The right answer for n files.

    paths: the files, in the order of the answer.
    nearest: int64 (n,), the most similar other file of each, -1 when there is none.
    similarity: float64 (n,).
    rows: the weight of each token of each file; each row has length 1, or is empty.
    """

    paths: tuple[str, ...]
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float64]
    rows: tuple[dict[str, float], ...]

    def between(self, one: int, other: int) -> float:
        """The similarity of any two files."""
        right = self.rows[other]
        return math.fsum(weight * right[token] for token, weight in self.rows[one].items() if token in right)


def reference(folder: str, paths: Sequence[str]) -> Reference:
    """Compare the files with one another, the plain way.

    paths: the text files, and no others, relative to `folder`, in order.
    Raises: InputError when one of them can no longer be read, or is no text.
    """
    counts = [Counter(match.lower() for match in _TOKEN.findall(_text(folder, path))) for path in paths]
    n = len(counts)
    frequency = Counter(token for count in counts for token in count)
    rows = []
    for count in counts:
        row = {token: times * (math.log((1 + n) / (1 + frequency[token])) + 1) for token, times in count.items()}
        norm = math.sqrt(math.fsum(weight * weight for weight in row.values()))
        rows.append({token: weight / norm for token, weight in row.items()})

    postings: defaultdict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for number, row in enumerate(rows):
        for token, weight in row.items():
            postings[token][0].append(number)
            postings[token][1].append(weight)
    # A token of one file adds to no pair.
    shared = {
        token: (np.array(files), np.array(weights)) for token, (files, weights) in postings.items() if len(files) > 1
    }
    nearest = np.full(n, -1, dtype=np.int64)
    similarity = np.zeros(n)
    for number, row in enumerate(rows):
        scores = np.zeros(n)
        for token, weight in row.items():
            if token in shared:
                files, weights = shared[token]
                scores[files] += weight * weights
        scores[number] = -np.inf
        if n > 1:
            nearest[number] = np.flatnonzero(scores >= scores.max() - TIE_TOLERANCE)[0]
            similarity[number] = scores[nearest[number]]
    return Reference(tuple(paths), nearest, similarity, tuple(rows))


def compare(result: tuple[NDArray[np.int64], NDArray[np.float64]], expected: Reference) -> list[str]:
    """What is wrong with a result, a line for each file; nothing, when it is right.

    result: (nearest, similarity), int64 (n,) and float64 (n,). A similarity may be off by 1e-9; another nearest file is
    right as well when it is as similar as the expected one, within 1e-12.
    """
    nearest, similarity = result
    n = len(expected.paths)
    if nearest.shape != (n,) or similarity.shape != (n,):
        return [f"expected {n} files, got {nearest.shape} nearest and {similarity.shape} similarities"]
    differences = []
    for number, path in enumerate(expected.paths):
        got, score = int(nearest[number]), float(similarity[number])
        right, right_score = int(expected.nearest[number]), float(expected.similarity[number])
        same = got == right or (
            0 <= got < n
            and got != number
            and abs(expected.between(number, got) - expected.between(number, right)) <= TIE_TOLERANCE
        )
        # Written so that a NaN is a difference.
        if not (same and abs(score - right_score) <= SIMILARITY_TOLERANCE):
            differences.append(
                f"{printable(path)}: expected {_name(expected, right)} at {right_score:.12f}, "
                f"got {_name(expected, got)} at {score:.12f}"
            )
    return differences


def _name(expected: Reference, number: int) -> str:
    if number == -1:
        return "no other file"
    return printable(expected.paths[number]) if 0 <= number < len(expected.paths) else f"file number {number}"


def _text(folder: str, path: str) -> str:
    try:
        with open(os.path.join(folder, path), "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"cannot check '{printable(path)}': {error.strerror}; it was there before") from None
    if b"\0" in content[:8192]:
        raise InputError(f"cannot check '{printable(path)}': it is no text any more")
    return content.decode("utf-8", errors="replace")
