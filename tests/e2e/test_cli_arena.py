"""`loom-node arena` and `loom-node doctor`, as commands."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import loom

MIB = 1 << 20
GENEROUS_S = 60.0


class Keeper(loom.Actor):
    """Keeps arrays: its own, and those it is sent."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def make(self, size_bytes: int) -> Any:
        self.kept.append(loom.arena.share(np.ones(size_bytes, np.uint8)))
        return self.kept[-1]

    def keep(self, array: Any) -> int:
        self.kept.append(array)
        return int(array.sum())

    def drop(self) -> None:
        self.kept.clear()


@pytest.fixture
def node() -> Iterator[loom.Node]:
    with loom.Node(arena="64MiB") as node:
        yield node


def loom_node(*words: str, code: int = 0, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "loom.cli.main", *words],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GENEROUS_S,
    )
    assert (done.returncode, done.stderr) == (code, ""), done
    return done.stdout


def test_arena_of_a_node_without_arrays(node: loom.Node) -> None:
    text = loom_node("arena", "--node", node.endpoint)
    assert "0.0 MiB of 64.0 MiB reserved in 0 segments" in text
    found = json.loads(loom_node("arena", "--node", node.endpoint, "--json"))
    assert found["segments"] == []
    assert found["stats"]["in_use_bytes"] == found["warm_bytes"] == 0
    assert found["holdings"][0]["name"] == "node"


def test_arena_names_owners_and_holders(node: loom.Node) -> None:
    maker, reader = node.spawn(Keeper, name="maker"), node.spawn(Keeper, name="reader")
    array = maker.make(MIB).result(timeout_s=GENEROUS_S)
    assert reader.keep(array).result(timeout_s=GENEROUS_S) == MIB
    found = json.loads(loom_node("arena", "--node", node.endpoint, "--json"))
    assert set(found) == {
        "name",
        "policy",
        "stats",
        "warm_bytes",
        "segments",
        "holdings",
        "oldest",
        "largest",
    }
    assert found["policy"] == {"full": "wait", "wait_s": 1.0, "spill": ""}
    (oldest,) = found["oldest"]
    assert found["largest"] == [oldest]
    assert (oldest["size_bytes"], len(oldest["holders"])) == (MIB, 3)
    assert 0 < oldest["age_s"] == segment_of(found)["oldest_s"]
    assert found["name"].startswith(f"loom-{os.getuid()}-")
    by_name = {one["name"]: one for one in found["holdings"] if one["name"]}
    pids = {actor.name: actor.pid for actor in node.stats().actors}
    assert {name: by_name[name]["pid"] for name in pids} == pids
    (segment,) = found["segments"]
    assert segment["owner"] == by_name["maker"]["participant"]
    assert (segment["state"], segment["blocks"], segment["in_use_bytes"]) == ("live", 1, MIB)
    assert by_name["maker"]["segments"] == by_name["maker"]["blocks"] == 1
    assert by_name["maker"]["reserved_bytes"] == segment["size_bytes"] == found["stats"]["reserved_bytes"]
    assert found["warm_bytes"] == segment["size_bytes"] - MIB
    assert (by_name["reader"]["segments"], by_name["reader"]["leases"]) == (0, 1)
    assert by_name["reader"]["leased_bytes"] == MIB
    assert by_name["reader"]["oldest_lease_s"] == by_name["maker"]["oldest_s"] == oldest["age_s"]
    assert by_name["reader"]["oldest_s"] == 0
    (ours,) = (one for one in found["holdings"] if one["pid"] == os.getpid())
    assert (ours["name"], ours["leases"], ours["alive"]) == ("", 1, True)
    assert found["stats"]["in_flight"] == sum(one["in_flight"] for one in found["holdings"]) == 0
    assert found["stats"]["bytes_shared"] >= 2 * MIB

    text = loom_node("arena", "--node", node.endpoint)
    lines = text.splitlines()
    assert "1.0 MiB in use in 1 block" in lines[0]
    assert any(line.startswith("maker ") and "1.0 MiB" in line for line in lines)
    assert any(line.startswith("reader ") for line in lines)
    assert "when full: wait, at most 1 s, or until a message's deadline" in text
    (row,) = (line for line in lines if line.split()[1:3] == ["live", "maker"])
    assert row.split()[:6] == ["0", "live", "maker", "memory", f"{segment['size_bytes'] / MIB:.1f}", "MiB"]
    assert "oldest 1 block" in lines
    assert lines[-1].split()[:4] == [f"0.{oldest['index']}", "maker", "1.0", "MiB"]
    assert all(holder in lines[-1] for holder in ("maker", "reader", f"pid {os.getpid()}"))
    assert "MiB free" in text
    assert str(os.getpid()) in text

    report = node.arena()
    assert {one.label for one in report.holdings} >= {"node", "maker", "reader", f"pid {os.getpid()}"}
    assert report.label(segment["owner"]) == "maker"
    del array
    gc.collect()


def segment_of(found: dict[str, Any]) -> dict[str, Any]:
    (segment,) = found["segments"]
    return cast("dict[str, Any]", segment)


def test_arena_of_a_dead_owner(node: loom.Node) -> None:
    """Its segment stays with the node for as long as somebody reads in it."""
    maker = node.spawn(Keeper, name="maker")
    array = maker.make(MIB).result(timeout_s=GENEROUS_S)
    node.stop("maker")
    report = node.arena()
    assert [(one.state, one.blocks, report.label(one.owner)) for one in report.segments] == [("orphaned", 1, "node")]
    assert "1 segment of dead owners" in loom_node("arena", "--node", node.endpoint)
    assert array.sum() == MIB
    del array
    gc.collect()


def test_arena_counts_what_a_killed_actor_held(node: loom.Node, until: Any) -> None:
    maker = node.spawn(Keeper, name="maker")
    array = maker.make(MIB).result(timeout_s=GENEROUS_S)
    before = node.stats().arena
    assert (before.reclaimed_blocks, before.reclaimed_segments) == (0, 0)
    assert "reclaimed" not in loom_node("arena", "--node", node.endpoint)
    del array
    gc.collect()
    os.kill(node.stats().actors[0].pid, signal.SIGKILL)
    stats = until(lambda: (now := node.stats().arena).reclaimed_segments and now)
    assert (stats.reclaimed_blocks, stats.reclaimed_bytes) == (1, MIB)
    text = loom_node("arena", "--node", node.endpoint)
    assert "reclaimed from processes that died or left: 1.0 MiB in 1 block, " in text
    assert "1 segment\n" in text


def test_arena_without_a_node_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "loom.cli.main", "arena", "--node", "nobody"],
        capture_output=True,
        text=True,
        timeout=GENEROUS_S,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("loom-node: L1007 ")
    assert done.stderr.count("\n") == 1


def test_doctor_checks_this_machine_on_which_nodes_run() -> None:
    text = loom_node("doctor")
    assert text.startswith("STATUS")
    assert text.splitlines()[-1].startswith("0 problems, ")
    found = json.loads(loom_node("doctor", "--json"))
    assert found["ok"] is True
    assert {one["name"] for one in found["checks"]} >= {"/dev/shm", "RemoveIPC", "open files", "kernel", "native core"}
    for one in found["checks"]:
        assert set(one) == {"name", "status", "found", "remedy"}
        assert one["status"] in ("ok", "warning")
        assert bool(one["remedy"]) == (one["status"] != "ok")


def test_doctor_fails_when_no_node_could_start(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    found = json.loads(loom_node("doctor", "--json", code=1, XDG_RUNTIME_DIR=str(long)))
    assert found["ok"] is False
    assert [one["name"] for one in found["checks"] if one["status"] == "problem"] == ["runtime folder"]


def test_doctor_looks_at_the_spill_folder_of_a_config(tmp_path: Path) -> None:
    config = tmp_path / "index.toml"
    config.write_text("[node]\narena = '1MiB'\narena_full = 'spill'\narena_spill = 'big'")
    checks = {one["name"]: one for one in json.loads(loom_node("doctor", str(config), "--json"))["checks"]}
    assert checks["spill folder"]["status"] == "warning"
    assert checks["spill folder"]["found"] == f"{tmp_path}/big: No such file or directory"
    (tmp_path / "big").mkdir()
    checks = {one["name"]: one for one in json.loads(loom_node("doctor", str(config), "--json"))["checks"]}
    assert checks["spill folder"]["found"].startswith(f"{tmp_path}/big: ")
    assert "MiB free" in checks["spill folder"]["found"]


def test_up_and_check_want_the_spill_folder(tmp_path: Path) -> None:
    config = tmp_path / "index.toml"
    config.write_text("[node]\narena = '1MiB'\narena_full = 'spill'\narena_spill = 'big'")
    for command in ("check", "up"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "loom.cli.main", command, str(config)],
            capture_output=True,
            text=True,
            timeout=GENEROUS_S,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"loom-node: L1001 {config}: $.node.arena_spill: expected a folder that can be written to, "
            f"got '{tmp_path}/big', which is not there: create it, or mend the path\n"
        )
    (tmp_path / "big").mkdir()
    assert loom_node("check", str(config)).splitlines()[0].endswith(f"arena 1 MiB, then spill to {tmp_path}/big")


def test_a_node_from_a_config_spills(tmp_path: Path) -> None:
    config = tmp_path / "index.toml"
    (tmp_path / "big").mkdir()
    config.write_text("[node]\nname = 'spiller'\narena = '1MiB'\narena_full = 'spill'\narena_spill = 'big'")
    up = subprocess.Popen(
        [sys.executable, "-P", "-m", "loom.cli.main", "up", str(config), "--json"], stdout=subprocess.PIPE, text=True
    )
    assert up.stdout is not None
    assert "ready" in json.loads(up.stdout.readline())
    with loom.connect("spiller") as client:
        array = loom.arena.share(np.ones(3 * MIB, np.uint8))
        found = json.loads(loom_node("arena", "--node", "spiller", "--json"))
        assert (found["policy"]["full"], found["policy"]["wait_s"]) == ("spill", 1.0)
        assert Path(found["policy"]["spill"]).parent == tmp_path / "big"
        assert (found["stats"]["spilled_bytes"], found["warm_bytes"]) == (3 * MIB, 0)
        (segment,) = found["segments"]
        assert segment["spilled"] is True
        assert client.arena().holdings[1].spill_reserved_bytes == segment["size_bytes"]
        del array
        gc.collect()
    loom_node("stop", "--node", "spiller")
    assert up.wait(GENEROUS_S) == 0
    up.stdout.close()
    assert list((tmp_path / "big").iterdir()) == []
