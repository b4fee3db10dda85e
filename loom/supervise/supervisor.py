"""Supervisor: starts its children in order, restarts those that crash, stops them in reverse order.

The rules are policy.py's, a pure function; here they are applied. Deaths and failed restarts are posted to the
supervisor's own inbox and taken one at a time. Restarts run beside the inbox, so a restart loop, however long its
backoff, never keeps a stop waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from loom.clock import monotonic
from loom.errors import ActorNotFound
from loom.supervise.child import Child
from loom.supervise.policy import Decision, Exit, decide
from loom.supervise.process import Death
from loom.supervise.spec import SupervisorSpec
from loom.telemetry import log
from loom.wire import failures


class _Ended(msgspec.Struct, frozen=True):
    """In the inbox: a child ended, or could not be restarted."""

    child: Child
    death: Death


class Supervisor(Child):
    """A supervisor, which is itself a child of another, or the root.

    `on_exit(self, death)` is called when it gives up, with all of its children stopped.
    """

    def __init__(self, spec: SupervisorSpec, name: str, on_exit: Callable[[Supervisor, Death], None]) -> None:
        self.name = name
        self.spec = spec
        self.restart = "permanent"
        self.children: list[Child] = []
        self.restart_count = 0
        self.on_forget: Callable[[Child], None] = lambda child: None
        self._on_exit = on_exit
        self._history: tuple[float, ...] = ()
        self._inbox: asyncio.Queue[_Ended] = asyncio.Queue()
        self._main: asyncio.Task[None] | None = None
        self._restarting: dict[asyncio.Task[None], list[Child]] = {}

    # --- as a child of its own supervisor ---

    async def start(self) -> Death | None:
        """Start the children in order. When one fails, those before it are stopped again and the start has failed."""
        self.set_state("starting")
        self._history = ()
        self._inbox = asyncio.Queue()
        for child in list(self.children):
            death = await child.start()
            if self.state != "starting":  # stopped meanwhile, and so is the child
                return Death("shutdown", "stopped while it started")
            if death is not None:
                await self._stop_children()
                cause = f"child {child.name!r} {death.text}"
                self.last = Death("start_failed", cause, traceback=death.traceback)
                if self.state == "starting":
                    self.set_state("restarting")
                return self.last
        self.set_state("running")
        self._main = asyncio.get_running_loop().create_task(self._run())
        return None

    async def stop(self, reason: str = "shutdown") -> None:
        """Stop everything below, last started first. Nothing rises again after this."""
        self.set_state("stopping")
        tasks = [*self._restarting, *([self._main] if self._main else [])]
        self._main = None
        await _cancel(tasks)
        await self._stop_children(reason)
        self.set_state("stopped")

    async def _stop_children(self, reason: str = "shutdown") -> None:
        for child in reversed(self.children):
            await child.stop(reason)

    # --- children at run time ---

    async def start_child(self, child: Child) -> Death | None:
        """Add a child at the end and start it; when that fails it is not kept."""
        self.children.append(child)
        death = await child.start()
        if death is not None and child in self.children:
            self._forget(child)
        return death

    async def stop_child(self, child: Child, reason: str = "shutdown") -> None:
        """Stop a child for good and forget it. Raises: ActorNotFound (L1003) when it is not here."""
        if child not in self.children:
            raise ActorNotFound(f"supervisor {self.name!r} has no child {child.name!r}")
        await child.stop(reason)
        self._forget(child)

    def _forget(self, child: Child) -> None:
        if child in self.children:
            self.children.remove(child)
            self.on_forget(child)

    # --- deaths ---

    def child_ended(self, child: Child, death: Death) -> None:
        """A child ended without having been asked to."""
        self._inbox.put_nowait(_Ended(child, death))

    async def _run(self) -> None:
        while True:
            event = await self._inbox.get()
            kind = event.death.kind
            rows = [child.row() for child in self.children]
            decision = decide(self.spec, rows, self._history, Exit(event.child.name, kind), monotonic())  # type: ignore[arg-type]
            self._history = decision.history
            if decision.escalate:
                await self._give_up(event)
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
        overtaken = await self._take_over({*decision.stop, *decision.start})
        for name in decision.stop:
            await by_name[name].stop()
        for one in reversed(overtaken):
            if one.state == "starting":  # its start was cut short: begin it anew
                await one.stop()
                one.set_state("restarting")
        for name in decision.remove:
            self._forget(by_name[name])
        wanted = {*decision.start, *(one.name for one in overtaken if one.state == "restarting")}
        group = [one for one in self.children if one.name in wanted]
        for one in group:
            one.set_state("restarting")
        if group:
            self.restart_count += 1
            task = asyncio.get_running_loop().create_task(self._restart(group, decision.delay_s))
            self._restarting[task] = group
            task.add_done_callback(self._restarting.pop)

    async def _take_over(self, names: set[str]) -> list[Child]:
        """End the restarts under way that touch any of `names`; the children that they were about."""
        found = {task: group for task, group in self._restarting.items() if names & {one.name for one in group}}
        await _cancel(list(found))
        return [one for one in self.children if any(one in group for group in found.values())]

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

    async def _give_up(self, event: _Ended) -> None:
        spec = self.spec
        text = (
            f"supervisor {self.name!r} gave up: more than {spec.max_restarts} "
            f"{'restart' if spec.max_restarts == 1 else 'restarts'} in {spec.within_s:g} s; "
            f"the last was of {event.child.name!r}: {event.death.text}"
        )
        log.error("%s", text)
        self.set_state("stopping")
        self._main = None
        await _cancel(list(self._restarting))
        await self._stop_children()
        self.last = Death("shutdown", text, traceback=event.death.traceback)
        self.set_state("restarting")
        self._on_exit(self, self.last)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
