"""Carrying plans out: intent on disk, then the acts; and resolving by a fresh look whatever was cut short.

A failed step, a lost monitor, a killed QEMU and a killed daemon all end in ``_resolve``: look, ask ``plan.recovery``, then finish
or take back. There is one such path, so the one that tests cut everywhere is the one that runs every day.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import structlog
import trio

from qmpsnap import config, errors
from qmpsnap.act import execute
from qmpsnap.model import chain, images
from qmpsnap.own import claims, link, operations, seeing
from qmpsnap.plan import gate, migration, recovery, steps
from qmpsnap.talk import journal, store

_log = structlog.stdlib.get_logger(__name__)


@attrs.frozen
class Home:
    """What all domains share. ``changed`` is told the name of a domain that changed; ``graph`` looks at every image."""

    store: store.Store
    journal: journal.Journal
    operations: operations.Operations
    settings: config.Settings
    changed: Callable[[str], None]
    graph: Callable[[], Awaitable[images.Graph]]
    claims: claims.Claims = attrs.field(factory=claims.Claims)


class Carrier:
    """The open operations of one domain; ``turn`` is held while something is decided or done that nothing else may run beside."""

    def __init__(self, home: Home, domain: str, records: execute.Records, monitor: link.Link) -> None:
        self.turn = trio.Lock()
        self.nursery: trio.Nursery | None = None
        self._home = home
        self._domain = domain
        self._records = records
        self._link = monitor
        self._log = _log.bind(domain=domain)
        self._open: dict[str, operations.Operation] = {}
        # The QEMU that each operation was last carried out on.
        self._on: dict[str, execute.Machine | None] = {}
        #: Journal entries that cannot be read.
        self.blocked: list[errors.Error] = []

    @property
    def open(self) -> list[operations.Operation]:
        """Operations that have begun and not ended, oldest first."""
        return list(self._open.values())

    async def load(self) -> None:
        """Takes over what the journal holds: each entry waits for ``recover``. Again only while nothing is open."""
        told = [str(error) for error in self.blocked]
        entries, self.blocked = await execute.in_thread(self._home.journal.open, self._domain)
        for error in self.blocked:
            if str(error) not in told:
                self._log.error("Journal is damaged", error=str(error))
        for entry in entries:
            # One that is known was cut off by a bug of ours, and somebody may be waiting for it.
            operation = self._home.operations.known(entry.operation) or operations.Operation(
                self._domain, entry.plan.verb, None, entry.operation, entry.started
            )
            operation.plan = entry.plan
            operation.planned.set()
            self._open[operation.id] = self._home.operations.adopt(operation)
            operation.recovering()
            self._claim(operation, entry.plan, begun=True)

    def check_settled(self) -> None:
        """``OperationOpen`` while the outcome of something is unknown: nothing new begins beside it."""
        for error in self.blocked:
            raise errors.OperationOpen(operation="?", verb="?", domain=self._domain, reason=str(error))
        for operation in self.open:
            if operation.state == "recovering":
                reason = operation.error["message"] if operation.error else "its outcome is being looked for"
                raise errors.OperationOpen(
                    operation=operation.id, verb=operation.verb, domain=self._domain, reason=reason
                )

    def check_free(self, plan: steps.Plan) -> None:
        """``DiskBusy`` when a disk of the plan belongs to an operation that has not ended."""
        held = {target for operation in self.open if operation.plan for target in operation.plan.targets}
        for target in plan.targets:
            if target in held:
                raise errors.DiskBusy(target=target)

    async def check_images(self, operation: operations.Operation, plan: steps.Plan) -> None:
        """The plan's images are its own until it ends; ``ImageBusy``, or ``WouldHurt`` by a look at everything that is there."""
        self._claim(operation, plan, begun=False)
        with self._home.claims.dropped_unless_done(operation.id):
            gate.check(plan, await self._home.graph())

    def _claim(self, operation: operations.Operation, plan: steps.Plan, *, begun: bool) -> None:
        alone = {*gate.creates(plan), *gate.writes(plan)}
        self._home.claims.take(operation.id, self._domain, alone, gate.mentions(plan) - alone, begun=begun)

    async def begin(self, operation: operations.Operation, plan: steps.Plan) -> None:
        """Intent on disk, then the acts; returns at the end, or from where on others may begin beside it."""
        entry = journal.Entry(operation.id, operation.started, plan)
        with self._home.claims.dropped_unless_done(operation.id):
            try:
                await execute.in_thread(self._home.journal.begin, entry)
            except errors.Incomplete as error:
                self._opened(operation, plan)
                operation.recovering(error)
                return
        self._opened(operation, plan)
        await self._detach(operation, plan, 0)

    def _opened(self, operation: operations.Operation, plan: steps.Plan) -> None:
        operation.plan = plan
        self._open[operation.id] = operation
        operation.planned.set()
        self._log.info(
            "Operation begun", verb=plan.verb, operation=operation.id, disks=",".join(plan.targets)
        )

    async def _detach(self, operation: operations.Operation, plan: steps.Plan, start: int) -> None:
        assert self.nursery is not None
        await self.nursery.start(self._carry, operation, plan, start)

    async def _carry(
        self,
        operation: operations.Operation,
        plan: steps.Plan,
        start: int,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        told = False

        def reached(index: int) -> None:
            nonlocal told
            if not told and 0 <= plan.detach <= index:
                told = True
                task_status.started()

        structlog.contextvars.bind_contextvars(operation=operation.id)
        operation.idle = trio.Event()
        try:
            context = self._context(operation, plan)
            if context.machine is None and plan.targets and start <= plan.commit:
                # It died between the decision and now: acts that it does not carry out must not pass for done.
                raise errors.Disconnected(reason="QEMU is gone")
            self._on[operation.id] = context.machine
            await execute.forward(plan, context, start, reached=reached)
            await self._end(operation, plan)
        except errors.Error as error:
            await self._failed(operation, plan, error)
        finally:
            if operation.state == "running":
                operation.recovering()  # nobody carries it any more: it was cancelled, or a bug has struck
            operation.idle.set()
            if not told:
                task_status.started()

    async def _failed(self, operation: operations.Operation, plan: steps.Plan, error: errors.Error) -> None:
        """Up to the commit point everything is taken back, a job that goes on as well; after it the rest waits for recovery, and
        whoever waits is told."""
        if isinstance(error, errors.Disconnected):
            self._log.warning("Outcome unknown", verb=plan.verb, error=str(error))
            operation.recovering()
            return
        try:
            decision = await self._decide(plan)
            if decision.from_step is None or decision.from_step <= plan.commit:
                await self._take_back(operation, plan, error)
                return
            if decision.error:
                await self._migrated(operation, plan, decision)
                return
        except errors.Disconnected:
            operation.recovering()
            return
        except errors.Error as second:
            error = second
        self._log.error("Operation incomplete", verb=plan.verb, error=str(error))
        reason = f"{error}; recovery goes on, see: qmpsnap wait {operation.id}"
        operation.recovering(errors.Incomplete(reason=reason))

    def _context(self, operation: operations.Operation, plan: steps.Plan) -> execute.Context:
        """``Disconnected`` when the plan needs QEMU, and it is neither there nor proved to be gone."""
        if plan.targets and self._link.machine is None and not self._link.off:
            raise errors.Disconnected(reason="the monitor is lost")
        machine = None if self._link.off else self._link.machine
        return execute.Context(self._records, machine, operation.progressed)

    async def _decide(self, plan: steps.Plan) -> recovery.Decision:
        view: chain.View | None = None
        if plan.targets and not self._link.off:
            if self._link.machine is None:
                raise errors.Disconnected(reason="the monitor is lost")
            view = await self._link.machine.observer.look()
        overlays = await execute.in_thread(seeing.overlays, plan)
        recorded = await execute.in_thread(seeing.recorded, self._home.store, plan)
        listed = await execute.in_thread(seeing.listed, self._home.store, plan)
        return recovery.decide(plan, recovery.Seen(view, overlays, recorded, listed))

    async def _migrated(
        self, operation: operations.Operation, plan: steps.Plan, decision: recovery.Decision
    ) -> None:
        """It goes on, so that the layers in use stay on record, and ends with the decision's error."""
        reduced = migration.without_snapshots(plan)
        await execute.forward(reduced, self._context(operation, plan), decision.from_step or 0)
        await self._end(operation, plan, decision.error)

    async def _take_back(
        self, operation: operations.Operation, plan: steps.Plan, error: errors.Error
    ) -> None:
        await execute.back(plan, self._context(operation, plan), keep=await self._kept(operation, plan))
        if operation.aborted:
            error = errors.JobAborted(target=plan.targets[0])  # the end that was asked for is no failure
        await self._end(operation, plan, error)

    async def _kept(self, operation: operations.Operation, plan: steps.Plan) -> set[str]:
        """Overlays that somebody has begun to need: they stay, although the operation is taken back."""
        kept = set()
        removed = gate.abandons(plan)
        graph = await self._home.graph() if removed else images.Graph({}, ())
        for file in removed:
            try:
                gate.check_removal(file, graph, but={operation.id})
            except errors.WouldHurt as error:
                self._log.warning("Overlay kept", operation=operation.id, error=str(error))
                kept.add(file)
        return kept

    async def _end(
        self, operation: operations.Operation, plan: steps.Plan, error: errors.Error | None = None
    ) -> None:
        """The outcome is written for those who wait through a restart, the journal forgets the operation, and all are told."""
        outcome = {
            **operation.wire(),
            "state": "failed" if error else "done",
            "finished": time.time(),
            "result": None if error else dict(plan.result),
            "error": operations.wire_error(error) if error else None,
        }
        await execute.in_thread(self._close, operation, outcome)
        self._open.pop(operation.id, None)
        self._on.pop(operation.id, None)
        self._home.claims.drop(operation.id)
        if error:
            self._log.warning("Operation failed", verb=plan.verb, operation=operation.id, error=str(error))
            operation.failed(error)
        else:
            self._log.info("Operation done", verb=plan.verb, operation=operation.id)
            operation.done(plan.result)
        self._home.changed(self._domain)

    def _close(self, operation: operations.Operation, outcome: Mapping[str, Any]) -> None:
        try:
            self._home.operations.remember(operation, outcome)
        except (
            OSError
        ) as error:  # whoever waits through a restart will not be told; the operation itself is as it is
            self._log.warning("Outcome not remembered", operation=operation.id, error=str(error))
        self._home.journal.end(self._domain, operation.id)

    async def recover(self) -> None:
        """Everything whose outcome is unknown is finished, taken back or followed again; what cannot be says why, in one line.

        Whoever calls may be cancelled, with the link that was lost again: the work is not, it belongs to the domain.
        """
        assert self.nursery is not None
        settled = trio.Event()
        self.nursery.start_soon(self._recover, settled)
        await settled.wait()

    async def _recover(self, settled: trio.Event) -> None:
        try:
            await self._recover_all()
        finally:
            settled.set()

    async def _recover_all(self) -> None:
        for operation in self.open:
            if not operation.idle.is_set() and self._on.get(operation.id) is self._link.machine:
                continue  # nothing is unknown of it; and a pull takes hours
            await operation.idle.wait()
            async with self.turn:
                if operation.state == "recovering" and operation.plan is not None:
                    await self._resolve(operation, operation.plan)

    async def _resolve(self, operation: operations.Operation, plan: steps.Plan) -> None:
        try:
            decision = await self._decide(plan)
            start = decision.from_step
            way = "taken back" if start is None else f"goes on with {start + 1} of {len(plan.steps)}"
            self._log.info(
                "Recovery", operation=operation.id, verb=plan.verb, way=way, reason=decision.reason
            )
            if start is None:
                undone = errors.Undone(verb=plan.verb, reason=decision.reason)
                await self._take_back(operation, plan, undone)
            elif decision.error:
                await self._migrated(operation, plan, decision)
            else:
                operation.resumed()
                await self._detach(operation, plan, start)
        except errors.Disconnected:
            operation.recovering()
        except errors.Error as error:
            if operation.error is None or operation.error["message"] != str(error):
                self._log.error("Recovery failed", operation=operation.id, verb=plan.verb, error=str(error))
            operation.recovering(error)
