"""The table of OTP's supervision scenarios, supervisor_suite.md, held against the tests it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).parent


class Row(NamedTuple):
    case: str
    test: str
    why_not: str


ROWS = [
    Row(*(cell.strip().strip("`") for cell in line.strip("|\n").split("|")))
    for line in (FOLDER / "supervisor_suite.md").read_text().splitlines()
    if line.startswith("| `")
]


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_there_are_enough_of_them() -> None:
    cases = [row.case for row in ROWS]
    assert len(set(cases)) == len(cases)
    assert all(re.fullmatch(r"[a-z0-9_]+", case) for case in cases)
    assert sum(bool(row.test) for row in ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=[row.case for row in ROWS])
def test_each_is_a_test_or_has_a_reason(row: Row) -> None:
    assert bool(row.test) != bool(row.why_not)
    if row.test:
        file, _, name = row.test.partition("::")
        assert name in names_in(FOLDER / file)
