"""`loom-node up`: checks a config, then turns into the node, keeping its process id for whoever supervises it."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from loom.cli.config import load_checked
from loom.errors import StartFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `up` takes."""
    parser.add_argument("config", metavar="CONFIG", help="a TOML file; loom/node/config.py describes it")
    parser.add_argument("--name", help="the node's name, instead of the one in the config")
    parser.add_argument("--json", action="store_true", help="print one JSON line each when ready and at the end")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log what happens and show tracebacks: LOOM_LOG=info"
    )
    parser.epilog = """\
Ctrl-C or SIGTERM stops the actors in reverse order, each in its shutdown time; a second one kills them all. SIGHUP
is 'loom-node reload --yes'. Under
systemd (Type=notify) it says when it is ready, and when it stops: see examples/loom-node.service.

With --json: {"ready": ENDPOINT, "name": ..., "pid": ..., "actors": ...} once all actors run, and {"exit": WHY,
"code": ...} at the end. What the actors themselves print goes to the same standard output.

examples:
  loom-node up index.toml
  loom-node up index.toml --name beta --json

exit codes:
  0    stopped in order
  1    could not start, gave up restarting, or was killed while it was stopping
  2    the command line or the config file is wrong
"""


def run(arguments: argparse.Namespace) -> int:
    """Become the node. Raises: ConfigError, ActorImportError, UsageError, NotSendable, StartFailed."""
    config = load_checked(arguments.config, arguments.name)
    from loom.actor.verbs import search_path
    from loom.node.main import Boot, command, environment, memfd, new_cookie
    from loom.node.plan import plan_of
    from loom.node.statefolder import default

    cookie = new_cookie()
    search = search_path()
    root = plan_of(config.supervisor, [*config.path, *search])
    report_fd = -1
    if arguments.json:
        report_fd = os.dup(1)  # not 1 itself: the node keeps its reports to itself, but the actors need an output
        os.set_inheritable(report_fd, True)
    boot = Boot(
        config.name,
        cookie,
        config.arena_bytes,
        root,
        report_fd=report_fd,
        arena_policy=config.arena_policy,
        state=config.state or default(config.name),
        is_state_shared=bool(config.state),
        config=os.path.abspath(arguments.config),
        search=tuple(search),
    )
    words = command(memfd(boot))
    environ = environment(cookie)
    if arguments.verbose:
        environ.setdefault("LOOM_LOG", "info")
    sys.stdout.flush()
    sys.stderr.flush()
    # From here until the node can stop in order, a signal waits. Both survive the exec: a mask, and what is pending.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        os.execve(words[0], words, environ)
    except OSError as error:
        raise StartFailed(f"{words[0]} could not be run: {error.strerror}") from None
