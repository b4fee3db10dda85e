"""What a supervisor is told: which children, in which order, and what to do when one of them ends.

Pure data, checked when it is built: a spec that exists is a spec that can be run.

    SupervisorSpec(strategy="rest_for_one", max_restarts=5, within_s=10, children=(
        ChildSpec(Index, args=(64,), name="index"),
        ChildSpec("myapp.work:Worker", name="workers", instances=4, restart="transient"),
        ChildSpec(SupervisorSpec(strategy="one_for_all", children=(...)), name="edge"),
    ))

Children start in the order written and stop in reverse. A child's keys:

    actor       a loom.Actor class, its name as "module:Class", or a SupervisorSpec: a child may be a supervisor
    args kwargs what the class is called with, in the actor's own process
    name        unique on the node. None: the class name in lower case ("supervisor" for a supervisor)
    restart     "permanent" always, "transient" only after an abnormal end, "temporary" never
    shutdown_s  seconds to stop before SIGKILL, or "infinity", or "brutal_kill" (SIGKILL at once). A supervisor waits
                for its own children, each with its own time, so its child spec always reads "infinity", as in OTP
    significant its end may end its supervisor, as that one's auto_shutdown says: "any" when a significant child ends by
                itself, "all" when the last of them does. Never a permanent child, which has no end. Nor is it an end
                to be stopped by hand or with a sibling
    watchdog_s  seconds that a message may run without `ctx.progress()`, and the event loop may do nothing, before the
                actor counts as hung: its stack is taken, it is killed, and that is an abnormal end (watchdog.py).
                None: nobody looks. What `async` handlers wait for does not count
    start_s     the same for `__init__` and `on_start`. None: as long as it takes, as in OTP
    limits      a LimitsSpec: what it may use of the machine
    snapshot    when the state of an actor that defines `snapshot` and `restore` is saved: loom/actor/snapshot.py
    instances   how many of it. More than 1: `workers` stands for the children workers.0, workers.1 ...
    routing     which of these a message to `workers` goes to: "round_robin", "least_loaded", "consistent_hash" (by
                options(key=...)), or "broadcast", to all. What it means: loom/actor/pool.py

A simple_one_for_one supervisor has one child spec, the template, and no child to begin with. `start_child` adds one,
with further arguments behind the template's; a child that ends and is not restarted is forgotten.

    SupervisorSpec(strategy="simple_one_for_one", children=(ChildSpec(Session, args=(db,), restart="temporary"),))

A name has 1 to 64 letters, digits, `.`, `_` and `-` (ASCII), does not start with a dot, and is neither "node" nor
"root", which is the name of the node's first supervisor.
What restarts when, and when a supervisor gives up: policy.py.

"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loom.actor.limits import Limits
from loom.actor.snapshot import Cadence
from loom.errors import ConfigError

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one"]
AutoShutdown = Literal["never", "any", "all"]
Routing = Literal["round_robin", "least_loaded", "consistent_hash", "broadcast"]
MailboxPolicy = Literal["wait", "refuse", "drop_oldest"]
OnDeath = Literal["dead_letter", "hand_on"]
Shutdown = float | Literal["infinity", "brutal_kill"]

RESTARTS = ("permanent", "transient", "temporary")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one")
AUTO_SHUTDOWNS = ("never", "any", "all")
SHUTDOWNS = ("infinity", "brutal_kill")
ROUTINGS = ("round_robin", "least_loaded", "consistent_hash", "broadcast")
MAILBOX_POLICIES = ("wait", "refuse", "drop_oldest")
ON_DEATHS = ("dead_letter", "hand_on")

NAME_MAX_CHARS = 64
ROOT = "root"
"""Name of a node's first supervisor."""
RESERVED_NAMES = ("node", ROOT)
INSTANCES_MAX = 10_000
"""A guard against a slip of the finger: each instance is a process."""

MEMORY_MIN_BYTES = 16 * 2**20
"""Less would kill an actor that has nothing: it takes some 5 MiB, and NumPy's first calls as much again."""
OPEN_FILES_MIN = 64

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_LATER = "not available yet"


class SpecError(ConfigError):
    """A ConfigError (L1001) that keeps its parts, so that a config file's reader can say where in the file it is.

    `owner` is the spec's class, `field` the path in it: ("SupervisorSpec", "children[1].name").
    """

    def __init__(self, owner: str, field: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(owner, field, expected, got, remedy)
        self.owner = owner
        self.field = field
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.code} {self.owner}.{self.field}: expected {self.expected}, got {self.got}: {self.remedy}"


class MailboxSpec(msgspec.Struct, frozen=True):
    """A child's mailbox: at most `capacity` messages wait for it, on their way or there, from all senders together.

    `policy`, when it is full: "wait", the sender does; "refuse", the sender gets MailboxFull; "drop_oldest", the oldest
    goes, and if it was a call, its caller gets MailboxFull. `on_death`, what becomes of messages that had not begun
    when the actor dies: "dead_letter", or "hand_on" to its next incarnation, in order, ahead of newer ones.
    Raises: ConfigError for a capacity below 1, or a word that is none of these.
    """

    capacity: int = 1000
    policy: MailboxPolicy = "wait"
    on_death: OnDeath = "dead_letter"

    def __post_init__(self) -> None:
        _check_int(self, "capacity", minimum=1, maximum=2**31)
        _check_word(self, "policy", MAILBOX_POLICIES)
        _check_word(self, "on_death", ON_DEATHS)


class LimitsSpec(Limits, frozen=True):
    """What a child may use of the machine; None leaves it as the node has it. What it starts has the same again.

    memory_bytes       it is killed when it takes more ("memory_limit"); how exactly: loom/supervise/limits.py
    memory_soft_bytes  a warning in log and stats, once for each crossing
    cpu_s              whole seconds of CPU time an incarnation; then SIGXCPU, a second later SIGKILL ("cpu_limit")
    open_files         descriptors; an actor needs some 30 for itself. Beyond it, `open` raises OSError in the actor
    nice               -20 (first) to 19 (last); below the node's own takes privileges
    cpus               the CPUs that it may run on, as (0, 1)

    Raises: ConfigError for what is out of range, memory_soft_bytes above memory_bytes, or a CPU twice.
    """

    if TYPE_CHECKING:  # what may be passed is wider than what is kept

        def __init__(
            self,
            memory_bytes: int | None = None,
            memory_soft_bytes: int | None = None,
            cpu_s: int | None = None,
            open_files: int | None = None,
            nice: int | None = None,
            cpus: Sequence[int] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        least = {"memory_bytes": MEMORY_MIN_BYTES, "memory_soft_bytes": 1, "cpu_s": 1, "open_files": OPEN_FILES_MIN}
        for field, minimum in least.items():
            if getattr(self, field) is not None:
                _check_int(self, field, minimum=minimum)
        if self.nice is not None:
            _check_int(self, "nice", minimum=-20, maximum=19)
        hard, soft = self.memory_bytes, self.memory_soft_bytes
        if hard is not None and soft is not None and soft > hard:
            raise _wrong(self, "memory_soft_bytes", f"at most memory_bytes ({hard})", "give the smaller one here")
        if self.cpus is not None:
            self._check_cpus()

    def _check_cpus(self) -> None:
        cpus = self.cpus
        whole = isinstance(cpus, (tuple, list)) and all(type(cpu) is int and cpu >= 0 for cpu in cpus)
        if not cpus or not whole or len(set(cpus)) != len(cpus):
            raise _wrong(self, "cpus", "a list of CPU numbers, each once", "write it as in cpus=(0, 1)")
        _set(self, "cpus", tuple(cpus))


class BackoffSpec(msgspec.Struct, frozen=True):
    """How long to wait before a restart: base_s, then factor times as long for each further one, at most cap_s.

    After reset_after_s without a restart, counted from the end of the last one's delay, it begins anew; None: after
    the supervisor's within_s. base_s=0: no waiting. jitter=0.2 takes up to 20 % off each delay, so that what died
    together does not come back together.

    Raises: ConfigError unless base_s >= 0, factor >= 1, cap_s >= base_s, 0 <= jitter <= 1 and reset_after_s > 0.
    """

    base_s: float = 0.0
    factor: float = 2.0
    cap_s: float = 30.0
    jitter: float = 0.0
    reset_after_s: float | None = None

    def __post_init__(self) -> None:
        _set(self, "base_s", _number(self, "base_s", "a number of seconds >= 0", lambda n: n >= 0))
        _set(self, "factor", _number(self, "factor", "a number >= 1", lambda n: n >= 1))
        _set(self, "jitter", _number(self, "jitter", "a number from 0 to 1", lambda n: 0 <= n <= 1))
        base_s = self.base_s
        cap = f"a number of seconds >= base_s ({base_s:g})"
        _set(self, "cap_s", _number(self, "cap_s", cap, lambda n: n >= base_s))
        if self.reset_after_s is not None:
            expected = "a number of seconds > 0, or nothing"
            _set(self, "reset_after_s", _number(self, "reset_after_s", expected, lambda n: n > 0))


class SnapshotSpec(Cadence, frozen=True):
    """When to save the state of an actor that defines `snapshot` and `restore`; loom/actor/snapshot.py says it all.

    every_messages: after so many messages, before the last of them is answered. every_s: seconds. at_stop: when it is
    stopped in order. None: not by that. `self.ctx.save()` saves at any time.

    Raises: ConfigError unless every_messages >= 1 and every_s > 0, and at_stop is a truth value.
    """

    def __post_init__(self) -> None:
        if self.every_messages is not None:
            _check_int(self, "every_messages", minimum=1)
        if self.every_s is not None:
            _set(self, "every_s", _number(self, "every_s", "a number of seconds > 0", lambda n: n > 0))
        if not isinstance(self.at_stop, bool):
            raise _wrong(self, "at_stop", "true or false", "write it without quotes")


class ChildSpec(msgspec.Struct, frozen=True):
    """One child, or with `instances` several alike. The keys are in this module's docstring.

    `args` is kept as a tuple, `kwargs` as a copy, and `name` is never None once the spec is built.

    Raises: ConfigError naming the field, what was expected, what was got, and the remedy.
    """

    actor: type[Any] | str | SupervisorSpec
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    name: str = None  # type: ignore[assignment]  # None is what a caller leaves out; what is kept is a str
    restart: Restart = "permanent"
    shutdown_s: Shutdown = 5.0
    significant: bool = False
    instances: int = 1
    watchdog_s: float | None = None
    mailbox: MailboxSpec = msgspec.field(default_factory=MailboxSpec)
    limits: LimitsSpec = msgspec.field(default_factory=LimitsSpec)
    start_s: float | None = None
    snapshot: SnapshotSpec = msgspec.field(default_factory=SnapshotSpec)
    routing: Routing = "round_robin"

    if TYPE_CHECKING:  # what may be passed is wider than what is kept

        def __init__(
            self,
            actor: type[Any] | str | SupervisorSpec,
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] = ...,
            name: str | None = None,
            restart: Restart = "permanent",
            shutdown_s: Shutdown = 5.0,
            significant: bool = False,
            instances: int = 1,
            watchdog_s: float | None = None,
            mailbox: MailboxSpec = ...,
            limits: LimitsSpec = ...,
            start_s: float | None = None,
            snapshot: SnapshotSpec = ...,
            routing: Routing = "round_robin",
        ) -> None: ...

    def __post_init__(self) -> None:
        _check_actor(self)
        if not isinstance(self.args, (tuple, list)):
            raise _wrong(self, "args", "a list of values", "put the values in brackets, as in [64]")
        _set(self, "args", tuple(self.args))
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(key, str) for key in self.kwargs):
            raise _wrong(self, "kwargs", "a table of values by parameter name", 'write kwargs={"name": value}')
        _set(self, "kwargs", dict(self.kwargs))
        _check_word(self, "restart", RESTARTS)
        _check_int(self, "instances", minimum=1, maximum=INSTANCES_MAX)
        _check_word(self, "routing", ROUTINGS)
        if self.name is None:
            _set(self, "name", default_name(self.actor))
        check_name(
            "ChildSpec", "name", self.name, longest=len(str(self.instances - 1)) + 1 if self.instances > 1 else 0
        )
        self._check_shutdown()
        self._check_significant()
        for field in ("watchdog_s", "start_s"):
            if getattr(self, field) is not None:
                _set(self, field, _number(self, field, "a number of seconds > 0", lambda n: n > 0))
        _check_kind(self, "mailbox", MailboxSpec)
        _check_kind(self, "limits", LimitsSpec)
        _check_kind(self, "snapshot", SnapshotSpec)
        if self.supervisor is not None:
            self._check_supervisor_child()

    def _check_shutdown(self) -> None:
        if isinstance(self.shutdown_s, str):
            _check_word(self, "shutdown_s", SHUTDOWNS, also="a number of seconds >= 0")
        else:
            expected = 'a number of seconds >= 0, "infinity" or "brutal_kill"'
            _set(self, "shutdown_s", _number(self, "shutdown_s", expected, lambda n: n >= 0))

    def _check_significant(self) -> None:
        if not isinstance(self.significant, bool):
            raise _wrong(self, "significant", "true or false", "write it without quotes")
        if self.significant and self.restart == "permanent":
            remedy = "set restart to 'transient' or 'temporary': a permanent child is restarted whenever it ends"
            raise _wrong(self, "significant", "false, as restart is 'permanent'", remedy)

    def _check_supervisor_child(self) -> None:
        for field in ("args", "kwargs"):
            if getattr(self, field):
                raise _wrong(self, field, "nothing, as the child is a supervisor", "give it to one of its children")
        if self.instances != 1:
            raise _wrong(self, "instances", "1, as the child is a supervisor", "set instances on its children")
        for field, default in (
            ("mailbox", MailboxSpec()),
            ("watchdog_s", None),
            ("start_s", None),
            ("limits", LimitsSpec()),
            ("snapshot", SnapshotSpec()),
        ):
            if getattr(self, field) != default:
                raise _wrong(self, field, "nothing, as the child is a supervisor", "set it on its children")
        if self.shutdown_s not in (5.0, "infinity"):
            raise _wrong(
                self, "shutdown_s", '"infinity", as the child is a supervisor', "set shutdown_s on its children"
            )
        _set(self, "shutdown_s", "infinity")

    @property
    def supervisor(self) -> SupervisorSpec | None:
        """The spec of the supervisor that this child is, None for an actor."""
        return self.actor if isinstance(self.actor, SupervisorSpec) else None

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the children it stands for, in start order: ("index",), or ("workers.0", "workers.1", ...)."""
        if self.instances == 1:
            return (self.name,)
        return tuple(f"{self.name}.{number}" for number in range(self.instances))


class SupervisorSpec(msgspec.Struct, frozen=True):
    """A supervisor and its children: it gives up when it has restarted more than max_restarts times within within_s.

    auto_shutdown: whether the end of a significant child ends it, see this module's docstring. OTP's own words
    "any_significant" and "all_significant" are taken, too, and kept as "any" and "all".

    Raises: ConfigError naming the field, what was expected, what was got, and the remedy; also when two children
        anywhere below share a name, a child is significant for nothing, or a template is more than one actor.
    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 1
    within_s: float = 5.0
    children: tuple[ChildSpec, ...] = ()
    auto_shutdown: AutoShutdown = "never"
    backoff: BackoffSpec = msgspec.field(default_factory=BackoffSpec)

    def __post_init__(self) -> None:
        _check_word(self, "strategy", STRATEGIES)
        _check_int(self, "max_restarts", minimum=0)
        _set(self, "within_s", _number(self, "within_s", "a number of seconds > 0", lambda n: n > 0))
        if self.auto_shutdown in ("any_significant", "all_significant"):
            _set(self, "auto_shutdown", self.auto_shutdown.removesuffix("_significant"))
        _check_word(self, "auto_shutdown", AUTO_SHUTDOWNS)
        _check_kind(self, "backoff", BackoffSpec)
        if not isinstance(self.children, (tuple, list)):
            raise _wrong(self, "children", "a list of ChildSpec", "write children=(ChildSpec(...),)")
        for index, child in enumerate(self.children):
            if not isinstance(child, ChildSpec):
                remedy = "wrap it: ChildSpec(...)"
                raise SpecError("SupervisorSpec", f"children[{index}]", "a ChildSpec", show(child), remedy)
        _set(self, "children", tuple(self.children))
        for index, child in enumerate(self.children):
            check_significant(self.auto_shutdown, child.significant, f"children[{index}].")
        if self.strategy == "simple_one_for_one":
            _check_template(self)
        _check_unique(self)


def walk(spec: SupervisorSpec, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], ChildSpec]]:
    """Every child spec of the tree in start order, a supervisor before its own children.

    Yields: (place, child); place (0, 2) is `spec.children[0].supervisor.children[2]`.
    """
    for index, child in enumerate(spec.children):
        yield (*place, index), child
        if child.supervisor is not None:
            yield from walk(child.supervisor, (*place, index))


def is_template(spec: SupervisorSpec, place: Sequence[int]) -> bool:
    """Whether the child at that place of the tree, as `walk` has it, is a simple_one_for_one supervisor's template."""
    for index in place[:-1]:
        below = spec.children[index].supervisor
        assert below is not None
        spec = below
    return spec.strategy == "simple_one_for_one"


def check_significant(auto_shutdown: AutoShutdown, significant: bool, where: str = "") -> None:
    """Refuse a child that is significant to a supervisor that does not care. Raises: ConfigError."""
    if significant and auto_shutdown == "never":
        expected = "false, as the supervisor's auto_shutdown is 'never'"
        remedy = "set auto_shutdown to 'any' or 'all', or leave significant out"
        owner = "SupervisorSpec" if where else "ChildSpec"
        raise SpecError(owner, f"{where}significant", expected, show(significant), remedy)


def default_name(actor: type[Any] | str | SupervisorSpec) -> str:
    """The name of a child that was given none: `Index` and "myapp.index:Index" are both "index"."""
    if isinstance(actor, SupervisorSpec):
        return "supervisor"
    full = actor if isinstance(actor, str) else actor.__name__
    return re.split(r"[:.]", full)[-1].lower()


def check_name(
    owner: str, field: str, name: object, *, longest: int = 0, reserved: Sequence[str] = RESERVED_NAMES
) -> None:
    """Refuse what is no name: the rule is in this module's docstring. `longest` chars must be left for a suffix.

    Raises: ConfigError.
    """
    most = NAME_MAX_CHARS - longest
    expected = f"a name of 1 to {most} letters, digits, '.', '_' or '-' that does not start with a dot"
    if not isinstance(name, str):
        raise SpecError(owner, field, expected, show(name), "write it as a string")
    if name in reserved:
        raise SpecError(owner, field, "a name that is not reserved", show(name), "choose another name")
    if len(name) > most:
        raise SpecError(owner, field, expected, f"{show(name)} ({len(name)} characters)", "choose a shorter name")
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")
        remedy = f"did you mean {near!r}?" if near.strip("_") and near not in reserved else "choose another name"
        raise SpecError(owner, field, expected, show(name), remedy)


def show(value: object) -> str:
    """A value as an error text quotes it: one line, short, with its type unless it is a string."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    try:
        text = " ".join(_short.repr(value).split())
    except Exception:  # an int of 5,000 digits, or a __repr__ that raises
        return f"a value of type {type(value).__name__}"
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"


def nearest(word: object, known: Iterable[str], otherwise: str) -> str:
    """The remedy for a misspelt word: "did you mean 'restart'?", or `otherwise` when nothing comes near."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6) if isinstance(word, str) else []
    return f"did you mean {by_lower[near[0]]!r}?" if near else otherwise


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlong = 40
_set = msgspec.structs.force_setattr  # a frozen spec is normalised once, while it is being built


def _wrong(spec: msgspec.Struct, field: str, expected: str, remedy: str) -> SpecError:
    return SpecError(type(spec).__name__, field, expected, show(getattr(spec, field)), remedy)


def _check_word(
    spec: msgspec.Struct, field: str, known: Sequence[str], *, later: Sequence[str] = (), also: str = ""
) -> None:
    word = getattr(spec, field)
    if isinstance(word, str) and word in known:
        return
    words = [*known, also] if also else list(known)
    quoted = [item if item == also else repr(item) for item in words]
    expected = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    if isinstance(word, str) and word in later:
        raise _wrong(spec, field, expected, f"{word!r} is {_LATER}, use {known[0]!r}")
    otherwise = f"write {known[0]!r}" if len(words) == 1 else "write one of those"
    raise _wrong(spec, field, expected, nearest(word, known, otherwise))


def _check_int(spec: msgspec.Struct, field: str, *, minimum: int, maximum: int | None = None) -> None:
    number = getattr(spec, field)
    expected = f"a whole number >= {minimum}" if maximum is None else f"a whole number from {minimum} to {maximum}"
    if not isinstance(number, int) or isinstance(number, bool):
        raise _wrong(spec, field, expected, f"write the number, such as {max(minimum, 1)}, without quotes")
    if number < minimum:
        raise _wrong(spec, field, expected, f"the least is {minimum}")
    if maximum is not None and number > maximum:
        raise _wrong(spec, field, expected, f"the most is {maximum}")


def _number(spec: msgspec.Struct, field: str, expected: str, holds: Callable[[float], bool]) -> float:
    """The field as a finite float. Raises: ConfigError when it is none, or `holds` says no."""
    value = getattr(spec, field)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(spec, field, expected, "write the number, without quotes or unit")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not holds(number):
        raise _wrong(spec, field, expected, "write a finite number in that range")
    return number


def _check_unset(spec: msgspec.Struct, field: str, default: object) -> None:
    if getattr(spec, field) is not default:
        raise _wrong(spec, field, f"no {field}", f"{field} is {_LATER}, leave it out")


def _check_kind(spec: msgspec.Struct, field: str, kind: type[msgspec.Struct]) -> None:
    if not isinstance(getattr(spec, field), kind):
        raise _wrong(spec, field, f"a {kind.__name__}", f"write {field}={kind.__name__}(...)")


def _check_actor(spec: ChildSpec) -> None:
    actor = spec.actor
    if isinstance(actor, str):
        module, colon, name = actor.partition(":")
        if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            return
        module, _, name = actor.rpartition(".")
        remedy = 'write it as in "myapp.index:Index"'
        if ":" not in actor and all(part.isidentifier() for part in actor.split(".")) and module:
            remedy = f'did you mean "{module}:{name}"?'
        raise _wrong(spec, "actor", '"module:Class"', remedy)
    if not isinstance(actor, (type, SupervisorSpec)):
        expected = 'a loom.Actor class, "module:Class" or a SupervisorSpec'
        kind = type(actor).__name__
        raise _wrong(spec, "actor", expected, f"pass a class and its arguments, as in ChildSpec({kind}, args=(...))")


def _check_template(spec: SupervisorSpec) -> None:
    expected = "one child spec, the template, as strategy is 'simple_one_for_one'"
    if len(spec.children) != 1:
        got = "none" if not spec.children else f"{len(spec.children)} of them"
        raise SpecError("SupervisorSpec", "children", expected, got, "leave one, or choose another strategy")
    (template,) = spec.children
    if template.supervisor is not None:
        remedy = "names are unique on a node, so no two supervisors can have the same children: choose another strategy"
        raise SpecError("SupervisorSpec", "children[0].actor", "an actor, as it is a template", "a supervisor", remedy)
    if template.instances != 1:
        got = show(template.instances)
        remedy = "start as many as you like with start_child"
        raise SpecError("SupervisorSpec", "children[0].instances", "1, as it is a template", got, remedy)


def _check_unique(spec: SupervisorSpec) -> None:
    owners: dict[str, ChildSpec] = {}
    for place, child in walk(spec):
        for name in dict.fromkeys((child.name, *child.members)):  # the name of a group of instances is taken, too
            if name not in owners:
                owners[name] = child
                continue
            got = f"{name!r} twice"
            group = next((one for one in (child, owners[name]) if one.name != name), None)
            if group is not None:
                got += f", once as a member of {group.name!r} (instances = {group.instances})"
            where = ".actor.".join(f"children[{index}]" for index in place)
            expected = "a name that no other child of the node has"
            raise SpecError("SupervisorSpec", f"{where}.name", expected, got, "give each child its own name")
