"""Room: whether the machine has what a question needs; without it the question is skipped, and says so."""

from __future__ import annotations

import os

from bench.question import Skipped

MIB = 2**20
SHARED_MEMORY = "/dev/shm"


def need(shared_bytes: int, memory_bytes: int) -> None:
    """Free space in /dev/shm, and memory that is available, shared memory included. Raises: Skipped."""
    system = os.statvfs(SHARED_MEMORY)
    for where, free, needed in (
        (SHARED_MEMORY, system.f_bavail * system.f_frsize, shared_bytes),
        ("memory", available_bytes(), memory_bytes),
    ):
        if free < needed:
            raise Skipped(f"{where} has {free // MIB:,} MiB free, expected {needed // MIB:,} MiB or more")


def available_bytes() -> int:
    """MemAvailable. Raises: RuntimeError when the kernel does not tell."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable: expected Linux 3.14 or later")
