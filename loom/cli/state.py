"""`loom-node state`: what actors keep across restarts, of a running node or of one that is not."""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.cli import running
from loom.cli.text import table
from loom.errors import InputError, NodeNotFound, UsageError

if TYPE_CHECKING:
    from loom.actor.snapshot import Snapshot
    from loom.store import Table

_VALUE_CHARS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `state` takes."""
    parser.add_argument("what", choices=("list", "show", "delete"), help="what to do")
    parser.add_argument("names", metavar="NAME", nargs="*", help="children, by name; `show` and `delete` need some")
    parser.add_argument("--folder", metavar="FOLDER", help="the folder of the state itself, instead of a node's")
    running.add_arguments(
        parser,
        example="""\
  loom-node state list                      whose state is there, how large, since when
  loom-node state list --node alpha         of that node, which need not run: then the default folder is meant
  loom-node state show index                what it is; the classes in it are imported from here, so use the program's
                                            environment and folder
  loom-node state delete index              the next start of `index` begins with nothing

An actor that runs keeps what it has in memory, and saves it again when its time comes: stop it before `delete`.
""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it. Raises: NodeNotFound, InputError, UsageError, StoreError."""
    folder, names = _folder(arguments), arguments.names
    if (arguments.what == "list") == bool(names):
        wanted = "no NAME" if names else "at least one NAME"
        raise UsageError(f"state {arguments.what}: expected {wanted}; see 'loom-node state --help'")
    snapshots = _open(folder)
    if arguments.what == "list":
        return _list(snapshots, folder, as_json=arguments.json)
    if snapshots is None or (missing := [name for name in names if name not in snapshots.keys()]):  # noqa: SIM118
        known = ", ".join(snapshots.keys()) if snapshots else ""
        raise InputError(
            f"no state of {names[0] if snapshots is None else missing[0]!r} in {folder}: it has {known or 'none'}"
        )
    if arguments.what == "delete":
        for name in names:
            snapshots.delete(name)
        print(json.dumps({"deleted": names, "folder": folder}) if arguments.json else f"deleted: {', '.join(names)}")
        return 0
    for name in names:
        _show(name, snapshots, folder, as_json=arguments.json)
    return 0


def _folder(arguments: argparse.Namespace) -> str:
    """Where the state is: what --folder says, what the running node says, or where a node of that name would look."""
    if arguments.folder is not None:
        return os.path.abspath(str(arguments.folder))
    from loom.node.statefolder import default

    try:
        with running.connect(arguments) as client:
            folder: str = str(client.info()["state"])
            return folder
    except NodeNotFound:
        name = arguments.node or os.environ.get("LOOM_NODE")
        if name is None or "/" in name:
            raise
        return default(name)


def _open(folder: str) -> Table[Snapshot] | None:
    """The snapshots there; None when nothing was ever saved. Raises: StoreError."""
    if not (Path(folder) / "data.mdb").exists():
        return None
    from loom.actor.snapshot import table as snapshots

    return snapshots(folder)


def _about(name: str, one: Snapshot) -> dict[str, Any]:
    return {
        "name": name,
        "actor": one.actor,
        "version": one.version,
        "incarnation": one.incarnation,
        "saved_at": one.saved_at,
        "size_bytes": len(one.data),
    }


def _list(snapshots: Table[Snapshot] | None, folder: str, *, as_json: bool) -> int:
    found = [_about(name, one) for name, one in snapshots.items()] if snapshots is not None else []
    if as_json:
        print(json.dumps({"folder": folder, "snapshots": found}, ensure_ascii=False))
        return 0
    head = ("NAME", "ACTOR", "VERSION", "SAVED", "BYTES")
    rows = [
        (one["name"], one["actor"], str(one["version"]), _time(one["saved_at"]), str(one["size_bytes"]))
        for one in found
    ]
    print("\n".join(table(head, rows)) if rows else f"nothing is saved in {folder}")
    return 0


def _show(name: str, snapshots: Table[Snapshot], folder: str, *, as_json: bool) -> None:
    from loom.actor.snapshot import state_of

    found = snapshots.get(name)
    if found is None:  # deleted meanwhile
        raise InputError(f"no state of {name!r} in {folder}")
    about = _about(name, found)
    try:
        about["state"] = repr(state_of(found))[:_VALUE_CHARS]
    except Exception as error:  # its classes may not be importable from here
        about["unreadable"] = f"{type(error).__name__}: {error}"
    if as_json:
        print(json.dumps(about, ensure_ascii=False))
        return
    about["saved_at"] = _time(found.saved_at)
    print("\n".join(f"{key:<12} {value}" for key, value in about.items()))


def _time(saved_at: float) -> str:
    return datetime.fromtimestamp(saved_at).isoformat(" ", "seconds")
