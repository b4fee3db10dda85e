"""`loom-node demo` on real files: the right answer, also when daemons are killed meanwhile, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loom
from loom.cli.demo import as_json, as_text
from loom.edges.demo import job, pool
from loom.edges.demo.corpus import default_folder
from loom.errors import ActorDied, InputError, RemoteError, UsageError

TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
KINDS = ("reader", "tokenizer", "scorer")


def demo(*options: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell would."""
    return subprocess.run(
        [sys.executable, "-m", "loom.cli.main", "demo", *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred real files in folders."""
    top = tmp_path_factory.mktemp("demo")
    for name in ("json", "email", "asyncio"):
        shutil.copytree(Path(default_folder()) / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    (top / "email" / "latin.txt").write_bytes("Grüße aus Köln, import asyncio".encode("latin-1"))
    return top


@pytest.fixture(scope="module")
def plain(folder: Path) -> job.Result:
    """The answer that nobody was killed over."""
    return job.run(folder, workers=2)


# --- the answer --------------------------------------------------------------------------------------------------


def test_the_answer_is_scikit_learns(folder: Path, plain: job.Result) -> None:
    # Imported here, since the process of an actor that is defined in this module imports all of it.
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    vectorizer = TfidfVectorizer(
        tokenizer=lambda text: [token.lower() for token in TOKEN.findall(text)], lowercase=False, token_pattern=None
    )
    rows = vectorizer.fit_transform([(folder / path).read_text("utf-8", "replace") for path in paths])
    scores = (rows @ rows.T).toarray()
    np.fill_diagonal(scores, -1)
    assert [pair.path for pair in plain.pairs] == paths
    assert len(paths) > 50
    for number, pair in enumerate(plain.pairs):
        best = np.flatnonzero(scores[number] >= scores[number].max() - 1e-12)
        assert pair.nearest in [paths[other] for other in best]
        assert pair.similarity == pytest.approx(scores[number].max(), abs=1e-9)


@pytest.mark.parametrize(("workers", "kill"), [(1, False), (1, True), (2, True), (5, True)])
def test_the_same_answer_with_any_workers_and_kills(folder: Path, plain: job.Result, workers: int, kill: bool) -> None:
    result = job.run(folder, workers=workers, kill=kill)
    assert result.pairs == plain.pairs  # to the last bit
    assert result.workers == workers
    assert result.left_out == ()
    assert len(result.restarts) == result.kills
    assert (result.kills > 0) == kill
    assert all(restart.took_s > 0 and "SIGKILL" in restart.cause for restart in result.restarts)


def test_every_file_is_somebodys_work(plain: job.Result) -> None:
    for kind in KINDS:
        shares = [share for share in plain.shares if share.name.partition(".")[0] == kind]
        assert sum(share.files for share in shares) == len(plain.pairs)
        assert all(share.messages > 0 and share.busy_s > 0 for share in shares if share.files)
        assert all(share.restarts == 0 for share in shares)
    assert plain.cpu_seconds > sum(share.busy_s for share in plain.shares)
    assert plain.bytes_shared > plain.text_bytes > 0


def test_of_two_that_are_equal_the_first_path_counts(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / name).write_text("the same words in each")
    (tmp_path / "other").write_text("unlike all")
    (tmp_path / "none").write_text("1 2 3")
    pairs = {pair.path: (pair.nearest, round(pair.similarity, 12)) for pair in job.run(tmp_path, workers=1).pairs}
    assert pairs == {"a": ("b", 1), "b": ("a", 1), "c": ("a", 1), "none": ("a", 0), "other": ("a", 0)}


def test_one_file_alone_has_no_other(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("all alone")
    (tmp_path / "image").write_bytes(b"\x89PNG\0\0")
    result = job.run(tmp_path, workers=1)
    assert result.pairs == (job.Pair("one.txt", None, 0.0),)
    assert as_json(result)["pairs"] == [{"path": "one.txt", "nearest": None, "similarity": 0.0}]
    assert "none: no two of them have a word in common" in "\n".join(as_text(result))


def test_the_standard_library_checked_while_daemons_are_killed() -> None:
    done = demo("--kill", "--check", "--json", "--pattern", "*.py", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["check"] == {"ok": True, "differences": []}
    assert told["files"] == len(told["pairs"]) > 1000
    assert told["restarts"] == told["kills"] >= len(KINDS)
    assert {one["actor"].partition(".")[0] for one in told["restarted"]} == set(KINDS)


# --- what it tells -----------------------------------------------------------------------------------------------


def test_json_is_one_object(folder: Path, plain: job.Result) -> None:
    done = demo(folder, "--json", "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["folder"] == str(folder)
    assert (told["files"], told["workers"], told["kills"], told["restarts"]) == (len(plain.pairs), 1, 0, 0)
    assert [tuple(pair.values()) for pair in told["pairs"]] == [
        (pair.path, pair.nearest, pair.similarity) for pair in plain.pairs
    ]
    assert [pair["path"] for pair in told["pairs"]] == sorted(pair["path"] for pair in told["pairs"])
    assert [actor["name"] for actor in told["actors"]] == list(KINDS)
    assert told["cores_used"] == pytest.approx(told["cpu_seconds"] / told["seconds"])
    assert told["bytes_shared"] > 0
    assert told["left_out"] == told["restarted"] == []
    assert "check" not in told


def test_text_shows_pairs_shares_and_the_check(folder: Path) -> None:
    done = demo(folder, "--check", "--kill", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f"text files below {folder}:")
    assert 2 <= sum(line.startswith(("  0.", "  1.")) for line in lines) <= 10
    for name in ("reader", "tokenizer.0", "tokenizer.1", "scorer.0", "scorer.1"):
        assert any(line.startswith(f"{name} ") for line in lines)
    assert "files/s" in done.stdout
    assert "shared" in done.stdout
    assert "daemons killed" in done.stdout
    assert lines[-1] == "check: 0 differences from the answer of one plain process"


def test_a_wrong_answer_does_not_pass_the_check(
    folder: Path, plain: job.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = job.checking.reference

    def other(*args: Any) -> Any:
        right = reference(*args)
        right.similarity[3] += 2e-9
        return right

    monkeypatch.setattr(job.checking, "reference", other)
    result = job.run(folder, workers=1, check=True)
    assert result.differences is not None
    assert len(result.differences) == 1
    assert result.differences[0].startswith(plain.pairs[3].path)
    assert as_json(result)["check"] == {"ok": False, "differences": list(result.differences)}
    monkeypatch.setattr(job, "run", lambda *args, **options: result)
    assert loom_node("demo", folder) == 1


def loom_node(*words: str | Path) -> int:
    from loom.cli.main import main

    return main([str(word) for word in words])


def test_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    names = (b"caf\xe9.txt", b"two\nlines.txt", "größe.txt".encode())
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("some words of the same kind")
    told = json.loads(demo(tmp_path, "--json").stdout)
    assert sorted(os.fsencode(pair["path"]) for pair in told["pairs"]) == sorted(names)
    done = demo(tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\xe9.txt" in done.stdout
    assert "two\\nlines.txt" in done.stdout


def test_help_has_an_example_and_the_exit_codes() -> None:
    done = demo("--help")
    assert done.returncode == 0
    assert "loom-node demo ~/src --pattern '*.py' --kill" in done.stdout
    assert "3    finished, but files were left out" in done.stdout


def test_progress_hears_of_both_stages(folder: Path, plain: job.Result) -> None:
    heard: list[tuple[str, int, int]] = []
    job.run(folder, workers=2, progress=lambda *news: heard.append(news))
    n = len(plain.pairs)
    for stage in (job.READ, job.COMPARE):
        counts = [done for its_stage, done, total in heard if its_stage == stage and total == n]
        assert counts[0] == 0
        assert counts[-1] == n
        assert counts == sorted(counts)


# --- what is wrong with the input --------------------------------------------------------------------------------


def test_wrong_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a").write_bytes(b"\0")
    for name, what in {
        "absent": "no folder",
        "file": "is not a folder",
        "empty": "there are no files at all",
        "binary": "binary or unreadable",
    }.items():
        done = demo(tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("loom-node: L1009 ")
        assert what in done.stderr
        assert done.stderr.count("\n") == 1
    done = demo(tmp_path, "--pattern", "*.nothing")
    assert done.returncode == 2
    assert "L1009 no text file named '*.nothing'" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        done = demo(tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert "L1009 cannot list the folder" in done.stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--workers", "0"), "--workers: expected a whole number from 1, got '0'"),
        (("--workers", "many"), "--workers: expected a whole number from 1, got 'many'"),
        (("--max-file", "3x"), "--max-file: expected a size such as '64MiB'"),
        (("--pattern", "src/*.py"), "patterns match file names"),
    ],
)
def test_wrong_options_are_one_line(options: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loom_node("demo", "/usr", *options) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert what in error
    assert error.startswith("loom-node: L1")
    assert error.count("\n") == 1


def test_no_workers_is_a_wrong_number_of_workers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 1, got 0"):
        job.run(tmp_path, workers=0)


# --- files that had to be left out -------------------------------------------------------------------------------


def test_files_left_out_are_named_and_make_exit_code_3(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"a few words, of which {number} differ")
    for number in range(12):
        (tmp_path / f"large{number:02}").write_text("word " * 100)
    done = demo(tmp_path, "--max-file", "100", "--json")
    assert done.returncode == 3
    assert [pair["path"] for pair in json.loads(done.stdout)["pairs"]] == ["0.txt", "1.txt", "2.txt"]
    lines = done.stderr.splitlines()
    assert lines[0] == "loom-node: left out 'large00': 500 bytes, the limit is 100"
    assert len(lines) == 11
    assert lines[-1] == "loom-node: ... and 2 more"
    assert [one["path"] for one in json.loads(done.stdout)["left_out"]] == [f"large{n:02}" for n in range(12)]


def test_files_that_vanish_or_change_before_they_are_read(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"words that are much the same, {number}")

    def spoil(stage: str, done: int, total: int) -> None:
        if stage == job.READ and done == 0:
            (tmp_path / "1.txt").unlink()
            (tmp_path / "2.txt").write_bytes(b"\0")

    result = job.run(tmp_path, workers=1, progress=spoil)
    assert [pair.path for pair in result.pairs] == ["0.txt", "3.txt"]
    assert result.left_out == (("1.txt", "No such file or directory"),)


def test_when_all_vanish_there_is_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("here for now")

    def spoil(stage: str, done: int, total: int) -> None:
        (tmp_path / "a.txt").unlink(missing_ok=True)

    with pytest.raises(InputError, match=r"no text file left below .*'a\.txt': No such file"):
        job.run(tmp_path, workers=1, progress=spoil)


# --- what goes wrong on the way ----------------------------------------------------------------------------------


def test_an_arena_that_is_too_small_is_one_line(folder: Path) -> None:
    done = demo(folder, "--arena", "256KiB")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("loom-node: L")
    assert "ArenaFull" in done.stderr or "L3003" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_it_and_leaves_nothing() -> None:
    for delay_s in (0.2, 0.9):
        running = subprocess.Popen(
            [sys.executable, "-m", "loom.cli.main", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay_s)
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=60)
        if delay_s > 0.5:  # before, Python itself may still have been starting
            assert (running.returncode, out, error) == (130, "", "")


class Victim(loom.Actor):
    """Dies of some messages."""

    def work(self, how: str) -> tuple[str, float]:
        if how == "exit":
            os._exit(3)
        if how == "raise":
            raise ValueError("not like this")
        return how, 0.1


def test_a_chunk_that_kills_whoever_works_on_it_is_given_up(node: loom.Node) -> None:
    node.spawn(Victim, name="victim")
    victims = pool.Pool(node, ["victim"])

    async def work() -> None:
        assert await victims.chunk("work", "well", files=7) == "well"
        with pytest.raises(ActorDied, match="exit code 3"):
            await victims.chunk("work", "exit", files=1)
        with pytest.raises(RemoteError, match="not like this"):
            await victims.chunk("work", "raise", files=1)
        assert await victims.ask("work", "well again") == "well again"

    asyncio.run(work())
    assert (victims.daemons[0].files, victims.daemons[0].under_way, victims.kills) == (7, 0, 0)
    assert node.stats().actors[0].incarnation == 1 + pool.ACCIDENTS + 1


# --- cutting the work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 64])
@pytest.mark.parametrize("sizes", [[0], [0] * 5000, [10**8, 1, 1, 10**8], [1000] * 3000, [0, 10**6] * 500])
def test_cuts_cover_every_file_once(sizes: list[int], workers: int) -> None:
    cuts = job._cut(sizes, workers)
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
    assert cuts[-1][1] == len(sizes)
    for start, stop in cuts:
        assert 0 < stop - start <= job._CHUNK_FILES
        assert stop - start == 1 or sum(sizes[start:stop]) <= job._CHUNK_BYTES


@pytest.mark.parametrize("wanted", [1, 2, 8, 1000])
@pytest.mark.parametrize("costs", [[3], [3] * 100, [10**9, 3, 3], [3, 3, 10**9], list(range(3, 500))])
def test_blocks_cover_every_row_once(costs: list[int], wanted: int) -> None:
    blocks = job._blocks(np.array(costs), wanted)
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == len(costs)
    assert all(start < stop for start, stop in blocks)
    assert len(blocks) <= wanted
    fair = sum(costs) / wanted + max(costs)
    assert all(sum(costs[start:stop]) <= fair for start, stop in blocks)
