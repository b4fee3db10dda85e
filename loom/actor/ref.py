"""ActorRef: a name on a node, with the actor's methods on it.

A reference outlives incarnations: it always means whoever bears the name now. It can be sent in messages, and means
the same actor wherever it arrives.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from loom.actor.target import Options
from loom.errors import NoSuchMethod, UsageError

if TYPE_CHECKING:
    from loom.actor.links import Links
    from loom.actor.reply import Reply
    from loom.actor.target import Target

DEDUP_MAX_CHARS = 200


class Method:
    """One method of a remote actor. Calling it sends a message and returns a Reply."""

    __slots__ = ("_name", "_options", "_target")

    def __init__(self, target: Target, name: str, options: Options = Options()) -> None:  # noqa: B008 (immutable)
        self._target = target
        self._name = name
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Reply:
        """Ask: the returned Reply becomes the method's result, its exception, or a stream of its items.

        Raises: NotSendable (L1004), ArenaFull (L3003), MailboxFull (L2003).
        """
        return self._target.call(self._name, args, kwargs, self._options)

    def tell(self, *args: Any, **kwargs: Any) -> None:
        """Send without wanting a reply. The actor's log is where an exception in the handler ends."""
        self._target.tell(self._name, args, kwargs, self._options)

    def options(
        self,
        *,
        timeout_s: float | None = None,
        priority: int | None = None,
        dedup: str = "",
        kill_after_s: float | None = None,
        key: str = "",
    ) -> Method:
        """The same method, called with a deadline `timeout_s` from the call, or a priority from 0 to 100.

        `dedup`: a key of your choice. A call that is made again with the same key does not run again: it gets the
        outcome of the first, or joins it while it runs. An incarnation of the actor remembers its last 10,000 outcomes;
        a new one remembers none, so a call that is repeated over a restart may run once in each.
        `kill_after_s`: when the deadline has passed and the handler still runs that much later, its process is killed,
        and restarted as after any crash. Without it, a handler that is stuck stays so.
        `key`: of a pool with the routing "consistent_hash", the same key goes to the same member.
        Raises: UsageError (L1008) for what makes no sense.
        """
        if not isinstance(dedup, str) or len(dedup) > DEDUP_MAX_CHARS:
            raise UsageError(
                f"options(dedup=...): expected a str of up to {DEDUP_MAX_CHARS} characters, got {dedup!r:.60}"
            )
        if kill_after_s is not None and not kill_after_s >= 0:
            raise UsageError(f"options(kill_after_s={kill_after_s!r}): expected seconds >= 0")
        if kill_after_s is not None and timeout_s is None and self._options.timeout_s is None:
            raise UsageError("options(kill_after_s=...): it counts from the deadline, so give timeout_s, too")
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"options(timeout_s={timeout_s!r}): expected seconds > 0")
        if priority is not None and not (isinstance(priority, int) and 0 <= priority <= 100):
            raise UsageError(f"options(priority={priority!r}): expected an int from 0 to 100")
        return Method(
            self._target,
            self._name,
            Options(
                self._options.timeout_s if timeout_s is None else timeout_s,
                self._options.priority if priority is None else priority,
                dedup or self._options.dedup,
                self._options.kill_after_s if kill_after_s is None else kill_after_s,
                key or self._options.key,
            ),
        )

    def __repr__(self) -> str:
        return f"<method {self._name!r} of actor {self._target.name!r}>"


class ActorRef:
    """A reference to a named actor: `ref.method(args)` asks, `ref.method.tell(args)` tells."""

    __slots__ = ("__dict__", "_methods", "_target")

    def __init__(self, target: Target, methods: frozenset[str] | None = None) -> None:
        self._target = target
        self._methods = methods

    @property
    def name(self) -> str:
        """The actor's name on its node."""
        return self._target.name

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._methods is not None and name not in self._methods:
            near = difflib.get_close_matches(name, self._methods, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(self._methods)) or 'none'}"
            raise AttributeError(str(NoSuchMethod(f"actor {self.name!r} has no public method {name!r}{hint}")))
        method = Method(self._target, name)
        self.__dict__[name] = method  # found without __getattr__ from now on
        return method

    def __repr__(self) -> str:
        return f"<loom.ActorRef {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorRef):
            return NotImplemented
        return self.name == other.name and _endpoint(self) == _endpoint(other)

    def __hash__(self) -> int:
        return hash((self.name, _endpoint(self)))

    def __reduce__(self) -> Any:
        return _rebuild, (_endpoint(self), self.name, self._methods)


def _endpoint(ref: ActorRef) -> str:
    return ref._target.links.node.address.endpoint


def _rebuild(endpoint: str, name: str, methods: frozenset[str] | None) -> ActorRef:
    from loom.actor import links

    found: Links = links.of(endpoint)
    return ActorRef(found.target(name), methods)
