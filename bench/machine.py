"""On what machine, with which versions, and how busy it was."""

from __future__ import annotations

import gc
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import zmq

PACKAGES = ("loom-runtime", "numpy", "pyzmq", "msgspec", "uvloop")


def describe() -> dict[str, Any]:
    """What a figure has to be read with. `cores` are those this process may use; `load` is the 1-minute average."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": {name: _version(name) for name in PACKAGES} | {"libzmq": zmq.zmq_version()},
        "gc": gc.isenabled(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
