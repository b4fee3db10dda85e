"""A config file and the actors it names, checked before anything is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from loom.errors import UsageError
from loom.node.config import NodeConfig, check_actors, check_folders, load
from loom.supervise.spec import SpecError, check_name


def load_checked(file: str, name: str | None = None) -> NodeConfig:
    """Read a config file and import its actors, as a node's processes will. `name` replaces the node's name.

    What the imported modules do to the environment is undone: it would be inherited by what is started next.
    Raises: ConfigError (L1001), ActorImportError (L1006), UsageError (L1008) for a name that is none.
    """
    config = load(Path(file))
    if name is not None:
        config = msgspec.structs.replace(config, name=_checked(name))
    check_folders(config)
    environ = dict(os.environ)
    try:
        check_actors(config)
    finally:
        sys.stderr.flush()
        os.environ.clear()
        os.environ.update(environ)
    return config


def _checked(name: str) -> str:
    try:
        check_name("loom-node", "--name", name, reserved=())
    except SpecError as error:
        raise UsageError(f"--name: expected {error.expected}, got {error.got}: {error.remedy}") from None
    return name
