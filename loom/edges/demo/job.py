"""The job: from a folder to the most similar other file of each of its text files.

    readers  --bytes of a chunk-->  tokenizers  --counts-->  this process: one matrix  -->  scorers

All arrows are references to arrays in the arena. Reading, counting and the compiling of the kernels overlap; this
process only passes references on, merges the counts, and puts the answers in order. However the files are cut into
chunks and whoever dies on the way, the answer is the same to the last bit: `tfidf.merge` and `score.nearest` promise
that.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loom import BackoffSpec, ChildSpec, Node, SupervisorSpec, arena
from loom.clock import monotonic
from loom.edges.demo import check as checking
from loom.edges.demo.actors import Rows
from loom.edges.demo.corpus import MAX_FILE_BYTES, Corpus, FileChunk, FileKind, find, printable
from loom.edges.demo.pool import Pool
from loom.edges.demo.tfidf import Matrix, merge
from loom.edges.demo.tokens import TokenCounts
from loom.errors import ArenaFull, InputError, LoomError, UsageError
from loom.node.stats import NodeStats
from loom.supervise.child import Restarted

MOST_WORKERS: Final = 256
"""A node has room for 1,023 processes; a worker is up to three of them."""

READ, COMPARE = "reading", "comparing"
"""The two stages that `progress` hears of."""

_MIB: Final = 1024 * 1024
_CHUNK_BYTES: Final = 8 * _MIB
_LEAST_CHUNK_BYTES: Final = 256 * 1024
_CHUNK_FILES: Final = 2000
_BLOCK_FILES: Final = 1000
_FEW_BYTES: Final = 8 * _MIB
"""Files of so few bytes are compared by one scorer, in less time than another takes to load its kernels."""
_LEAST_ARENA_BYTES: Final = 256 * _MIB
_LEAST_ROOM_BYTES: Final = 32 * _MIB
_SETTLE_S: Final = 5.0


class Pair(msgspec.Struct, frozen=True):
    """A file, the most similar other file (None when there is no other), and how similar they are, 0 to 1."""

    path: str
    nearest: str | None
    similarity: float


class Share(msgspec.Struct, frozen=True):
    """One daemon's part in the work: messages it got, files it dealt with, seconds of CPU, times it was restarted."""

    name: str
    messages: int
    files: int
    busy_s: float
    restarts: int


class Result(msgspec.Struct, frozen=True):
    """The answer, and how it came about.

    folder: absolute. pairs: one for each text file, by path in code-point order; paths are relative to the folder.
    left_out: (path, reason) of what matched and could not be used. files_seen: matching files, text or not.
    seconds: from looking for files to the node's being gone. cpu_seconds: of this process and all of the node's.
    kills: daemons that were killed on purpose; restarts: each restart, with its cause and how long it took.
    bytes_shared: handed from process to process by reference; bytes_copied: copied to be handed over.
    differences: None when the answer was not checked, else a line for each file that is wrong.
    """

    folder: str
    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[str, str], ...]
    files_seen: int
    text_bytes: int
    workers: int
    seconds: float
    cpu_seconds: float
    kills: int
    restarts: tuple[Restarted, ...]
    bytes_shared: int
    bytes_copied: int
    shares: tuple[Share, ...]
    differences: tuple[str, ...] | None = None

    @property
    def cores_used(self) -> float:
        """How many cores were at work on average."""
        return self.cpu_seconds / self.seconds


def run(
    folder: str | os.PathLike[str] | None = None,
    patterns: Sequence[str] = (),
    workers: int | None = None,
    kill: bool = False,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    arena_bytes: int | None = None,
    check: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Result:
    """Find the most similar other file of every text file below `folder`, on a node of its own.

    folder: None for the standard library of the running Python. patterns: as in `corpus.find`.
    workers: tokenizers, and scorers; None for the number of cores. There is a reader for every four of them.
    kill: SIGKILL daemons of each kind while they work.
    arena_bytes: what the node may take of shared memory; None for four times the files, but no less than 256 MiB and
        no more than there is.
    check: compare the answer with one worked out in this process alone, by other means.
    progress: called with (READ or COMPARE, files done, files in all).

    Raises: InputError when there is nothing to compare; UsageError for a bad number of workers; ArenaFull when shared
        memory does not suffice; ActorDied when a chunk kills whoever works on it; RemoteError when a daemon fails.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise UsageError(f"workers: expected at least 1, got {workers}")
    workers = min(workers, MOST_WORKERS)
    started, cpu_before = monotonic(), _cpu_seconds()
    corpus = find(folder, patterns, max_file_bytes)
    budget = _arena_bytes(sum(corpus.sizes)) if arena_bytes is None else arena_bytes
    with Node(arena=budget, supervisor=_tree(workers)) as node:
        job = _Job(node, corpus, workers, kill, max_file_bytes, progress)
        with asyncio.Runner() as runner:
            job.read(runner)
            job.weigh()
            job.compare(runner)
        stats = _settled(node, job.kills)
    seconds, cpu_seconds = monotonic() - started, _cpu_seconds() - cpu_before
    differences = None
    if check:
        expected = checking.reference(corpus.folder, job.paths)
        differences = tuple(checking.compare((job.nearest, job.similarity), expected))
    return Result(
        folder=corpus.folder,
        pairs=job.pairs(),
        left_out=tuple(sorted((*corpus.left_out, *job.errors))),
        files_seen=len(corpus.paths) + len(corpus.left_out),
        text_bytes=job.text_bytes,
        workers=workers,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        kills=job.kills,
        restarts=stats.restarts,
        bytes_shared=stats.arena.bytes_shared,
        bytes_copied=stats.arena.bytes_copied,
        shares=_shares(stats, job.pools),
        differences=differences,
    )


def _tree(workers: int) -> SupervisorSpec:
    """A supervisor for each kind of daemon. A crash is repaired however often it happens: `Pool` knows when to stop."""

    def kind(actor: str, name: str, instances: int) -> ChildSpec:
        daemon = ChildSpec(f"loom.edges.demo.actors:{actor}", name=name, instances=instances, shutdown_s="brutal_kill")
        rules = SupervisorSpec("one_for_one", max_restarts=1000, within_s=5, children=(daemon,), backoff=BackoffSpec())
        return ChildSpec(rules, name=f"{name}s")

    return SupervisorSpec(
        children=(
            kind("Reader", "reader", _readers(workers)),
            kind("Tokenizer", "tokenizer", workers),
            kind("Scorer", "scorer", workers),
        )
    )


def _readers(workers: int) -> int:
    """Reading a file that the system has in its cache takes a quarter of the time of counting its tokens."""
    return (workers + 3) // 4


def _names(name: str, instances: int) -> tuple[str, ...]:
    return ChildSpec("loom.edges.demo.actors:Reader", name=name, instances=instances).members


class _Counted(NamedTuple):
    """What is kept of one chunk of files."""

    counts: TokenCounts
    kinds: NDArray[np.uint8]
    text_bytes: int
    errors: tuple[tuple[str, str], ...]


class _Job:
    """One run, stage by stage: `read`, `weigh`, `compare`, in that order."""

    def __init__(
        self,
        node: Node,
        corpus: Corpus,
        workers: int,
        kill: bool,
        max_file_bytes: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.errors: list[tuple[str, str]] = []
        self.text_bytes = 0
        self.paths: tuple[str, ...] = ()
        self.nearest = np.empty(0, dtype=np.int64)
        self.similarity = np.empty(0, dtype=np.float64)
        self._corpus = corpus
        self._workers = workers
        self._max_file_bytes = max_file_bytes
        self._is_small = sum(corpus.sizes) < _FEW_BYTES
        self._progress = progress
        self._readers = Pool(node, _names("reader", _readers(workers)), kill=kill)
        self._tokenizers = Pool(node, _names("tokenizer", workers), kill=kill)
        self._scorers = Pool(node, _names("scorer", workers), kill=kill)
        self.pools = (self._readers, self._tokenizers, self._scorers)
        self._counts: list[TokenCounts] = []
        self._kinds = np.empty(0, dtype=np.uint8)
        self._rows: Rows | None = None
        self._columns = 0
        self._warming: asyncio.Task[None] | None = None

    @property
    def kills(self) -> int:
        """Daemons killed so far."""
        return sum(pool.kills for pool in self.pools)

    def read(self, runner: asyncio.Runner) -> None:
        """Read all files and count their tokens."""
        runner.run(self._read())

    def weigh(self) -> None:
        """Make one matrix of all counts, in the arena."""
        keep = self._kinds == FileKind.TEXT
        self.paths = tuple(path for path, is_text in zip(self._corpus.paths, keep.tolist(), strict=True) if is_text)
        if not self.paths:
            path, reason = self.errors[0] if self.errors else ("", "all of them are binary by now")
            raise InputError(
                f"no text file left below '{printable(self._corpus.folder)}'"
                + (f": '{printable(path)}': {reason}" if path else f": {reason}")
            )
        matrix: Matrix = merge(self._counts, keep)
        self._counts.clear()  # and with them their blocks in the arena
        self._columns = matrix.columns
        self._rows = (arena.share(matrix.indptr), arena.share(matrix.indices), arena.share(matrix.data))

    def compare(self, runner: asyncio.Runner) -> None:
        """Find the most similar other file of each."""
        runner.run(self._compare())

    def pairs(self) -> tuple[Pair, ...]:
        """The answer."""
        paths = self.paths
        return tuple(
            Pair(path, paths[other] if other >= 0 else None, similarity)
            for path, other, similarity in zip(paths, self.nearest.tolist(), self.similarity.tolist(), strict=True)
        )

    async def _read(self) -> None:
        cuts = _cut(self._corpus.sizes, self._workers)
        all_handed_out = asyncio.Event()
        self._warming = asyncio.create_task(self._warm(all_handed_out))
        self._readers.expect(len(cuts))
        self._tokenizers.expect(len(cuts))
        # So many chunks are in memory at a time, whatever the size of the folder.
        room = asyncio.Semaphore(2 * (len(self._readers.daemons) + len(self._tokenizers.daemons)))
        total = len(self._corpus.paths)
        done = handed_out = 0

        async def chunk(start: int, stop: int) -> _Counted:
            nonlocal done, handed_out
            async with room:
                paths = list(self._corpus.paths[start:stop])
                files: FileChunk = await self._readers.chunk(
                    "read", self._corpus.folder, paths, self._max_file_bytes, files=len(paths)
                )
                handed_out += 1
                if handed_out == len(cuts):
                    all_handed_out.set()
                counts = await self._tokenizers.chunk("count", files.data, files.offsets, files=len(paths))
            done += len(paths)
            self._progress(READ, done, total)
            # A copy of `kinds`, as the array may be a view of the whole message.
            return _Counted(counts, np.array(files.kinds), files.data.nbytes, files.errors)

        self._progress(READ, 0, total)
        parts = await asyncio.gather(*(chunk(start, stop) for start, stop in cuts))
        await self._readers.settle()
        await self._tokenizers.settle()
        self._counts = [part.counts for part in parts]
        self._kinds = np.concatenate([part.kinds for part in parts])
        self.text_bytes = sum(part.text_bytes for part in parts)
        self.errors = [error for part in parts for error in part.errors]

    async def _warm(self, all_handed_out: asyncio.Event) -> None:
        """Have the scorers load their kernels: one at once, since on a new machine it has to compile them, which leaves
        them in a cache for the others. Those can wait until there is little left to count: soon after, this process
        merges, and the other cores are idle. With few files they are not needed at all.
        """
        try:
            await self._scorers.ask("warm")
            await all_handed_out.wait()
            if not self._is_small:
                await self._scorers.each("warm")
        except LoomError:  # whatever ails them, the first thing that is asked of them will say so
            return

    async def _compare(self) -> None:
        assert self._rows is not None
        rows, n = self._rows, len(self.paths)
        self._progress(COMPARE, 0, n)
        inverted: Rows = await self._scorers.ask("invert", rows, self._columns)
        self.nearest = np.empty(n, dtype=np.int64)
        self.similarity = np.empty(n, dtype=np.float64)
        wanted = 1 if self._is_small else max(4 * self._workers, n // _BLOCK_FILES)
        blocks = _blocks(_costs(rows, inverted[0]), wanted)
        self._scorers.expect(len(blocks))
        done = 0

        async def block(start: int, stop: int) -> None:
            nonlocal done
            found = await self._scorers.chunk("nearest", rows, inverted, start, stop, files=stop - start)
            self.nearest[start:stop], self.similarity[start:stop] = found
            done += stop - start
            self._progress(COMPARE, done, n)

        await asyncio.gather(*(block(start, stop) for start, stop in blocks))
        await self._scorers.settle()
        if self._warming is not None:
            await self._warming
        self._rows = None


def _cut(sizes: Sequence[int], workers: int) -> list[tuple[int, int]]:
    """Where to cut the files into chunks: (start, stop) of each. Enough for all workers, none of them too large."""
    wanted = min(max(sum(sizes) // (8 * workers), _LEAST_CHUNK_BYTES), _CHUNK_BYTES)
    cuts = []
    start = held = 0
    for number, size in enumerate(sizes):
        if number > start and (held + size > wanted or number - start == _CHUNK_FILES):
            cuts.append((start, number))
            start, held = number, 0
        held += size
    return [*cuts, (start, len(sizes))]


def _costs(rows: Rows, t_indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """What comparing each file takes: an addition for each file that shares a token, and three looks at all scores."""
    indptr, indices, _ = rows
    additions = np.zeros(len(indices) + 1, dtype=np.int64)
    np.cumsum(np.diff(t_indptr)[indices], out=additions[1:])
    costs: NDArray[np.int64] = np.diff(additions[indptr]) + 3 * (len(indptr) - 1)
    return costs


def _blocks(costs: NDArray[np.int64], wanted: int) -> list[tuple[int, int]]:
    """Cut the rows into about that many blocks that cost about the same: (start, stop) of each, none empty."""
    total = np.cumsum(costs)
    edges = np.searchsorted(total, np.linspace(0, total[-1], wanted + 1)[1:-1]) + 1
    edges = np.unique(np.concatenate([[0], np.minimum(edges, len(costs)), [len(costs)]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _arena_bytes(file_bytes: int) -> int:
    """How much shared memory the node may take. Raises: ArenaFull when there is next to none."""
    about = os.statvfs("/dev/shm")
    free = about.f_bavail * about.f_frsize
    if free < _LEAST_ROOM_BYTES:
        raise ArenaFull(
            f"/dev/shm has {free / _MIB:.0f} MiB free, the demo needs {_LEAST_ROOM_BYTES / _MIB:.0f} MiB at least: "
            "free space there, or enlarge it with 'mount -o remount,size=1G /dev/shm'"
        )
    return min(max(4 * file_bytes, _LEAST_ARENA_BYTES), free - free // 10)


def _settled(node: Node, kills: int) -> NodeStats:
    """The node's figures, once everybody who was killed is back, so that the last restarts are among them."""
    until = monotonic() + _SETTLE_S
    while True:
        stats = node.stats()
        back = all(actor.state == "running" for actor in stats.actors)
        if monotonic() > until or (back and sum(actor.incarnation - 1 for actor in stats.actors) >= kills):
            return stats
        time.sleep(0.002)


def _shares(stats: NodeStats, pools: Sequence[Pool]) -> tuple[Share, ...]:
    shares = []
    actors = {actor.name: actor for actor in stats.actors}
    for daemon in (daemon for pool in pools for daemon in pool.daemons):
        actor = actors[daemon.name]
        shares.append(Share(daemon.name, actor.received, daemon.files, daemon.busy_s, actor.incarnation - 1))
    return tuple(shares)


def _cpu_seconds() -> float:
    """CPU seconds of this process and of all its children that are gone, theirs included. The node reaps its own."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
