"""The kernels against plain matrices, and against scikit-learn on the standard library."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

from loom.edges.demo import score
from loom.edges.demo.corpus import FileKind, default_folder, find, read_files
from loom.edges.demo.score import nearest, transpose
from loom.edges.demo.tfidf import Matrix, merge
from loom.edges.demo.tokens import count_tokens
from loom.errors import UsageError

PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")


def matrix_of(*contents: bytes) -> Matrix:
    data = np.frombuffer(b"".join(contents), dtype=np.uint8)
    return merge([count_tokens(data, np.cumsum([0, *map(len, contents)], dtype=np.int64))])


def solve(matrix: Matrix, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rows = (matrix.indptr, matrix.indices, matrix.data)
    return nearest(*rows, *transpose(*rows, matrix.columns), start, len(matrix.indptr) - 1 if stop is None else stop)


def sparse(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, columns = np.nonzero(rows)
    indptr = np.searchsorted(numbers, np.arange(len(rows) + 1)).astype(np.int64)
    return indptr, columns.astype(np.int32), rows[numbers, columns]


def plain(rows: np.ndarray) -> tuple[list[int], list[float]]:
    """The definition, on a dense matrix."""
    scores = rows @ rows.T
    np.fill_diagonal(scores, -1.0)
    found = [int(np.flatnonzero(line >= line.max() - 1e-12)[0]) for line in scores]
    return found, [float(scores[number, other]) for number, other in enumerate(found)]


MATRICES = st.tuples(st.integers(2, 9), st.integers(0, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 0.125, 0.25, 0.375]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    ).map(lambda rows: np.array(rows).reshape(shape))
)


@given(MATRICES, st.data())
@settings(max_examples=300, deadline=None)
def test_any_rows_of_any_matrix(rows: np.ndarray, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    by_rows = sparse(rows)
    by_columns = transpose(*by_rows, rows.shape[1])
    for got, expected in zip(by_columns, sparse(rows.T), strict=True):
        np.testing.assert_array_equal(got, expected)
    found, similarity = nearest(*by_rows, *by_columns, start, stop)
    expected_found, expected_similarity = plain(rows)
    assert found.tolist() == expected_found[start:stop]
    np.testing.assert_allclose(similarity, expected_similarity[start:stop], rtol=0, atol=1e-15)
    assert [found.dtype, similarity.dtype] == [np.int64, np.float64]


def test_two_files_and_a_stranger() -> None:
    found, similarity = solve(matrix_of(b"alpha beta", b"gamma delta", b"alpha beta gamma"))
    assert found.tolist() == [2, 2, 0]
    assert 0 < similarity[1] < similarity[0] < 1
    assert similarity[2] == similarity[0]


def test_identical_files_are_one_apart_and_take_the_first_other() -> None:
    found, similarity = solve(matrix_of(*[b"alpha beta alpha gamma"] * 4))
    assert found.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(similarity, 1.0, rtol=0, atol=1e-15)
    assert similarity.max() <= 1.0


def test_files_without_tokens_take_the_first_other_at_zero() -> None:
    found, similarity = solve(matrix_of(b"", b"alpha", b"a 1", b"alpha"))
    assert found.tolist() == [1, 3, 0, 1]
    assert similarity.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_one_file_has_no_other() -> None:
    for content in (b"alpha", b""):
        found, similarity = solve(matrix_of(content))
        assert found.tolist() == [-1]
        assert similarity.tolist() == [0.0]


def test_no_files_at_all() -> None:
    found, similarity = solve(matrix_of())
    assert found.size == similarity.size == 0


def test_scores_that_differ_by_rounding_tie_and_others_do_not() -> None:
    for step, first in ((1e-13, 1), (1e-11, 2)):
        rows = np.array([[1.0, 0.0], [0.5, 0.5], [0.5 + step, 0.5]])
        by_rows = sparse(rows)
        assert nearest(*by_rows, *transpose(*by_rows, 2), 0, 1)[0].tolist() == [first]


def test_read_only_other_typed_and_unaligned_arrays_need_no_second_compilation() -> None:
    matrix = matrix_of(b"alpha beta", b"beta gamma", b"gamma alpha delta")
    expected = solve(matrix)
    rows = (matrix.indptr.copy(), matrix.indices.copy(), matrix.data.copy())
    for array in rows:
        array.flags.writeable = False
    shared = transpose(*rows, matrix.columns)
    for array in shared:
        array.flags.writeable = False
    odd = np.frombuffer(b"\0" + matrix.data.tobytes(), dtype=np.uint8)[1:].view(np.float64)
    assert not odd.flags.aligned
    variants: list[tuple[Any, Any, Any]] = [
        rows,
        (rows[0].astype(np.int32), rows[1].astype(np.int64), odd),
        (*rows[:2], np.repeat(rows[2], 2)[::2]),
    ]
    for variant in variants:
        got = (*nearest(*variant, *shared, 0, 3), *transpose(*variant, matrix.columns))
        for one, right in zip(got, (*expected, *shared), strict=True):
            np.testing.assert_array_equal(one, right)
    assert [len(kernel.signatures) for kernel in score._kernels()] == [1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1), (4, 4)])
def test_rows_out_of_range(start: int, stop: int) -> None:
    with pytest.raises(UsageError, match="expected 0 <= start <= stop <= 3"):
        solve(matrix_of(b"alpha", b"beta", b"gamma"), start, stop)


def test_arrays_that_do_not_fit_are_refused_before_the_kernel() -> None:
    indptr, indices, data = np.array([0, 1, 2]), np.array([0, 1], dtype=np.int32), np.array([1.0, 1.0])
    wrong = [
        (indptr, indices, data, 1),
        (indptr, -indices, data, 2),
        (indptr, indices, data[:1], 2),
        (indptr[:2], indices, data, 2),
        (np.array([0, 3, 2]), indices, data, 2),
        (np.array([], dtype=np.int64), indices, data, 2),
        (indptr + 1, indices, data, 2),
    ]
    for arguments in wrong:
        with pytest.raises(UsageError):
            transpose(*arguments)
    with pytest.raises(UsageError, match="indices reach from 0 to 1: expected 0 to 0"):
        nearest(indptr, indices, data, np.array([0, 2]), np.array([0, 1], dtype=np.int32), data, 0, 2)
    with pytest.raises(UsageError, match="indices reach from 0 to 2: expected 0 to 1"):
        nearest(indptr, indices, data, indptr, np.array([0, 2], dtype=np.int32), data, 0, 2)


def test_without_a_usable_cache_the_kernel_is_compiled_without_one() -> None:
    asked: list[bool] = []

    def njit(signature: object, *, nogil: bool, cache: bool = False) -> object:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function '_nearest': no locator available")
        return lambda function: function

    def function() -> None: ...

    assert score._compiled(SimpleNamespace(njit=njit), "void()", function) is function
    assert asked == [True, False]


def test_an_error_of_the_compiler_itself_is_raised() -> None:
    import numba

    with pytest.raises(numba.core.errors.NumbaError):
        score._compiled(numba, numba.types.void(numba.types.int64), lambda number: number.nothing)


@pytest.mark.parametrize("name", ["__init__", "corpus", "tokens", "tfidf", "score", "check"])
def test_importing_the_demo_does_not_import_numba(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for heavy in ("numba", "scipy", "sklearn"):
        monkeypatch.setitem(sys.modules, heavy, None)  # an import of it raises
    runpy.run_path(str(Path(score.__file__).with_name(f"{name}.py")))


@pytest.mark.parametrize("subset", ["asyncio", "concurrent", "email", "json", "unittest", None])
def test_it_agrees_with_scikit_learn_on_the_standard_library(subset: str | None) -> None:
    """The whole of it too, for which scikit-learn needs a second and a half."""
    found = find(Path(default_folder(), subset) if subset else None)
    chunks = [read_files(found.folder, found.paths[start : start + 500]) for start in range(0, len(found.paths), 500)]
    counts = [count_tokens(chunk.data, chunk.offsets) for chunk in chunks]
    result, similarity = solve(merge(counts, np.concatenate([chunk.kinds for chunk in chunks]) == FileKind.TEXT))

    contents = [Path(found.folder, path).read_bytes() for path in found.paths]
    texts = [content.decode("utf-8", errors="replace") for content in contents if b"\0" not in content[:8192]]
    vectorizer = TfidfVectorizer(analyzer=lambda text: [match.lower() for match in PATTERN.findall(text)])
    weights = vectorizer.fit_transform(texts)
    scores = (weights @ weights.T).toarray()
    np.fill_diagonal(scores, -1.0)
    assert len(texts) == len(result) > 3
    np.testing.assert_allclose(similarity, np.maximum(scores.max(axis=1), 0.0), rtol=0, atol=1e-9)
    first = (scores >= scores.max(axis=1, keepdims=True) - score.TIE).argmax(axis=1)
    np.testing.assert_array_equal(result, first)
