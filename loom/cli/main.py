"""loom-node: finds the command, loads its module, and turns what goes wrong into one line and an exit code.

A command is a module with two functions: `add_arguments(parser)` and `run(arguments) -> exit code`. Only the module of
the command that is called is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from loom.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

INTERRUPTED, BROKEN_PIPE = 130, 141
"""128 and the signal's number, as shells have it."""

EXIT_CODES = """\
exit codes:
  0    done
  1    what was asked for failed
  2    the command line or the config file is wrong; nothing was asked for
  130  Ctrl-C
  141  whoever read the output has gone
"""


class Command(NamedTuple):
    """Where a command is, and what it does in a few words."""

    module: str
    summary: str


COMMANDS = {
    "up": Command("loom.cli.up", "run the node that a config file describes"),
    "check": Command("loom.cli.check", "check a config file and show the tree it describes"),
    "ps": Command("loom.cli.ps", "list the actors of a running node"),
    "tree": Command("loom.cli.tree", "draw the supervisors and actors of a running node"),
    "arena": Command("loom.cli.arena", "show who has what of a running node's shared memory"),
    "stack": Command("loom.cli.stack", "show what the threads of a running actor are at"),
    "resize": Command("loom.cli.resize", "change how many members a pool has"),
    "dead-letters": Command("loom.cli.dead_letters", "list the last messages that were not run to their end"),
    "call": Command("loom.cli.call", "call a method of a running actor"),
    "child": Command("loom.cli.child", "start, stop, restart, delete, list or count children"),
    "state": Command("loom.cli.state", "list, show or delete what actors keep across restarts"),
    "upgrade": Command("loom.cli.upgrade", "give a running actor new code; it keeps its state and its messages"),
    "reload": Command("loom.cli.reload", "apply a changed config to a running node: only what changed restarts"),
    "drain": Command("loom.cli.drain", "have a node take no new work, finish what it has, and stop"),
    "stop": Command("loom.cli.stop", "stop an actor, a supervisor or a whole node"),
    "doctor": Command("loom.cli.doctor", "check that this machine suits a node, and say what to do if not"),
    "demo": Command("loom.cli.demo", "see it work on your own files"),
}

EPILOG = f"""\
examples:
  loom-node up index.toml             run a node until Ctrl-C
  loom-node ps                        what its actors are doing, from another terminal
  loom-node call index.count          call an actor
  loom-node COMMAND --help            more about a command

{EXIT_CODES}"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are Loom's: one line, no usage block."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError (L1008)."""
        raise UsageError(f"{message}; see '{self.prog} --help'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its code instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has enough: no error, and no more output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(words: list[str]) -> int:
    if not words:
        _parser(None, None).print_help(sys.stderr)
        return 2
    try:
        name = _command(words)
        module = import_module(COMMANDS[name].module) if name else None
        arguments = _parser(name, module).parse_args(words)
        assert module is not None  # without a command it was --help or --version, and those end in parse_args
        code: int = module.run(arguments)
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise
        from loom.cli.failure import report

        options = words[: words.index("--")] if "--" in words else words
        return report(error, as_json="--json" in options, verbose=bool({"-v", "--verbose"}.intersection(options)))


def _command(words: Sequence[str]) -> str | None:
    """The command that is called; None when the first word is an option. Raises: UsageError (L1008)."""
    word = words[0]
    if word in COMMANDS:
        return word
    if word in ("-h", "--help", "--version"):
        return None
    import difflib

    if word.startswith("-"):
        raise UsageError(f"expected a command first, got {word!r}: options follow it, as in 'loom-node ps {word}'")
    near = difflib.get_close_matches(word, COMMANDS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
    raise UsageError(f"there is no command {word!r}: {hint}")


def _parser(name: str | None, module: ModuleType | None) -> Parser:
    """The parser of everything, with the options of the one command that is called."""
    from loom import __version__

    parser = Parser(prog="loom-node", description="Actors as processes, under supervision.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"loom-node {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    for each, (_, summary) in COMMANDS.items():
        below = commands.add_parser(each, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if each == name and module is not None:
            module.add_arguments(below)
    return parser


if __name__ == "__main__":
    sys.exit(main())
