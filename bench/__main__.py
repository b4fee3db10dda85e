"""The command: `python -m bench [--only NAME ...] [--json FILE] [--markdown FILE] [--quick] [--huge] [--rounds N]
[--list]`."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from pathlib import Path

from bench import (
    arena_fanout,
    arena_hand,
    arena_lease,
    arena_ray,
    ask,
    machine,
    memory,
    pipeline,
    report,
    restart,
    rival,
    spawn,
    start,
    tell,
    tensor,
)
from bench.question import Question, Skipped, put

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        *(module.QUESTION for module in (ask, pipeline, tell, tensor, spawn, restart, memory, start)),
        arena_lease.QUESTION,
        *arena_hand.QUESTIONS,
        arena_fanout.QUESTION,
        arena_ray.QUESTION,
    )
}

ROUNDS, QUICK_ROUNDS = 15, 2

EXAMPLE = """\
example:
  python -m bench --only ask spawn --rounds 30 --json figures.json
  python -m bench --only arena-hand --huge

The table goes to standard output, progress to standard error. There is no pass and no fail: exit code 0 when all
figures were taken, 1 when a question could not be put, 2 for a mistake in the command. What each figure means:
bench/README.md."""


def main(arguments: list[str] | None = None) -> int:
    """Take the figures and print the table. Returns: the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for question in QUESTIONS.values():
            print(f"{question.name:18} {'; '.join(line.title for line in question.lines)}")
        return 0
    questions: list[Question] = []
    for name in chosen.only or [""]:
        found = named(name, chosen.huge)
        if not found:
            near = difflib.get_close_matches(name, QUESTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(QUESTIONS)}"
            return _mistake(f"unknown question {name!r}: {hint}")
        questions.extend(one for one in found if one not in questions)
    for file in (chosen.json, chosen.markdown):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            return _mistake(f"{file}: expected a file in a folder that exists")
    rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    os.environ.setdefault("LOOM_LOG", "error")  # that an actor was killed is no news here
    try:
        document = take(questions, rounds, chosen.quick)
    except KeyboardInterrupt:
        print("bench: interrupted, nothing written", file=sys.stderr)
        return 130
    finally:
        rival.end_all()
    print(report.to_text(document))
    if chosen.json is not None:
        chosen.json.write_bytes(report.to_json(document))
    if chosen.markdown is not None:
        chosen.markdown.write_text(report.to_markdown(document), encoding="utf-8")
    return 1 if document.missing else 0


def named(name: str, huge: bool) -> list[Question]:
    """The question of that name, else the group that it begins: "arena", "arena-hand", or "" for everything.

    Those that need much memory are in a group only with `huge`.
    """
    if name in QUESTIONS:
        return [QUESTIONS[name]]
    group = f"{name}-" if name else ""
    return [one for one in QUESTIONS.values() if one.name.startswith(group) and (one.by_default or huge)]


def take(questions: list[Question], rounds: int, quick: bool) -> report.Document:
    """Put all questions, one after another; one that fails does not keep the others from being put."""
    environment = machine.describe()
    document = report.Document(environment, quick, rounds, [], [], [])
    for question in questions:
        print(f"{question.name} ... ", end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            document.results.extend(put(question, rounds, quick))
        except Skipped as reason:
            document.skipped.append(report.Missing(question.name, str(reason)))
            print(f"skipped: {reason}", file=sys.stderr)
        except Exception as error:
            document.missing.append(report.Missing(question.name, f"{type(error).__name__}: {error}"))
            print(f"not taken: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)
    return document


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench",
        description="Measure Loom beside what it stands on; figures count as ratios taken side by side in one run.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", help="these questions or groups only (see --list)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything, every round's figures too")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table as Markdown")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of small turns")
    parser.add_argument("--huge", action="store_true", help="put those that need much memory too (1 GiB hand-over)")
    parser.add_argument("--rounds", metavar="N", type=_rounds, help=f"how many turns everyone has (default {ROUNDS})")
    parser.add_argument("--list", action="store_true", help="name the questions, and end")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of rounds from 1, got {text!r}")
    return int(text)


def _mistake(text: str) -> int:
    print(f"bench: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
