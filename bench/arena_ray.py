"""Arena, Ray: 64 MiB of float64 into shared memory, and to an actor, beside Ray's object store.

`arena-ray-put`: `loom.arena.share(array)`, the copy dropped afterwards, beside `ray.put(array)`, its reference dropped.
`arena-ray-get`: a call whose argument is in shared memory already, of which the handler touches one element, beside the
same call of a Ray actor with the reference of `ray.put`, and beside `ray.get` of that reference in the driver, which
asks no other process but the store. Ray is started on two cores without its dashboard. A turn is 5 puts and 20 calls,
after 1 and 5 that are not counted. Skipped when Ray is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import loom
from bench import room
from bench.actors import Subject, home
from bench.question import Line, Question, Skipped, Turn, expect, times

MIB = 2**20
SIZE_BYTES = 64 * MIB


@contextmanager
def contest(quick: bool) -> Iterator[dict[str, Turn]]:
    """Everyone set up."""
    if find_spec("ray") is None:
        raise Skipped("Ray is not installed (`pip install ray`)")
    room.need(16 * SIZE_BYTES, 48 * SIZE_BYTES)
    puts, gets = (2, 5) if quick else (5, 20)
    source = np.ones(SIZE_BYTES // 8)
    with store() as ray, home("512MiB") as node:
        subject = node.spawn(Subject)
        shared = loom.arena.share(source)
        actor = ray.remote(num_cpus=1)(First).remote()
        reference = ray.put(source)

        def loom_put() -> None:
            loom.arena.share(source)

        def ray_put() -> None:
            ray.put(source)

        def loom_get() -> None:
            expect("the first element", subject.first(shared).result(), 1.0)

        def ray_call() -> None:
            expect("the first element", ray.get(actor.first.remote(reference)), 1.0)

        def ray_get() -> None:
            expect("the first element", float(ray.get(reference)[0]), 1.0)

        yield {
            "Loom, share": lambda: times(loom_put, puts, 1),
            "ray.put": lambda: times(ray_put, puts, 1),
            "Loom, call": lambda: times(loom_get, gets, 5),
            "Ray, call": lambda: times(ray_call, gets, 5),
            "ray.get": lambda: times(ray_get, gets, 5),
        }


class First:
    """Ray's actor."""

    def first(self, array: Any) -> float:
        """Touch one element of a tensor."""
        return float(array[0])


@contextmanager
def store() -> Iterator[Any]:
    """Ray, started for this question alone."""
    ray = import_module("ray")
    ray.init(
        num_cpus=2,
        object_store_memory=8 * SIZE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield ray
    finally:
        ray.shutdown()


QUESTION = Question(
    "arena-ray",
    (
        Line("arena-ray-put", "arena: put 64 MiB", "Loom, share", ("ray.put",), "ms", ""),
        Line("arena-ray-get", "arena: 64 MiB to an actor", "Loom, call", ("Ray, call", "ray.get"), "us", ""),
    ),
    contest,
)
