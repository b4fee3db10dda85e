"""What the node makes of memory readings and of deaths, and of control groups; no processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from loom.actor.address import Address
from loom.actor.child import Order
from loom.actor.limits import Limits
from loom.supervise import cgroup, limits
from loom.supervise.limits import Limiter, Meter
from loom.supervise.process import Death

KILLED = Death("abnormal", "killed by SIGKILL", signal=signal.SIGKILL, how="signal")


def order(**fields: Any) -> Order:
    cgroup = fields.pop("cgroup", "")
    node = Address("node", "ipc:///tmp/node", 1, 1, 1)
    return Order("a", 1, "ipc:///x/7.9", 7, node, "arena", "c0", b"", limits=Limits(**fields), cgroup=cgroup)


def test_meter() -> None:
    meter = Meter(Limits(memory_bytes=200, memory_soft_bytes=100))
    readings = [50, 100, 101, 150, 96, 200, 94, 101, 201, 201]
    assert [meter.crossed(used) for used in readings] == ["", "", "soft", "", "", "", "", "soft", "hard", "hard"]
    assert Meter(Limits(memory_soft_bytes=100)).crossed(10**12) == "soft"
    assert Meter(Limits(memory_bytes=100)).crossed(100) == ""


@pytest.mark.parametrize(
    ("death", "fields", "cpu_s", "how"),
    [
        (KILLED, {"cpu_s": 2}, 2.0, "cpu_limit"),
        (KILLED, {"cpu_s": 2}, 1.9, "signal"),
        (Death("abnormal", "", signal=signal.SIGXCPU, how="signal"), {"cpu_s": 2}, 1.99, "cpu_limit"),
        (Death("abnormal", "", signal=signal.SIGXCPU, how="signal"), {}, 5.0, "signal"),
        (Death("abnormal", "", signal=signal.SIGSEGV, how="signal"), {"cpu_s": 2}, 5.0, "signal"),
        (Death("shutdown", "", signal=signal.SIGKILL, how="signal"), {"cpu_s": 2}, 5.0, "signal"),
        (Death("abnormal", "", exit_code=3, how="exit"), {"cpu_s": 2}, 5.0, "exit"),
        (Death("abnormal", "", signal=signal.SIGKILL, how="hang"), {"cpu_s": 2}, 5.0, "hang"),
    ],
)
def test_deaths_that_the_cpu_limit_explains(death: Death, fields: Any, cpu_s: float, how: str) -> None:
    assert Limiter("c0", lambda: ()).explain(order(**fields), death, cpu_s).how == how


def test_deaths_that_want_of_memory_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = [5, 5, 6, 6]
    monkeypatch.setattr(limits, "oom_kills", lambda: kills.pop(0))
    limiter = Limiter("c0", lambda: ())
    assert [limiter.explain(order(), KILLED, 0.0).how for _ in range(3)] == ["signal", "oom", "signal"]
    inside = order(memory_bytes=2**25, cgroup=str(tmp_path))
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 1\n")
    found = limiter.explain(inside, KILLED, 0.0)
    assert found.how == "memory_limit"
    assert found.text == "memory limit: killed by the kernel (limits.memory_bytes = 33554432, 32 MiB)"


def test_readings_of_a_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("4096\n")
    assert (cgroup.memory_bytes(tmp_path), cgroup.oom_kills(tmp_path)) == (4096, 0)
    assert (cgroup.memory_bytes(tmp_path / "gone"), cgroup.oom_kills(tmp_path / "gone")) == (0, 0)


def test_where_this_process_is() -> None:
    own = cgroup.own()
    if isinstance(own, Path):
        assert os.getpid() in cgroup.processes_in(own)
    else:
        assert own
