"""A node's config file: TOML in, a checked NodeConfig out. `loom-node up` and `check` start here.

    [node]
    name = "alpha"                       # default "default"
    arena = "256MiB"                     # default; B, KiB, MiB, GiB (1024), KB, MB, GB (1000), or a number of bytes
    arena_full = "spill"                 # what then? "wait" (default), "raise" or "spill": loom/node/room.py
    arena_spill = "/var/tmp"             # the folder to spill to, relative to this file
    arena_wait_s = 1.0                   # default; how long to wait when the message has no deadline
    state = "/var/lib/alpha"             # where actors' snapshots are; default ~/.local/state/loom/NAME
    path = ["src"]                       # folders that actors import from, relative to this file; its own comes first
    [supervisor]                         # a SupervisorSpec, with SupervisorSpec's defaults
    strategy = "rest_for_one"
    max_restarts = 5
    within_s = 10
    [supervisor.backoff]                 # a BackoffSpec
    base_s = 0.1
    [[supervisor.child]]                 # a ChildSpec each, in start order
    name = "index"
    actor = "myapp.index:Index"
    args = [64]
    mailbox = { capacity = 500 }
    snapshot = { every_messages = 100 }  # a SnapshotSpec
    [[supervisor.child]]
    name = "workers"
    actor = "myapp.work:Worker"
    kwargs = { retries = 3 }
    instances = 4                        # workers.0 ... workers.3
    restart = "transient"
    shutdown_s = 2
    watchdog_s = 30
    [supervisor.child.limits]            # a LimitsSpec; sizes may be written as in arena
    memory_bytes = "2GiB"
    cpus = [0, 1]
    [[supervisor.child]]
    name = "edge"
    [supervisor.child.supervisor]        # a child may be a supervisor
    strategy = "one_for_all"
    [[supervisor.child.supervisor.child]]
    actor = "myapp.edge:Edge"            # name: "edge" would be taken, so this one needs
    name = "edge.main"

Everything may be left out. The first thing wrong is one ConfigError of one line: the file, the path in it, what was
expected, what was got, and the remedy:

    L1001 index.toml: $.supervisor.child[1].restart: expected 'permanent', 'transient' or 'temporary',
    got 'permanant': did you mean 'permanent'?
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import math
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loom.arena.policy import FullPolicy
from loom.errors import ActorImportError, ConfigError
from loom.node.room import check_spill, full_policy
from loom.supervise.spec import (
    BackoffSpec,
    ChildSpec,
    LimitsSpec,
    MailboxSpec,
    SnapshotSpec,
    SpecError,
    SupervisorSpec,
    check_name,
    is_template,
    nearest,
    show,
    walk,
)

DEFAULT_NAME = "default"
DEFAULT_ARENA_BYTES = 256 * 1024**2
FILE_MAX_BYTES = 16 * 1024**2

UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "KB": 1000, "MB": 1000**2, "GB": 1000**3}

_TOP_KEYS = ("node", "supervisor")
_NODE_KEYS = ("name", "arena", "arena_full", "arena_wait_s", "arena_spill", "state", "path")
_SUPERVISOR_KEYS = tuple("child" if key == "children" else key for key in SupervisorSpec.__struct_fields__)
_CHILD_KEYS = (*ChildSpec.__struct_fields__, "supervisor")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

_Spec = TypeVar("_Spec", bound=msgspec.Struct)


class NodeConfig(msgspec.Struct, frozen=True):
    """What a node is started with.

    path: absolute folders for the actors' sys.path, the config file's own first. state: an absolute folder, "" for the
    default. file: where it came from, for texts.
    """

    name: str = DEFAULT_NAME
    arena_bytes: int = DEFAULT_ARENA_BYTES
    path: tuple[str, ...] = ()
    supervisor: SupervisorSpec = SupervisorSpec()
    file: str = "<text>"
    arena_policy: FullPolicy = FullPolicy()
    state: str = ""


def load(path: Path) -> NodeConfig:
    """Read a config file.

    Raises: ConfigError when it is missing, a folder, unreadable, not UTF-8, not TOML, or wrong.
    """
    path = Path(path)
    at = _At(str(path))
    expected = "a TOML file"
    try:
        with path.open("rb") as opened:
            data = opened.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise at.error(expected, "no such file", _remedy_for_missing(path)) from None
    except IsADirectoryError:
        raise at.error(expected, "a folder", "name the file in it") from None
    except PermissionError:
        raise at.error(expected, "permission denied", "let this user read it, with chmod or chown") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise at.error(expected, str(error), "name a file that can be read") from None
    if len(data) > FILE_MAX_BYTES:
        raise at.error(expected, f"more than {FILE_MAX_BYTES} bytes", "name the config, not a data file")
    try:
        text = data.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{data[error.start]:02x} at line {line}"
        raise at.error("UTF-8 text", got, "save the file as UTF-8") from None
    return parse(text, str(path), path.resolve().parent)


def parse(text: str, file: str = "<text>", folder: Path | None = None) -> NodeConfig:
    """Read a config from a string; `folder` is what [node] path is relative to (None: the current folder).

    Raises: ConfigError when it is not TOML, or wrong.
    """
    at = _At(file)
    try:
        return _node(at, tomllib.loads(text), (folder or Path.cwd()).resolve())
    except tomllib.TOMLDecodeError as error:
        raise at.error("TOML", str(error), "mend that line; strings need quotes") from None
    except RecursionError:
        raise at.error("a few levels of tables", "too many levels to read", "nest less deeply") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise at.error("TOML", str(error), "write a smaller number") from None


def read_child(table: object) -> ChildSpec:
    """One child from the map that a config file has for it, as loom-node and foreign clients send it.

    Raises: ConfigError naming the path in it, expected, got and the remedy.
    """
    return _child(_At("child"), table)


def describe(config: NodeConfig) -> dict[str, Any]:
    """The config as JSON-ready values, defaults filled in: what `loom-node check --json` prints."""
    return {
        "file": config.file,
        "name": config.name,
        "arena_bytes": config.arena_bytes,
        "arena_full": config.arena_policy.full,
        "arena_wait_s": config.arena_policy.wait_s,
        "arena_spill": config.arena_policy.spill,
        "path": list(config.path),
        "state": config.state,
        "supervisor": _describe_supervisor(config.supervisor),
    }


def check_folders(config: NodeConfig) -> None:
    """See that the node can write where it would spill to. Raises: ConfigError."""
    try:
        check_spill(config.arena_policy.spill)
    except SpecError as error:
        raise _At(config.file, f"$.node.{error.field}").error(error.expected, error.got, error.remedy) from None


def check_actors(config: NodeConfig) -> None:
    """Import every "module:Class", and see that it is a loom.Actor that takes the args it is given.

    The modules run in this process and stay imported; config.path is on sys.path meanwhile. What they print goes to
    stderr.

    Raises: ActorImportError naming file, path in it, expected, got and the remedy.
    """
    with _sys_path(config.path), contextlib.redirect_stdout(sys.stderr):
        for place, child in walk(config.supervisor):
            if child.supervisor is None:
                at = _At(config.file, _child_path(place))
                found = _import_actor(at, child.actor, config.path) if isinstance(child.actor, str) else child.actor
                _check_actor_class(at, child, found, is_template=is_template(config.supervisor, place))


# The file


class _At(msgspec.Struct, frozen=True):
    """A place in a config file: makes the errors about it."""

    file: str
    path: str = "$"

    def key(self, name: str) -> _At:
        bare = _BARE_KEY.fullmatch(name) is not None
        return _At(self.file, f"{self.path}.{name}" if bare else f'{self.path}."{name}"')

    def item(self, index: int) -> _At:
        return _At(self.file, f"{self.path}[{index}]")

    def text(self, expected: str, got: str, remedy: str) -> str:
        """One line, whatever the file is called and whatever it says."""
        text = f"{self.file}: {self.path}: expected {expected}, got {' '.join(got.split())}: {remedy}"
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)

    def error(self, expected: str, got: str, remedy: str) -> ConfigError:
        return ConfigError(self.text(expected, got, remedy))


def _remedy_for_missing(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        others = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml"]
        near = difflib.get_close_matches(path.name, others, n=1)
        if near:
            return f"did you mean {str(path.parent / near[0])!r}?"
    return "check the path, or create the file"


# TOML to specs


def _node(at: _At, value: dict[str, Any], folder: Path) -> NodeConfig:
    table = _table(at, value, _TOP_KEYS)
    here = at.key("node")
    node = _table(here, table.get("node", {}), _NODE_KEYS)
    name = node.get("name", DEFAULT_NAME)
    try:
        check_name("node", "name", name, reserved=())
    except SpecError as error:
        raise here.key("name").error(error.expected, error.got, error.remedy) from None
    try:
        policy = full_policy(node.get("arena_full"), node.get("arena_wait_s"), node.get("arena_spill"), folder)
    except SpecError as error:
        raise here.key(error.field).error(error.expected, error.got, error.remedy) from None
    return NodeConfig(
        name=name,
        arena_bytes=_size_bytes(here.key("arena"), node.get("arena", DEFAULT_ARENA_BYTES)),
        path=_folders(here.key("path"), node.get("path", []), folder),
        supervisor=_supervisor(at.key("supervisor"), table.get("supervisor", {})),
        state=_state(here.key("state"), node["state"], folder) if "state" in node else "",
        file=at.file,
        arena_policy=policy,
    )


def _supervisor(at: _At, value: object) -> SupervisorSpec:
    fields = _table(at, value, _SUPERVISOR_KEYS)
    if "backoff" in fields:
        fields["backoff"] = _struct(at.key("backoff"), fields["backoff"], BackoffSpec)
    children = fields.pop("child", [])
    here = at.key("child")
    if not isinstance(children, list):
        header = here.path.removeprefix("$.")
        header = re.sub(r"\[[0-9]+\]", "", header)
        raise here.error("a list of tables", show(children), f"write [[{header}]], with two brackets")
    fields["children"] = tuple(_child(here.item(index), child) for index, child in enumerate(children))
    return _build(at, SupervisorSpec, fields)


def _child(at: _At, value: object) -> ChildSpec:
    fields = _table(at, value, _CHILD_KEYS)
    if "actor" in fields and "supervisor" in fields:
        raise at.error("actor or supervisor", "both", "leave one out: a child is an actor or a supervisor")
    if "supervisor" in fields:
        fields["actor"] = _supervisor(at.key("supervisor"), fields.pop("supervisor"))
    elif "actor" not in fields:
        raise at.error("actor or supervisor", "neither", 'add actor = "module:Class"')
    elif not isinstance(fields["actor"], str):
        remedy = 'write it as in "myapp.index:Index"'
        raise at.key("actor").error('"module:Class"', show(fields["actor"]), remedy)
    if "mailbox" in fields:
        fields["mailbox"] = _struct(at.key("mailbox"), fields["mailbox"], MailboxSpec)
    if "snapshot" in fields:
        fields["snapshot"] = _struct(at.key("snapshot"), fields["snapshot"], SnapshotSpec)
    if "limits" in fields:
        fields["limits"] = _limits(at.key("limits"), fields["limits"])
    return _build(at, ChildSpec, fields)


def _limits(at: _At, value: object) -> LimitsSpec:
    fields = _table(at, value, LimitsSpec.__struct_fields__)
    for key in ("memory_bytes", "memory_soft_bytes"):
        if isinstance(fields.get(key), str):
            fields[key] = _size_bytes(at.key(key), fields[key])
    return _build(at, LimitsSpec, fields)


def _struct(at: _At, value: object, kind: type[_Spec]) -> _Spec:
    return _build(at, kind, _table(at, value, kind.__struct_fields__))


def _build(at: _At, kind: type[_Spec], fields: Mapping[str, Any]) -> _Spec:
    try:
        return kind(**fields)
    except SpecError as error:
        inside = error.field.replace("children[", "child[").replace(".actor.", ".supervisor.")
        raise _At(at.file, f"{at.path}.{inside}").error(error.expected, error.got, error.remedy) from None


def _table(at: _At, value: object, known: Sequence[str]) -> dict[str, Any]:
    """A copy of a table that has no other keys."""
    if not isinstance(value, dict):
        raise at.error("a table", show(value), f"its keys are {', '.join(known)}")
    for key in value:
        if key not in known:
            remedy = nearest(key, known, f"the keys here are {', '.join(known)}")
            raise at.key(key).error("a known key", show(key), remedy)
    return dict(value)


def size_bytes(value: int | str) -> int:
    """A size as a config file or `Node(arena=...)` gives it, in bytes. Raises: ConfigError (L1001)."""
    return _size_bytes(_At("Node(arena=...)"), value)


def _size_bytes(at: _At, value: object) -> int:
    expected = 'a size such as "256MiB", or a number of bytes'
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise at.error(expected, show(value), f"write a number and one of {', '.join(UNITS)}")
        number, unit = match.groups()
        if unit not in UNITS:
            by_case = {known.lower(): known for known in UNITS}
            near = by_case.get(unit.lower()) or by_case.get(f"{unit.lower()}ib")
            remedy = f"did you mean '{number}{near}'?" if near else f"use one of {', '.join(UNITS)}"
            raise at.error(expected, show(value), remedy)
        size = int(Decimal(number) * UNITS[unit])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise at.error(expected, show(value), 'write it as in arena = "256MiB"')
    if not 0 < size < 2**63:
        raise at.error(expected, show(value), "give it from 1 byte to 8388607 TiB")
    return size


def _state(at: _At, value: object, folder: Path) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise at.error("a folder", show(value), "write its name as a string")
    return str((folder / Path(value).expanduser()).absolute())


def _folders(at: _At, value: object, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise at.error("a list of folders", show(value), "write it as in path = ['src']")
    folders = [str(folder)]
    for index, item in enumerate(value):
        here = at.item(index)
        if not isinstance(item, str) or not item or "\0" in item:
            raise here.error("a folder", show(item), "write its name as a string")
        full = (folder / item).resolve()
        if not full.is_dir():
            got = f"{item!r}, which is {'a file' if full.exists() else 'not there'} ({str(full)!r})"
            raise here.error("a folder", got, "create it, or mend the path, which is relative to the config file")
        folders.append(str(full))
    return tuple(dict.fromkeys(folders))


# Actors


def _child_path(place: Sequence[int]) -> str:
    return "$" + "".join(f".supervisor.child[{index}]" for index in place)


@contextlib.contextmanager
def _sys_path(folders: Sequence[str]) -> Iterator[None]:
    saved = list(sys.path)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = saved


def _import_actor(at: _At, actor: str, folders: Sequence[str]) -> object:
    """The object that "module:Class" names."""
    here = at.key("actor")
    module_name, _, qualname = actor.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does at import; Ctrl-C goes on
        got = f"{type(error).__name__}: {error}"
        remedy = "mend that module"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            remedy = f"is it in one of {', '.join(map(repr, folders))}? If not, add its folder to [node] path"
            remedy += ", or pip install it"
        elif missing:
            remedy = f"{module_name!r} needs {missing!r}: pip install it, or add its folder to [node] path"
        expected = f"a module {module_name!r} that can be imported"
        raise ActorImportError(here.text(expected, got, remedy)) from error
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            remedy = nearest(part, _class_names(found), "it has no class with a name like that")
            expected = f"a class {qualname!r} in {module_name!r}"
            raise ActorImportError(here.text(expected, f"no {part!r} there", remedy)) from None
    return found


def _check_actor_class(at: _At, child: ChildSpec, found: object, *, is_template: bool) -> None:
    from loom.actor.actor import Actor  # here: reading a config needs neither sockets nor numpy

    here = at.key("actor")
    actor = child.actor if isinstance(child.actor, str) else child.name
    expected = f"{actor!r} to be a loom.Actor class"
    if not isinstance(found, type):
        raise ActorImportError(here.text(expected, show(found), "name the class itself"))
    if not issubclass(found, Actor):
        remedy = f"write class {found.__name__}(loom.Actor)"
        raise ActorImportError(here.text(expected, "a class that does not derive from it", remedy))
    if found is Actor:
        raise ActorImportError(here.text(expected, "loom.Actor itself", "name a class of your own"))
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # written in C: the actor's process will see
        return
    try:
        if is_template:  # start_child brings the others
            signature.bind_partial(*child.args, **child.kwargs)
        else:
            signature.bind(*child.args, **child.kwargs)
    except TypeError as error:
        given = [*map(repr, child.args), *(f"{key}={value!r}" for key, value in child.kwargs.items())]
        place = at if not (child.args or child.kwargs) else at.key("args" if child.args else "kwargs")
        expected = f"arguments for {found.__name__}{signature}"
        got = f"({', '.join(given)})"
        raise ActorImportError(place.text(expected, got, f"{error}: mend args and kwargs")) from None


def _class_names(holder: object) -> list[str]:
    return [name for name, value in getattr(holder, "__dict__", {}).items() if isinstance(value, type)]


# JSON


def _describe_supervisor(spec: SupervisorSpec) -> dict[str, Any]:
    return {
        "strategy": spec.strategy,
        "max_restarts": spec.max_restarts,
        "within_s": spec.within_s,
        "auto_shutdown": spec.auto_shutdown,
        "backoff": msgspec.structs.asdict(spec.backoff),
        "children": [_describe_child(child) for child in spec.children],
    }


def _describe_child(child: ChildSpec) -> dict[str, Any]:
    common = {
        "name": child.name,
        "restart": child.restart,
        "shutdown_s": child.shutdown_s,
        "significant": child.significant,
    }
    if child.supervisor is not None:
        return {**common, "supervisor": _describe_supervisor(child.supervisor)}
    actor = child.actor
    return {
        **common,
        "actor": f"{actor.__module__}:{actor.__qualname__}" if isinstance(actor, type) else actor,
        "args": _plain(child.args),
        "kwargs": _plain(child.kwargs),
        "instances": child.instances,
        "routing": child.routing,
        "members": list(child.members),
        "mailbox": msgspec.structs.asdict(child.mailbox),
        "watchdog_s": child.watchdog_s,
        "start_s": child.start_s,
        "limits": msgspec.structs.asdict(child.limits),
        "snapshot": msgspec.structs.asdict(child.snapshot),
    }


def _plain(value: object) -> object:
    """A value as JSON has it; what JSON has no word for (dates, inf, objects) as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
