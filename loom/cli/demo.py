"""`loom-node demo`: the most similar other file of every text file below a folder, worked out by supervised daemons."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from loom.cli.text import plural, size, table

if TYPE_CHECKING:
    from loom.edges.demo.job import Pair, Result

FAILED, LEFT_OUT = 1, 3
"""Exit codes: the check found differences; finished, but files were left out."""

_MOST_PAIRS: Final = 10
_MOST_LEFT_OUT: Final = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `demo` takes."""
    from loom.cli.main import EXIT_CODES

    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="by default the standard library of this Python")
    parser.add_argument(
        "--pattern", action="append", default=[], metavar="GLOB", help="only files of such a name; may be repeated"
    )
    parser.add_argument("--kill", action="store_true", help="kill daemons at random while they work: same answer")
    parser.add_argument(
        "--workers", type=_workers, metavar="N", help="tokenizers, and scorers; by default as many as cores"
    )
    parser.add_argument(
        "--max-file", type=_size, default=None, metavar="SIZE", help="leave out larger files (default: 64MiB)"
    )
    parser.add_argument(
        "--arena",
        type=_size,
        default=None,
        metavar="SIZE",
        help="shared memory it may take (default: four times the files, 256MiB at least, and no more than there is)",
    )
    parser.add_argument("--check", action="store_true", help="compare with the same worked out in one process, plainly")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    done, _, others = EXIT_CODES.partition("  130")
    parser.epilog = f"""\
A text file has no NUL byte in its first 8,192 bytes. Files are compared by their words (TF-IDF, cosine): readers,
tokenizers and scorers are processes under supervisors, and pass one another arrays in shared memory. A daemon that
dies is restarted, and what it was at is done again, so the answer is the same to the last bit.

examples:
  loom-node demo                                 the standard library
  loom-node demo ~/src --pattern '*.py' --kill   killing daemons at random meanwhile
  loom-node demo --check --json | jq .check      is it right?

{done}  {LEFT_OUT}    finished, but files were left out; standard error says which
  130{others}"""


def run(arguments: argparse.Namespace) -> int:
    """Do the job and tell of it. Raises: InputError (L1009) when there is nothing to compare."""
    from loom.edges.demo import job
    from loom.edges.demo.corpus import MAX_FILE_BYTES

    if arguments.kill:
        os.environ.setdefault("LOOM_LOG", "error")  # its restarts are no news to whoever asked for them
    with _progress() as progress:
        result = job.run(
            arguments.folder,
            arguments.pattern,
            arguments.workers,
            arguments.kill,
            max_file_bytes=arguments.max_file or MAX_FILE_BYTES,
            arena_bytes=arguments.arena,
            check=arguments.check,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(as_json(result)))
    else:
        print("\n".join(as_text(result)))
    for line in _left_out(result):
        print(f"loom-node: {line}", file=sys.stderr)
    if result.differences:
        return FAILED
    return LEFT_OUT if result.left_out else 0


def as_json(result: Result) -> dict[str, Any]:
    """A result as `--json` prints it."""
    checked = result.differences
    return {
        "folder": result.folder,
        "files": len(result.pairs),
        "pairs": [{"path": pair.path, "nearest": pair.nearest, "similarity": pair.similarity} for pair in result.pairs],
        "left_out": [{"path": path, "reason": reason} for path, reason in result.left_out],
        "workers": result.workers,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "cores_used": result.cores_used,
        "files_per_second": len(result.pairs) / result.seconds,
        "text_bytes": result.text_bytes,
        "bytes_shared": result.bytes_shared,
        "bytes_copied": result.bytes_copied,
        "kills": result.kills,
        "restarts": len(result.restarts),
        "restarted": [{"actor": one.name, "cause": one.cause, "seconds": one.took_s} for one in result.restarts],
        "actors": [
            {
                "name": share.name,
                "messages": share.messages,
                "files": share.files,
                "busy_s": share.busy_s,
                "restarts": share.restarts,
            }
            for share in result.shares
        ],
        **({} if checked is None else {"check": {"ok": not checked, "differences": list(checked)}}),
    }


def as_text(result: Result) -> Iterator[str]:
    """A result for people: the most similar pairs, then who did what."""
    from loom.edges.demo.corpus import printable

    pairs = _most_similar(result.pairs)
    yield f"The most similar of {plural(len(result.pairs), 'text file')} below {printable(result.folder)}:"
    yield ""
    for pair in pairs:
        yield f"  {pair.similarity:.4f}  {printable(pair.path)}"
        yield f"          {printable(pair.nearest or '')}"
    if not pairs:
        yield "  none: no two of them have a word in common"
    yield ""
    yield from _shares(result)
    yield ""
    rate = f"{len(result.pairs) / result.seconds:,.0f} files/s"
    cores = f"{result.cpu_seconds:.2f} s of CPU, {result.cores_used:.2f} cores used"
    yield f"{plural(len(result.pairs), 'file')} in {result.seconds:.2f} s: {rate}, {cores}"
    yield f"between processes: {size(result.bytes_shared)} shared, {size(result.bytes_copied)} copied"
    if result.kills or result.restarts:
        yield f"{plural(result.kills, 'daemon')} killed, {plural(len(result.restarts), 'restart')}"
    if result.differences is not None:
        count = plural(len(result.differences), "difference")
        yield f"check: {count} from the answer of one plain process"
        yield from (f"  {line}" for line in result.differences)


def _shares(result: Result) -> list[str]:
    took = defaultdict(list)
    for restart in result.restarts:
        took[restart.name].append(f"{restart.took_s * 1000:.0f}")
    rows = [
        (
            share.name,
            str(share.messages),
            str(share.files),
            f"{share.busy_s:.2f}",
            str(share.restarts),
            ", ".join(took[share.name]) or "-",
        )
        for share in result.shares
    ]
    return table(("ACTOR", "MESSAGES", "FILES", "CPU S", "RESTARTS", "EACH TOOK MS"), rows)


def _most_similar(pairs: tuple[Pair, ...]) -> list[Pair]:
    """The best pairs, each once, whichever of the two it was found for."""
    seen = set()
    best = []
    for pair in sorted(pairs, key=lambda pair: -pair.similarity):
        both = frozenset((pair.path, pair.nearest))
        if pair.similarity > 0 and both not in seen:
            seen.add(both)
            best.append(pair)
        if len(best) == _MOST_PAIRS:
            break
    return best


def _left_out(result: Result) -> Iterator[str]:
    from loom.edges.demo.corpus import printable

    for path, reason in result.left_out[:_MOST_LEFT_OUT]:
        yield f"left out '{printable(path)}': {printable(reason)}"
    if len(result.left_out) > _MOST_LEFT_OUT:
        yield f"... and {len(result.left_out) - _MOST_LEFT_OUT} more"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """What to call as the work goes on: a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield show


def _workers(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return number


def _size(text: str) -> int:
    from loom.errors import ConfigError
    from loom.node.config import size_bytes

    try:
        return size_bytes(int(text) if text.isdecimal() else text)
    except ConfigError:
        expected = "a size such as '64MiB', or a number of bytes"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
