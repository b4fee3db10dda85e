"""Many actors: 100 start and stop in order, 500 run. Times are printed (pytest -s), and never judged."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

import loom
from tests.soak.troupe import Noted, Player


def test_100_actors_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    file = tmp_path / "order"
    spec = loom.SupervisorSpec(children=(loom.ChildSpec(Noted, (str(file),), name="it", instances=100),))
    began = time.monotonic()
    node = loom.Node(supervisor=spec)
    started = time.monotonic()
    node.close()
    stopped = time.monotonic()
    print(f"\n100 actors: node and actors started in {started - began:.2f} s, stopped in {stopped - started:.2f} s")
    lines = file.read_text().splitlines()
    assert lines == [f"start it.{n}" for n in range(100)] + [f"stop it.{n}" for n in reversed(range(100))]


def memory_available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def test_500_actors_run() -> None:
    if os.environ.get("LOOM_TEST_MANY") != "1":
        pytest.skip("takes long: set LOOM_TEST_MANY=1")
    if memory_available_bytes() < 6 << 30:
        pytest.skip("needs some 4 GB of memory")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two descriptors for each actor that this process calls
    try:
        spec = loom.SupervisorSpec(children=(loom.ChildSpec(Player, name="it", instances=500),))
        began = time.monotonic()
        with loom.Node(supervisor=spec) as node:
            started = time.monotonic()
            actors = [node.lookup(f"it.{n}") for n in range(500)]
            for _ in range(3):
                replies = [actor.echo(number) for number, actor in enumerate(actors)]
                assert [reply.result(timeout_s=120) for reply in replies] == list(range(500))
            asked = time.monotonic()
            stats = node.stats()
            assert sum(one.state == "running" for one in stats.actors) == 500
            pss = sum(one.pss_bytes for one in stats.actors)
            ending = time.monotonic()
        stopped = time.monotonic()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(
        f"\n500 actors: started in {started - began:.2f} s, 1500 asks in {asked - started:.2f} s, "
        f"{pss / 500 / 2**20:.1f} MiB (PSS) each, stopped in {stopped - ending:.2f} s"
    )
