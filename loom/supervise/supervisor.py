"""Supervisor: starts its children in order, restarts those that crash, stops them in reverse order.

The rules are policy.py's, a pure function; here they are applied. Deaths and failed restarts are posted to the
supervisor's own inbox and taken one at a time. Restarts run beside the inbox, so a restart loop, however long its
backoff or hanging its start, never keeps a stop waiting.

What people ask of a child at run time is done at once, and what the inbox still has about that child is then old news:
each child's `round` tells. As in OTP, a supervisor that is started anew has the children of its spec again: those added
at run time are gone, those deleted are back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from loom.actor.death import OVERTAKEN, Death
from loom.clock import monotonic
from loom.errors import ActorNotFound, ChildError, LoomError
from loom.supervise.child import Child
from loom.supervise.policy import ALIVE, Decision, Exit, Rules, decide
from loom.telemetry import log
from loom.wire import failures


class _Ended(msgspec.Struct, frozen=True):
    """In the inbox: a child ended, or could not be restarted. `round` is the child's when it was posted."""

    child: Child
    death: Death
    round: int


class Supervisor(Child):
    """A supervisor, which is itself a child of another, or the root.

    `on_exit(self, death)` is called when it ends by itself, with all of its children stopped: because it gave up, or
    because of its auto_shutdown. Only then is the exit code of that death 0, and only if the last child ended well.
    `on_forget` and `on_revive` are told of children that will not start again, and of those that will after all;
    `on_death` of the supervisor's own end, whatever the reason.
    """

    def __init__(self, rules: Rules, name: str, on_exit: Callable[[Supervisor, Death], None]) -> None:
        self.name = name
        self.rules = rules
        self.restart = "permanent"
        self.children: list[Child] = []
        """In start order."""
        self.planned: list[Child] = []
        """Those of its spec, which it has whenever it is started."""
        self.restart_count = 0
        self.on_forget: Callable[[Child], None] = lambda child: None
        self.on_revive: Callable[[Child], None] = lambda child: None
        self.on_death: Callable[[Child, Death], None] = lambda child, death: None
        self._on_exit = on_exit
        self._history: tuple[float, ...] = ()
        self._inbox: asyncio.Queue[_Ended] = asyncio.Queue()
        self._main: asyncio.Task[None] | None = None
        self._restarting: dict[asyncio.Task[None], list[Child]] = {}

    def add_planned(self, child: Child) -> None:
        """Add a child of its spec, before it is started for the first time."""
        self.planned.append(child)
        self.children.append(child)

    @property
    def is_simple(self) -> bool:
        """Whether all of its children are made from one template."""
        return self.rules.strategy == "simple_one_for_one"

    # --- as a child of its own supervisor ---

    async def start(self) -> Death | None:
        """Start the children in order. When one fails, those before it are stopped again and the start has failed."""
        self.incarnation += 1
        mine = self.incarnation
        self.set_state("starting")
        self._history = ()
        self._inbox = asyncio.Queue()
        try:
            self._restore_children()
        except LoomError as error:
            return self._failed(Death("start_failed", str(error), how="start_failed"))
        for child in list(self.children):
            death = await child.start()
            if not self.is_starting(mine):  # stopped meanwhile, and so is the child
                return OVERTAKEN
            if death is not None and death is not OVERTAKEN:
                await self._stop_children()
                if not self.is_starting(mine):
                    return OVERTAKEN
                cause = f"child {child.name!r} {death.text}"
                return self._failed(msgspec.structs.replace(death, kind="start_failed", text=cause))
            self._drop_unkept(child)
        self.set_state("running")
        self._main = asyncio.get_running_loop().create_task(self._run())
        return None

    def _failed(self, death: Death) -> Death:
        self.last = death
        self.set_state("restarting")
        self.on_death(self, death)
        return death

    def _restore_children(self) -> None:
        """Have the children of the spec again. Raises: NameTaken (L1002), StartFailed (L3001)."""
        if self.incarnation > 1:
            self._forget_all(child for child in self.children if child not in self.planned)
            for child in self.planned:
                if child not in self.children:
                    self.on_revive(child)
                    self.children.append(child)
            self.children.sort(key=self.planned.index)

    async def _stop(self, reason: str) -> None:
        """Stop everything below, last started first. Nothing rises again after this."""
        tasks = [*self._restarting, *([self._main] if self._main else [])]
        self._main = None
        await _cancel(tasks)
        await self._stop_children(reason)
        self._forget_all(child for child in self.children if child not in self.planned)
        self.last = Death("shutdown", "stopped", how="stopped")
        self.set_state("stopped")
        self.on_death(self, self.last)

    async def _stop_children(self, reason: str = "shutdown") -> None:
        """In reverse order, each when the one after it is gone; those of a template all at once, as in OTP."""
        if self.is_simple:
            await asyncio.gather(*(child.stop(reason) for child in self.children))
            return
        for child in reversed(self.children):
            await child.stop(reason)

    # --- children at run time ---

    def add(self, child: Child) -> None:
        """Add a child at the end; `start_child` is to follow. Raises: ChildError (L1010) when this one is down."""
        self.check_running()
        self.children.append(child)
        child.set_state("starting")  # who asks for it now waits for its start

    async def start_child(self, child: Child) -> Death | None:
        """Start a child that was added; when that fails, or a child that is not to be kept ignores it, forget it."""
        if child not in self.children or child.state != "starting":
            return OVERTAKEN
        death = await child.start()
        if death is not None and death is not OVERTAKEN:
            self._forget(child)
        self._drop_unkept(child)
        return death

    async def stop_child(self, child: Child, reason: str = "shutdown") -> None:
        """Stop a child. Its row stays, for `restart_child`; not a temporary child's, nor one made from a template.

        Raises: ActorNotFound (L1003) when it is not here.
        """
        self._check_here(child)
        child.round += 1
        await child.stop(reason)
        self._drop_unkept(child)

    async def restart_child(self, child: Child) -> Death | None:
        """Start a child that is stopped; when that fails it stays stopped.

        Raises: ActorNotFound (L1003), ChildError (L1010) when it is not stopped, or made from a template.
        """
        self.check_running()
        self._check_stopped(child, "restart_child")
        child.round += 1
        death = await child.start()
        if death is not None and child.state == "restarting":
            child.set_state("stopped")
        return death

    def delete_child(self, child: Child) -> None:
        """Forget a child that is stopped. Raises: as restart_child."""
        self._check_stopped(child, "delete_child")
        self._forget(child)

    async def remove_child(self, child: Child, reason: str = "shutdown") -> None:
        """Stop a child for good and forget it. Raises: ActorNotFound (L1003) when it is not here."""
        await self.stop_child(child, reason)
        while child in self.children and child.state != "stopped":  # a sibling's death was faster, and took it along
            await self.stop_child(child, reason)
        self._forget(child)

    def check_running(self) -> None:
        """Raises: ChildError (L1010) unless it takes children now."""
        if self.state not in ("starting", "running"):
            raise ChildError(
                f"supervisor {self.name!r} is {self.state}: it takes no children now", reason="not_running"
            )

    def _check_here(self, child: Child) -> None:
        if child not in self.children:
            raise ActorNotFound(f"supervisor {self.name!r} has no child {child.name!r}")

    def _check_stopped(self, child: Child, verb: str) -> None:
        self._check_here(child)
        if self.is_simple:
            text = f"{verb} of {child.name!r}: expected a child with a spec of its own, supervisor {self.name!r} is a "
            raise ChildError(text + "simple_one_for_one: use start_child and stop_child", reason="simple_one_for_one")
        if child.state != "stopped":
            reason = "restarting" if child.state == "restarting" else "running"
            text = f"{verb} of {child.name!r}: expected a child that is stopped, this one is {child.state}"
            raise ChildError(f"{text}: stop_child comes first", reason=reason)

    def _drop_unkept(self, child: Child) -> None:
        """What is stopped, or did not want to start, keeps its row, unless it is temporary, or made from a template."""
        if child.state == "stopped" and (child.restart == "temporary" or self.is_simple):
            self._forget(child)

    def _forget(self, child: Child) -> None:
        if child in self.children:
            self.children.remove(child)
            child.round += 1
            child.set_state("stopped")
            self.on_forget(child)
            if child not in self.planned:
                child.empty()

    def _forget_all(self, children: Iterable[Child]) -> None:
        for child in list(children):
            self._forget(child)

    # --- deaths ---

    def child_ended(self, child: Child, death: Death) -> None:
        """A child ended without having been asked to."""
        self._inbox.put_nowait(_Ended(child, death, child.round))

    async def _run(self) -> None:
        while True:
            event = await self._inbox.get()
            if event.round != event.child.round or event.child not in self.children:
                continue  # it was stopped, or taken along by a sibling, after this was posted
            rows = [child.row() for child in self.children]
            exit = Exit(event.child.name, event.death.kind)  # type: ignore[arg-type]
            decision = decide(self.rules, rows, self._history, exit, monotonic())
            self._history = decision.history
            if decision.escalate or decision.auto_shutdown:
                await self._end(event, decision)
                return
            try:
                await self._apply(event, decision)
            except Exception as error:  # a bug of ours must not end the supervision of all the others
                log.error("supervisor %r: %s", self.name, failures.traceback_of(error))

    async def _apply(self, event: _Ended, decision: Decision) -> None:
        child, death = event.child, event.death
        if child.name in decision.start:
            log.warning("%s: %s; restarting %s", child.name, death.text, ", ".join(decision.start))
        elif child.state == "restarting":
            child.set_state("stopped")
            log.info("%s: %s; not restarted (%s)", child.name, death.text, child.restart)
        by_name = {one.name: one for one in self.children}
        wanted = {by_name[name] for name in decision.start}
        for one in wanted | {by_name[name] for name in (*decision.stop, *decision.remove)}:
            one.round += 1
        for one in wanted:
            if one.state not in ALIVE:
                one.set_state("restarting")
        rounds = {one: one.round for one in wanted}
        await self._take_over(wanted)
        for name in decision.stop:
            await by_name[name].stop()
        for name in decision.remove:
            self._forget(by_name[name])
        group = [one for one in self.children if rounds.get(one) == one.round]  # else stopped by hand meanwhile
        for one in group:
            one.round += 1  # what died while its siblings were being stopped is started again all the same
            one.set_state("restarting")
        if group:
            self.restart_count += 1
            task = asyncio.get_running_loop().create_task(self._restart(group, decision.delay_s))
            self._restarting[task] = group
            task.add_done_callback(self._restarting.pop)

    async def _take_over(self, wanted: set[Child]) -> None:
        """End the restarts under way of any of `wanted`; what such a restart had left to do is part of this one.

        For under rest_for_one the later death is of a child that the restart had started, or comes before it.
        """
        await _cancel([task for task, group in self._restarting.items() if not wanted.isdisjoint(group)])

    async def _restart(self, group: list[Child], delay_s: float) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        for child in group:
            if child.state != "restarting":
                continue
            death = await child.start()
            if death is not None and child.state == "restarting":
                self.child_ended(child, death)
                return
            self._drop_unkept(child)

    async def _end(self, event: _Ended, decision: Decision) -> None:
        """Give up, or shut down because a significant child ended. Whoever stops it meanwhile is not told."""
        child, death, rules = event.child, event.death, self.rules
        if decision.escalate:
            text = (
                f"supervisor {self.name!r} gave up: more than {rules.max_restarts} "
                f"{'restart' if rules.max_restarts == 1 else 'restarts'} in {rules.within_s:g} s; "
                f"the last was of {child.name!r}: {death.text}"
            )
            log.error("%s", text)
        else:
            text = f"supervisor {self.name!r} has shut itself down: its significant child {child.name!r} {death.text}"
            log.info("%s", text)
        is_good = decision.auto_shutdown and death.kind in ("normal", "shutdown")
        self.set_state("stopping")
        self._main = None
        stopping = self._stopping
        await _cancel(list(self._restarting))
        await self._stop_children()
        if self._stopping is not stopping:
            return
        self._forget_all(child for child in self.children if child not in self.planned)
        self.last = msgspec.structs.replace(death, kind="shutdown", text=text, exit_code=0 if is_good else 1)
        self.set_state("restarting")
        self.on_death(self, self.last)
        self._on_exit(self, self.last)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
