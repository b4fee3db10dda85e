"""The ring mailbox's protocol in every interleaving, and that the model would see a flaw in it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parent.parent.parent / "native" / "tests" / "model_ring.py"


@pytest.fixture(scope="module")
def model() -> Any:
    spec = importlib.util.spec_from_file_location("model_ring", PATH)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["model_ring"] = found
    spec.loader.exec_module(found)
    return found


def test_nobody_sleeps_while_there_is_work(model: Any) -> None:
    states, trace = model.search()
    assert trace == []
    assert states > 50_000


@pytest.mark.parametrize("flaw", range(1, 6))
def test_a_flaw_is_found(model: Any, flaw: int) -> None:
    _, trace = model.search(flaw)
    assert trace
