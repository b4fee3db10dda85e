"""`loom-node check`: what `up` would start, without starting it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from loom.cli.config import load_checked
from loom.cli.text import branches, plural
from loom.node.config import NodeConfig, describe
from loom.supervise.spec import ChildSpec, SupervisorSpec, is_template, walk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes."""
    from loom.cli.main import EXIT_CODES

    parser.add_argument("config", metavar="CONFIG", help="a TOML file; loom/node/config.py describes it")
    parser.add_argument("--json", action="store_true", help="print the config as JSON, defaults filled in")
    parser.epilog = f"""\
The actors' modules are imported, as a node's processes would import them; no actor is made.

examples:
  loom-node check index.toml
  loom-node check index.toml --json | jq .supervisor.children

{EXIT_CODES}"""


def run(arguments: argparse.Namespace) -> int:
    """Check a config and print its tree. Raises: ConfigError, ActorImportError."""
    config = load_checked(arguments.config)
    if arguments.json:
        print(json.dumps(describe(config), ensure_ascii=False))
    else:
        print(_head(config))
        print("\n".join(branches(f"root {_rules(config.supervisor)}", _children(config.supervisor))))
    return 0


def _head(config: NodeConfig) -> str:
    count = sum(
        child.instances
        for place, child in walk(config.supervisor)
        if child.supervisor is None and not is_template(config.supervisor, place)
    )
    policy = config.arena_policy
    arena = f"{config.arena_bytes / 2**20:g} MiB"
    if policy.full != "wait":
        arena += f", then {policy.full}{f' to {policy.spill}' if policy.spill else ''}"
    return f"{config.file} is fine: node {config.name!r}, {plural(count, 'actor')}, arena {arena}"


def _rules(spec: SupervisorSpec) -> str:
    ends = f", auto-shutdown {spec.auto_shutdown}" if spec.auto_shutdown != "never" else ""
    return f"({spec.strategy}, {plural(spec.max_restarts, 'restart')} in {spec.within_s:g} s{ends})"


def _children(spec: SupervisorSpec) -> list[Any]:
    if spec.strategy == "simple_one_for_one":
        return [(f"template {label}", below) for label, below in map(_child, spec.children)]
    return [_child(child) for child in spec.children]


def _child(child: ChildSpec) -> tuple[str, list[Any]]:
    if child.supervisor is not None:
        return f"{child.name} {_rules(child.supervisor)} {child.restart}", _children(child.supervisor)
    times = f" x {child.instances}" if child.instances > 1 else ""
    ends = " significant" if child.significant else ""
    return f"{child.name}{times} {child.actor}({', '.join(_arguments(child))}) {child.restart}{ends}", []


def _arguments(child: ChildSpec) -> Iterator[str]:
    yield from map(repr, child.args)
    for name, value in child.kwargs.items():
        yield f"{name}={value!r}"
