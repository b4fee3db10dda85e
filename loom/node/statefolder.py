"""Where the state of a node's actors is: a store that outlives the node, or goes with it.

    loom-node up     $XDG_STATE_HOME/loom/NAME, else ~/.local/state/loom/NAME; or what the config has as [node] state
    loom.Node()      the folder `state` in the node's runtime folder; or what Node(state=...) says

The folder is made when the first actor has something to save, and is its user's alone (0700).
"""

from __future__ import annotations

import os
from pathlib import Path

from loom.errors import StoreError
from loom.supervise import sweep


def default(name: str) -> str:
    """The folder for the node of that name. Source: XDG Base Directory Specification, XDG_STATE_HOME."""
    home = os.environ.get("XDG_STATE_HOME", "")
    parent = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    return str(parent / "loom" / name)


def lock(folder: str) -> int:
    """Hold a store that any node may have been told to use, made if need be; until the descriptor is closed.

    Raises: StoreError (L3004) when another node holds it, or it cannot be made.
    """
    from loom.store import make_folder

    path = Path(folder)
    make_folder(path)
    fd = sweep.lock(path / "node")
    if fd is None:
        raise StoreError(f"{folder}: another running node keeps its state there: give each node a folder of its own")
    return fd
