"""The second opinion: it agrees with the fast path when that is right, and says so when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.edges.demo.check import compare, reference
from loom.edges.demo.corpus import FileKind, default_folder, find, read_files
from loom.edges.demo.score import nearest, transpose
from loom.edges.demo.tfidf import merge
from loom.edges.demo.tokens import count_tokens
from loom.errors import InputError


def fast(folder: str | Path | None) -> tuple[str, list[str], tuple[np.ndarray, np.ndarray]]:
    """Folder, text files and result of the fast path."""
    found = find(folder)
    chunk = read_files(found.folder, found.paths)
    is_text = chunk.kinds == FileKind.TEXT
    matrix = merge([count_tokens(chunk.data, chunk.offsets)], is_text)
    rows = (matrix.indptr, matrix.indices, matrix.data)
    result = nearest(*rows, *transpose(*rows, matrix.columns), 0, int(is_text.sum()))
    return found.folder, [path for path, text in zip(found.paths, is_text, strict=True) if text], result


def write(folder: Path, *contents: bytes) -> list[str]:
    for number, content in enumerate(contents):
        (folder / f"{number:02}.txt").write_bytes(content)
    return [f"{number:02}.txt" for number in range(len(contents))]


CONTENTS = [
    b"",
    b"a 1 %",
    b"alpha beta gamma",
    b"alpha beta gamma",
    b"Alpha\r\nBETA\r\ndelta\r\n",
    "naïve alpha".encode("latin-1"),
    "naïve alpha".encode(),
    "alpha beta".encode("utf-16"),
    b"x" * 8192 + b"\0 alpha delta",
    "\N{KELVIN SIGN}elvin elvin".encode(),
    b"\xff\xfe alpha 9delta",
]


def test_the_fast_path_agrees_on_odd_files(tmp_path: Path) -> None:
    write(tmp_path, *CONTENTS)
    folder, paths, result = fast(tmp_path)
    assert "07.txt" not in paths  # UTF-16
    expected = reference(folder, paths)
    assert compare(result, expected) == []
    np.testing.assert_array_equal(result[0], expected.nearest)


@given(
    st.lists(
        st.lists(st.sampled_from([b"alpha", b"beta", b"gamma", b"7eta", b"a", b"\xff"])).map(b" ".join),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_fast_path_agrees_on_any_files(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    write(folder, *contents)
    found, paths, result = fast(folder)
    expected = reference(found, paths)
    assert compare(result, expected) == []
    np.testing.assert_array_equal(result[0], expected.nearest)


def test_the_fast_path_agrees_on_a_package_of_the_standard_library() -> None:
    folder, paths, result = fast(Path(default_folder(), "email"))
    expected = reference(folder, paths)
    assert len(paths) > 20
    assert compare(result, expected) == []
    assert expected.between(0, int(expected.nearest[0])) == pytest.approx(expected.similarity[0], abs=1e-12)


def test_one_file_and_none(tmp_path: Path) -> None:
    paths = write(tmp_path, b"alpha")
    expected = reference(str(tmp_path), paths)
    assert (expected.nearest.tolist(), expected.similarity.tolist()) == ([-1], [0.0])
    assert reference(str(tmp_path), []).nearest.tolist() == []


def test_what_compare_calls_a_difference(tmp_path: Path) -> None:
    paths = write(tmp_path, b"alpha beta", b"alpha beta", b"alpha beta", b"alpha gamma")
    expected = reference(str(tmp_path), paths)
    right, similarity = expected.nearest, expected.similarity
    assert right.tolist() == [1, 0, 0, 0]
    assert compare((right, similarity), expected) == []
    assert compare((np.array([2, 2, 1, 1]), similarity), expected) == []  # ties
    assert compare((right, similarity + 5e-10), expected) == []
    for wrong in (3, 0, -1, 4):  # less similar, itself, none, out of range
        assert len(compare((np.array([wrong, 0, 0, 0]), similarity), expected)) == 1
    for shift in (2e-9, -2e-9, np.nan):
        assert len(compare((right, similarity + shift), expected)) == 4
    assert len(compare((right[:3], similarity[:3]), expected)) == 1
    (line,) = compare((np.array([1, 0, 0, -1]), similarity), expected)
    assert line.startswith("03.txt: expected 00.txt at 0.")
    assert ", got no other file at 0." in line


def test_files_that_changed_since_cannot_be_checked(tmp_path: Path) -> None:
    (tmp_path / "binary\n").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"cannot check 'binary\\n': it is no text any more"):
        reference(str(tmp_path), ["binary\n"])
    with pytest.raises(InputError, match="cannot check 'gone': No such file or directory"):
        reference(str(tmp_path), ["gone"])
