"""`loom-node doctor`: what on this machine does not suit a node, and what to do about it. No node is needed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from loom.cli.text import plural, table
from loom.node.fitness import Finding, check
from loom.node.machine import Facts, look

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `doctor` takes."""
    from loom.cli.main import EXIT_CODES

    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="check the folder that this config's node would spill to, too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = f"""\
A warning is something that may go wrong; with a problem no node runs. The exit code is 1 when there is a problem.

examples:
  loom-node doctor
  loom-node doctor index.toml
  loom-node doctor --json | jq '.checks[] | select(.status != "ok") | .remedy'

{EXIT_CODES}"""


def run(arguments: argparse.Namespace) -> int:
    """Check the machine and say what was found. Raises: ConfigError (L1001) for a config that is wrong."""
    findings = check(_look(arguments.config))
    if arguments.json:
        print(json.dumps(as_json(findings), ensure_ascii=False))
    else:
        print("\n".join(as_text(findings)))
    return FAILED if _count(findings, "problem") else 0


def _look(config: str | None) -> Facts:
    if config is None:
        return look()
    from loom.node.config import load

    loaded = load(Path(config))
    return look(loaded.arena_policy.spill, loaded.arena_bytes)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Findings as `--json` prints them."""
    return {"ok": not _count(findings, "problem"), "checks": [one._asdict() for one in findings]}


def as_text(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each check, the remedy at its end, and a last one that sums up."""
    rows = [(one.status, one.name, "; ".join(filter(None, (one.found, one.remedy)))) for one in findings]
    yield from table(("STATUS", "CHECK", "FOUND"), rows)
    yield ""
    yield f"{plural(_count(findings, 'problem'), 'problem')}, {plural(_count(findings, 'warning'), 'warning')}"


def _count(findings: Sequence[Finding], status: str) -> int:
    return sum(one.status == status for one in findings)
