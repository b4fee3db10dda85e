"""`python -m bench`: it runs, what it writes has the documented shape, and a mistake is one clear line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

SIZES = ["1KiB", "32KiB", "1MiB", "16MiB", "64MiB", "256MiB", "1GiB"]

ARENA = ["arena-lease", *(f"arena-hand-{size}" for size in SIZES), "arena-fanout", "arena-ray"]

QUESTIONS = ["ask", "pipeline", "tell", "tensor", "spawn", "restart", "memory", "start", *ARENA]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A temporary folder with a short name, as sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="lb-") as name:
        yield Path(name)


def bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def ask(folder: Path) -> dict[str, Any]:
    """One quick run of one question: how it ended, the files it wrote, and what it left in its temporary folder."""
    files = {kind: folder / f"ask.{kind}" for kind in ("json", "md")}
    (folder / "tmp").mkdir()
    run = bench(
        "--quick",
        "--only",
        "ask",
        "--rounds",
        "3",
        "--json",
        files["json"],
        "--markdown",
        files["md"],
        TMPDIR=str(folder / "tmp"),
    )
    assert run.returncode == 0, run.stderr
    return {
        "run": run,
        "json": json.loads(files["json"].read_text()),
        "markdown": files["md"].read_text(),
        "left": list((folder / "tmp").iterdir()),
    }


def is_figures(found: Any, unit: str) -> bool:
    return (
        found["unit"] == unit
        and found["n"] > 0
        and all(math.isfinite(found[key]) and found[key] > 0 for key in ("median", "p99"))
    )


def test_json_has_the_environment(ask: dict[str, Any]) -> None:
    environment = ask["json"]["environment"]
    assert {"date", "python", "cpu", "cores", "kernel", "versions", "gc", "load"} <= environment.keys()
    assert {"numpy", "pyzmq", "msgspec", "uvloop"} <= environment["versions"].keys()
    assert ask["json"]["quick"] is True
    assert ask["json"]["rounds"] == 3


def test_json_has_one_result_for_each_line_of_the_question(ask: dict[str, Any]) -> None:
    assert [result["question"] for result in ask["json"]["results"]] == ["ask", "ask-async"]
    assert ask["json"]["missing"] == []


def test_result_has_figures_of_loom_and_its_rivals(ask: dict[str, Any]) -> None:
    for result in ask["json"]["results"]:
        assert is_figures(result["loom"], "us")
        assert list(result["rivals"]) == ["pyzmq", "Pipe"]
        assert all(is_figures(rival, "us") for rival in result["rivals"].values())
        assert result["loom"]["n"] == sum(one["loom"]["n"] for one in result["rounds"])
        assert result["goal"] == "<= 0.5 x raw pyzmq"
        assert result["better"] == "lower"


def test_ratio_is_the_median_of_one_ratio_a_round(ask: dict[str, Any]) -> None:
    for result in ask["json"]["results"]:
        assert len(result["rounds"]) == 3
        for name, rival in result["rivals"].items():
            ratios = sorted(one["loom"]["median"] / one["rivals"][name]["median"] for one in result["rounds"])
            found = rival["ratio"]
            assert [found["min"], found["median"], found["max"]] == pytest.approx(ratios)
        assert result["ratio"] == result["rivals"]["pyzmq"]["ratio"]


def test_who_goes_first_changes_from_round_to_round(ask: dict[str, Any]) -> None:
    first = [one["order"][0] for one in ask["json"]["results"][0]["rounds"]]
    assert len(set(first)) == 3


def test_table_is_printed_and_written_as_markdown(ask: dict[str, Any]) -> None:
    for text in ("ask round trip", "ask round trip, async handler", "pyzmq", "Pipe", "<= 0.5 x raw pyzmq"):
        assert text in ask["run"].stdout
        assert text in ask["markdown"]
    cells = {line.count("|") for line in ask["markdown"].splitlines() if line.startswith("|")}
    assert cells == {9}


def test_nothing_is_left_in_the_temporary_folder(ask: dict[str, Any]) -> None:
    assert ask["left"] == []


def test_list_names_every_question() -> None:
    run = bench("--list")
    assert run.returncode == 0
    names = [line.split()[0] for line in run.stdout.splitlines()]
    assert names == QUESTIONS


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "aks"], "bench: unknown question 'aks': did you mean 'ask'?"),
        (
            ["--only", "ask", "zzzzzz"],
            f"bench: unknown question 'zzzzzz': there are {', '.join(QUESTIONS)}",
        ),
        (["--json", "/nowhere/f.json"], "bench: /nowhere/f.json: expected a file in a folder that exists"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments: list[str], text: str) -> None:
    run = bench(*arguments)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"{text}\n")


def test_rounds_must_be_a_whole_number_from_1() -> None:
    run = bench("--rounds", "0")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("expected a whole number of rounds from 1, got '0'")


def test_a_question_that_cannot_be_put_is_named_and_the_others_are_put(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from contextlib import contextmanager

    from bench.__main__ import take
    from bench.question import Line, Question, Turn
    from bench.report import to_text

    @contextmanager
    def broken(quick: bool) -> Iterator[dict[str, Turn]]:
        raise OSError("no room")
        yield {}

    @contextmanager
    def whole(quick: bool) -> Iterator[dict[str, Turn]]:
        yield {"Loom": lambda: [2.0] * 99 + [9.0], "peer": lambda: [4.0]}

    line = Line("one", "a thing", "Loom", ("peer",), "s", "<= 1 s")
    document = take([Question("broken", (line,), broken), Question("whole", (line,), whole)], 2, True)
    assert [one.error for one in document.missing] == ["OSError: no room"]
    (result,) = document.results
    assert (result.loom.median, result.loom.p99, result.loom.n) == (2.0, 2.0, 200)
    assert result.ratio.median == 0.5
    assert "Not taken: broken: OSError: no room" in to_text(document)
    assert "broken ... not taken: OSError: no room" in capsys.readouterr().err


def test_arena_lease_in_json(folder: Path) -> None:
    file = folder / "lease.json"
    run = bench("--quick", "--only", "arena-lease", "--json", file, TMPDIR=str(folder))
    assert run.returncode == 0, run.stderr
    document = json.loads(file.read_text())
    assert (document["missing"], document["skipped"]) == ([], [])
    names = [f"arena-{kind}-{size}" for size in ("64KiB", "1MiB") for kind in ("lease", "empty")]
    assert [result["question"] for result in document["results"]] == names
    for result in document["results"]:
        size = result["question"].rpartition("-")[2]
        assert is_figures(result["loom"], "us")
        assert list(result["rivals"]) == [f"SharedMemory {size}"]
        assert is_figures(result["rivals"][f"SharedMemory {size}"], "us")
        assert len(result["rounds"]) == 2


def test_arena_hand_gives_a_line_for_each_way(folder: Path) -> None:
    file = folder / "hand.json"
    run = bench("--quick", "--only", "arena-hand-32KiB", "--json", file, TMPDIR=str(folder))
    assert run.returncode == 0, run.stderr
    rivals = {one["question"]: list(one["rivals"]) for one in json.loads(file.read_text())["results"]}
    assert rivals == {
        "arena-hand-32KiB-shared": ["empty call"],
        "arena-hand-32KiB-copied": ["warm memcpy", "Pipe"],
    }


@pytest.mark.parametrize(
    ("name", "huge", "expected"),
    [
        ("arena", True, ARENA),
        ("arena", False, [name for name in ARENA if not name.endswith("1GiB")]),
        ("arena-hand", False, [f"arena-hand-{size}" for size in SIZES[:-1]]),
        ("arena-hand-1GiB", False, ["arena-hand-1GiB"]),
        ("", True, QUESTIONS),
        ("ask", False, ["ask"]),
        ("as", False, []),
    ],
)
def test_a_group_is_named_by_how_its_questions_begin(
    name: str, huge: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.__main__ import named

    assert [question.name for question in named(name, huge)] == expected


def test_what_this_machine_has_no_room_for_is_skipped_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from contextlib import contextmanager

    from bench import room
    from bench.__main__ import take
    from bench.question import Line, Question, Turn
    from bench.report import to_markdown, to_text

    @contextmanager
    def vast(quick: bool) -> Iterator[dict[str, Turn]]:
        room.need(2**60, 0)
        yield {}

    document = take([Question("vast", (Line("vast", "much", "Loom", ("peer",), "s", ""),), vast)], 2, True)
    assert (document.results, document.missing) == ([], [])
    (skipped,) = document.skipped
    assert skipped.question == "vast"
    assert skipped.error.startswith("/dev/shm has ")
    assert skipped.error.endswith(" MiB free, expected 1,099,511,627,776 MiB or more")
    for text in (to_text(document), to_markdown(document)):
        assert f"Skipped: vast: {skipped.error}" in text
    assert f"vast ... skipped: {skipped.error}" in capsys.readouterr().err


def test_long_turns_have_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from contextlib import contextmanager

    from bench.question import Line, Question, Turn, put

    @contextmanager
    def contest(quick: bool) -> Iterator[dict[str, Turn]]:
        yield {"Loom": lambda: [1.0], "peer": lambda: [1.0]}

    line = Line("one", "a thing", "Loom", ("peer",), "s", "")
    for rounds, played in ((15, 5), (2, 1)):
        (result,) = put(Question("one", (line,), contest, one_round_in=3), rounds, True)
        assert len(result.rounds) == played


@pytest.mark.parametrize(("unit", "p99"), [("s", 100.0), ("k/s", 0.001)])
def test_p99_is_the_worse_end(unit: str, p99: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.figures import figures

    assert figures([float(number) for number in range(1, 51)] + [100.0], unit).p99 == p99
