"""Counting tokens in bytes gives what the definition gives on decoded text."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loom.edges.demo import tokens
from loom.edges.demo.tokens import TokenCounts, count_tokens, join, words

FRAGMENTS = [
    *(bytes([code]) for code in b"aZz_09Kk \n\r.\x00\x7f\x80\xbf\xc0\xc3\xe2\xed\xf0\xf4\xff"),
    *(char.encode() for char in "éİıſ\N{KELVIN SIGN}\ufeff\u2028\u0301\N{FULLWIDTH LATIN SMALL LETTER A}\U00010400"),
    b"\xed\xa0\x80",  # an encoded surrogate
    b"ab",
    b"0x1F",
]


def by_definition(content: bytes) -> dict[str, int]:
    matches = re.findall(r"[A-Za-z_][A-Za-z0-9_]+", content.decode("utf-8", errors="replace"))
    return dict(Counter(match.lower() for match in matches))


def chunk_of(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(b"".join(contents), dtype=np.uint8)
    return data, np.cumsum([0, *map(len, contents)], dtype=np.int64)


def rows_of(counted: TokenCounts) -> list[dict[str, int]]:
    names = [word.decode() for word in words(counted.vocabulary)]
    pairs = [(names[index], int(count)) for index, count in zip(counted.indices, counted.counts, strict=True)]
    spans = zip(counted.indptr[:-1], counted.indptr[1:], strict=True)
    return [dict(pairs[start:stop]) for start, stop in spans]


def count(*contents: bytes) -> list[dict[str, int]]:
    return rows_of(count_tokens(*chunk_of(list(contents))))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {}),
        (b"a b c _ 1 22 9a", {}),
        (b"_a __ a1", {"_a": 1, "__": 1, "a1": 1}),
        (b"Word word WORD\r\nword", {"word": 4}),
        (b"12ab ab 0x1F 0X1f 1_000", {"ab": 2, "x1f": 2, "_000": 1}),
        (b"a.b.cd-ef", {"cd": 1, "ef": 1}),
        ("naïve café".encode("latin-1"), {"na": 1, "ve": 1, "caf": 1}),
        ("naïve café".encode(), {"na": 1, "ve": 1, "caf": 1}),
        ("\N{KELVIN SIGN}elvin İstanbul ſet".encode(), {"elvin": 1, "stanbul": 1, "et": 1}),
        (b"\xef\xbb\xbfbom", {"bom": 1}),
        (b"cut\xe2\x82short", {"cut": 1, "short": 1}),
        (b"nul\x00nul", {"nul": 2}),
    ],
)
def test_tokens_of_one_file(content: bytes, expected: dict[str, int]) -> None:
    assert count(content) == [expected]
    assert by_definition(content) == expected


@given(st.lists(st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(FRAGMENTS)).map(b"".join)), max_size=5))
@example([b"\xe2ab", b"ab\xe2"])
@settings(max_examples=500, deadline=None)
def test_any_bytes_count_as_their_decoded_text_does(contents: list[bytes]) -> None:
    assert count(*contents) == [by_definition(content) for content in contents]


def test_every_pair_and_triple_of_fragments() -> None:
    pairs = [one + two + b"ab" for one in FRAGMENTS for two in FRAGMENTS]
    pairs += [b"ab" + one + two for one in FRAGMENTS for two in FRAGMENTS]
    pairs += [b"a" + bytes([code]) + b"b" for code in range(256)]
    assert count(*pairs) == [by_definition(content) for content in pairs]


@given(st.binary(max_size=300), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_a_long_file_is_counted_piece_by_piece(content: bytes, piece_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_PIECE_BYTES", piece_bytes)
        assert count(content) == [by_definition(content)]


def test_a_file_of_several_pieces() -> None:
    content = b"alpha beta 7gamma " * 200_000
    assert count(content) == [{"alpha": 200_000, "beta": 200_000, "gamma": 200_000}]
    assert count(b"x" * 3_000_000) == [{"x" * 3_000_000: 1}]


def test_the_arrays_are_canonical() -> None:
    counted = count_tokens(*chunk_of([b"zz yy", b"", b"1zz zz aa zz"]))
    assert words(counted.vocabulary) == [b"aa", b"yy", b"zz"]
    assert counted.vocabulary.tobytes() == b"aa\nyy\nzz"
    assert counted.indptr.tolist() == [0, 2, 2, 4]
    assert counted.indices.tolist() == [1, 2, 0, 2]
    assert counted.counts.tolist() == [1, 1, 1, 3]
    dtypes = [array.dtype for array in (counted.vocabulary, counted.indptr, counted.indices, counted.counts)]
    assert dtypes == [np.uint8, np.int64, np.int32, np.int64]


@pytest.mark.parametrize("contents", [[], [b""], [b"", b"a 1"]])
def test_chunks_without_tokens(contents: list[bytes]) -> None:
    counted = count_tokens(*chunk_of(contents))
    assert counted.vocabulary.size == counted.indices.size == counted.counts.size == 0
    assert counted.indptr.tolist() == [0] * (len(contents) + 1)
    assert words(counted.vocabulary) == []
    assert counted.indices.dtype == np.int32


def test_offsets_may_leave_bytes_out_and_arrays_may_be_read_only() -> None:
    data = np.frombuffer(b"xx alpha beta yy", dtype=np.uint8)
    offsets = np.array([3, 8, 13])
    offsets.flags.writeable = False
    assert not data.flags.writeable
    assert rows_of(count_tokens(data, offsets)) == [{"alpha": 1}, {"beta": 1}]


def test_join_is_the_opposite_of_words() -> None:
    for listed in ([], [b"ab"], [b"ab", b"cd", b"e_1"]):
        assert words(join(listed)) == listed
