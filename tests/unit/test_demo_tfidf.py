"""Chunks of counts become one matrix, the same for any cut."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

from loom.edges.demo.tfidf import Matrix, merge
from loom.edges.demo.tokens import TokenCounts, count_tokens, words


def counted(contents: list[bytes]) -> TokenCounts:
    data = np.frombuffer(b"".join(contents), dtype=np.uint8)
    return count_tokens(data, np.cumsum([0, *map(len, contents)], dtype=np.int64))


def dense(matrix: Matrix) -> np.ndarray:
    rows = np.zeros((len(matrix.indptr) - 1, matrix.columns))
    numbers = np.repeat(np.arange(len(rows)), np.diff(matrix.indptr))
    rows[numbers, matrix.indices] = matrix.data
    return rows


def same(one: Matrix, other: Matrix) -> bool:
    names = ("vocabulary", "columns", "indptr", "indices", "data")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_weights_by_hand() -> None:
    matrix = merge([counted([b"alpha alpha beta", b"beta", b""])])
    once, twice = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    norm = math.hypot(2 * once, twice)
    assert words(matrix.vocabulary) == [b"alpha", b"beta"]
    assert matrix.columns == 2
    np.testing.assert_allclose(dense(matrix), np.array([[2 * once / norm, twice / norm], [0, 1], [0, 0]]), rtol=1e-15)
    dtypes = [array.dtype for array in (matrix.vocabulary, matrix.indptr, matrix.indices, matrix.data)]
    assert dtypes == [np.uint8, np.int64, np.int32, np.float64]


FILES = st.lists(
    st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "9eps", "a", "x1", "Alpha"])).map(
        lambda words: " ".join(words).encode()
    ),
    min_size=1,
    max_size=12,
)


@given(FILES, st.data())
@settings(max_examples=200, deadline=None)
def test_any_cut_into_chunks_gives_the_same_bits(contents: list[bytes], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(contents)), max_size=4)))
    spans = zip([0, *cuts], [*cuts, len(contents)], strict=True)
    assert same(merge([counted(contents)]), merge([counted(contents[start:stop]) for start, stop in spans]))


@given(FILES)
@settings(max_examples=200, deadline=None)
def test_it_is_the_matrix_of_scikit_learn(contents: list[bytes]) -> None:
    matrix = merge([counted(contents)])
    if not matrix.columns:
        return  # scikit-learn refuses an empty vocabulary
    pattern = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
    vectorizer = TfidfVectorizer(analyzer=lambda text: [match.lower() for match in pattern.findall(text)])
    expected = vectorizer.fit_transform(content.decode() for content in contents)
    assert [word.decode() for word in words(matrix.vocabulary)] == vectorizer.get_feature_names_out().tolist()
    np.testing.assert_allclose(dense(matrix), expected.toarray(), rtol=0, atol=1e-14)


def test_rows_that_are_no_text_are_taken_out_and_not_counted() -> None:
    contents = [b"alpha beta", b"", b"alpha", b"", b"gamma"]
    keep = np.array([True, False, True, True, True])
    assert same(
        merge([counted(contents[:3]), counted(contents[3:])], keep), merge([counted([contents[0], *contents[2:]])])
    )


def test_keep_has_one_entry_for_each_file() -> None:
    with pytest.raises(ValueError, match=r"expected \(2,\), one for each file, got \(1,\)"):
        merge([counted([b"alpha", b"beta"])], np.array([True]))


@pytest.mark.parametrize("chunks", [[], [[]], [[b""]], [[b""], [], [b"a 1"]]])
def test_no_files_and_no_tokens(chunks: list[list[bytes]]) -> None:
    matrix = merge([counted(contents) for contents in chunks])
    assert matrix.columns == matrix.vocabulary.size == matrix.indices.size == matrix.data.size == 0
    assert matrix.indptr.tolist() == [0] * (sum(map(len, chunks)) + 1)
    assert [matrix.indices.dtype, matrix.data.dtype] == [np.int32, np.float64]
