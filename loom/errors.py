"""Every error Loom raises: one base, stable codes, grouped by whose fault it is.

- L1xxx  the caller: a wrong argument, name, config or file
- L2xxx  the peer: another actor, node or client died, refused or answered nonsense
- L3xxx  the environment: memory, disk, file descriptors, permissions
- L9xxx  Loom itself: a bug, please report it

Codes are public and never reused; the text may change in any release. A text says what was expected, what was got,
where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class LoomError(Exception):
    """Base of every error raised by Loom; `code` is stable, `str(error)` starts with it."""

    code: ClassVar[str] = "L9001"

    def __str__(self) -> str:
        return f"{self.code} {super().__str__()}"

    @property
    def text(self) -> str:
        """What it says, without the code."""
        return str(self).removeprefix(f"{self.code} ")


# --- L1xxx: the caller -------------------------------------------------------------------------------------------


class ConfigError(LoomError):
    """A config file or spec is wrong; the text names file, path in it, expected, got and the remedy."""

    code = "L1001"


class NameTaken(LoomError):
    """Another child of this node has that name."""

    code = "L1002"


class ActorNotFound(LoomError):
    """No child of this node has that name."""

    code = "L1003"


class NotSendable(LoomError):
    """An argument or a result cannot be encoded; raised on the side that tried to send it."""

    code = "L1004"


class NoSuchMethod(LoomError):
    """The actor has no public method of that name."""

    code = "L1005"


class ActorImportError(LoomError):
    """`module:Class` cannot be imported, or is no `loom.Actor`."""

    code = "L1006"


class NodeNotFound(LoomError):
    """No running node answers to that name or endpoint."""

    code = "L1007"


class UsageError(LoomError):
    """A call makes no sense as written: wrong order, wrong thread, wrong argument."""

    code = "L1008"


class InputError(LoomError):
    """A file or folder given as input is missing, empty or unreadable."""

    code = "L1009"


class ChildError(LoomError):
    """A supervisor refuses what it was asked to do with a child.

    `reason`, in OTP's words: "already_present" (a child of that name is here, and stopped), "already_started" (and is
    not), "running" or "restarting" (it is not stopped), "simple_one_for_one" (not with a child made from a template),
    "not_running" (the supervisor itself is down, or not up yet). A child that is not here is ActorNotFound.
    """

    code = "L1010"

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


# --- L2xxx: the peer ---------------------------------------------------------------------------------------------


class ActorDied(LoomError):
    """The actor died, or was stopped, before it replied.

    `started`: True when the call had begun to run, False when it had not, None when that cannot be known.
    `cause`: how it died, in words ("killed by SIGKILL", "exit code 3", the traceback of a failed start).
    """

    code = "L2001"

    def __init__(self, text: str, *, started: bool | None = None, cause: str = "") -> None:
        super().__init__(text)
        self.started = started
        self.cause = cause


class CallTimeout(LoomError, TimeoutError):
    """No reply within the time given. The call may still run; its reply will be discarded."""

    code = "L2002"


class MailboxFull(LoomError):
    """The mailbox is full and its policy, or the deadline, forbids waiting longer."""

    code = "L2003"


class Rejected(LoomError):
    """The peer refused the message, and did not run it."""

    code = "L2004"


class RemoteError(LoomError):
    """The handler raised. `type_name`, `message` and `traceback` are the remote exception's; the actor lives on."""

    code = "L2005"

    def __init__(self, type_name: str, message: str, traceback: str = "", actor: str = "") -> None:
        super().__init__(type_name, message, traceback, actor)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.actor = actor

    def __str__(self) -> str:
        where = f" in actor {self.actor!r}" if self.actor else ""
        text = f"{self.code} {self.type_name}{where}: {self.message}"
        return f"{text}\n--- remote traceback ---\n{self.traceback.rstrip()}" if self.traceback else text


class ProtocolError(LoomError):
    """A message does not follow loom/wire/PROTOCOL.md."""

    code = "L2006"


class SchemaMismatch(ProtocolError):
    """A message's schema version is newer than this side reads."""

    code = "L2007"


class NodeDown(LoomError):
    """The node died or was stopped; the text says why when it is known."""

    code = "L2008"


class StaleReference(LoomError):
    """A shared-memory reference is corrupt, out of bounds, revoked, or of an older generation."""

    code = "L2009"


class UpgradeFailed(LoomError):
    """An actor was not upgraded, and goes on as it was: it does not come to rest, or its state cannot be saved."""

    code = "L2010"


# --- L3xxx: the environment --------------------------------------------------------------------------------------


class StartFailed(LoomError):
    """A process, socket or segment could not be created: the operating system refused."""

    code = "L3001"


class RuntimeFolderError(LoomError):
    """The folder that holds the node's sockets cannot be made, or is not ours alone."""

    code = "L3002"


class ArenaFull(LoomError):
    """No room for a block: the node's budget or /dev/shm is used up. The text has the numbers and the remedy."""

    code = "L3003"


class StoreError(LoomError):
    """The store of the actors' state cannot be made, read or written. What was saved before it is untouched."""

    code = "L3004"


# --- L9xxx: Loom itself ------------------------------------------------------------------------------------------


class InternalError(LoomError):
    """Something that cannot happen did. A bug in Loom."""

    code = "L9001"
