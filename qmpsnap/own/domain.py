"""The owner of one domain: all its mutable state, one inbox, one operation at a time.

People's requests come through ``submit``; losses of QEMU and starts of the daemon come through the link. Both become plans that
the carrier carries out. Nobody else acts on the domain.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable

import attrs
import structlog
import trio

from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import chain, domain_xml, jobs, snapshot, snapshot_xml
from qmpsnap.own import carry, describe, link, operations, seeing
from qmpsnap.plan import metadata, pull, requests, snapshot_create, steps

_log = structlog.stdlib.get_logger(__name__)

_VERBS: dict[type, str] = {
    requests.SnapshotCreate: "snapshot-create",
    requests.Pull: "block-pull",
    requests.SetCurrent: "snapshot-current",
    requests.Forget: "snapshot-delete",
}

# What could not be finished is tried again: a full disk may have room, a mount may be back.
_RETRY = 5.0


class Domain:
    """A domain with a monitor at ``monitor``. Runs for ever in ``run``; what it records survives it."""

    def __init__(
        self, home: carry.Home, name: str, monitor: str, recorded: domain_xml.RecordedDomain | None
    ) -> None:
        self.name = name
        self.recorded = recorded or blank(name)
        self.tree = snapshot.Tree({})
        self.id: int | None = None
        self.loaded = False
        self._home = home
        self._log = _log.bind(domain=name)
        self._send, self._inbox = trio.open_memory_channel[operations.Operation](math.inf)
        owner = link.Owner(
            ready=self._ready,
            off=self._off,
            changed=lambda: home.changed(name),
            job=self._job_changed,
            disks=lambda: self.recorded.disks,
            images=self._images,
        )
        self.link = link.Link(name, monitor, home.settings.greeting_timeout, owner)
        self._carrier = carry.Carrier(home, name, self, self.link)

    # --- what others may ask ---

    @property
    def state(self) -> str:
        """virsh's word for the run state; "no state" where we cannot know."""
        if self.link.machine is None or not self.link.status or self.link.state == "hung":
            return "shut off" if self.link.off else "no state"
        return _STATES.get(self.link.status, "paused")

    @property
    def open(self) -> list[operations.Operation]:
        """Operations that have begun and not ended."""
        return self._carrier.open

    def machine(self) -> execute.Machine:
        """The running QEMU; ``NotRunning`` or ``NoMonitor`` say why there is none."""
        if self.link.machine is not None and self.link.state == "ready":
            return self.link.machine
        self.link.hurry()
        if self.link.off:
            raise errors.NotRunning(domain=self.name)
        reason = f"the monitor {self.link.path} is {self.link.state}" + (
            f": {self.link.detail}" if self.link.detail else ""
        )
        raise errors.NoMonitor(domain=self.name, reason=reason)

    async def submit(self, request: requests.Request) -> operations.Operation:
        """Accepts the request; the operation goes on when the caller leaves. Returned once it is planned, or has failed with the
        reason why it was refused."""
        operation = self._home.operations.new(self.name, _VERBS[type(request)], request)
        self._send.send_nowait(operation)
        await operation.planned.wait()
        return operation

    async def abort(self, disk: str) -> operations.Operation | None:
        """The job of the disk is being cancelled. The operation whose job it is, if it is ours."""
        machine, _target, job = await self._job(disk)
        own = next(
            (o for o in self.open if o.plan and any(_starts(s.act, job.id) for s in o.plan.steps)), None
        )
        if own is not None:
            own.aborted = True
        await machine.link.execute("job-cancel", {"id": job.id})
        return own

    async def set_speed(self, disk: str, speed: int) -> tuple[str, chain.Job]:
        """The disk's job is limited to ``speed`` bytes per second; 0 is unlimited. The disk's target and the job."""
        machine, target, job = await self._job(disk)
        await machine.link.execute("block-job-set-speed", {"device": job.id, "speed": speed})
        return target, attrs.evolve(job, speed=speed)

    async def _job(self, name: str) -> tuple[execute.Machine, str, chain.Job]:
        machine = self.machine()
        view = await machine.observer.look()
        disk, _place = pull.find(view, name)
        job = view.job_of(disk)
        if job is None:
            raise errors.NoJob(target=disk.target)
        return machine, disk.target, job

    # --- its tasks ---

    async def load(self) -> None:
        """Reads what is on disk: snapshots and journal. What is damaged is said, and left alone."""
        self.tree, bad = await execute.in_thread(self._home.store.snapshots, self.name)
        for error in bad:
            self._log.error("Snapshot is damaged", error=str(error))
        await self._carrier.load()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Loads, then serves inbox and monitor for ever; started once it is loaded."""
        await self.load()
        self.loaded = True
        task_status.started()
        async with trio.open_nursery() as self._carrier.nursery:
            self._carrier.nursery.start_soon(self._serve)
            self._carrier.nursery.start_soon(self._retry)
            # What needs no QEMU is settled at once; the rest when the link has found it, or proved that there is none.
            await self._carrier.recover()
            await self.link.run()

    async def _serve(self) -> None:
        async for operation in self._inbox:
            structlog.contextvars.bind_contextvars(operation=operation.id)
            try:
                async with self._carrier.turn:
                    await self._handle(operation)
            except errors.Error as error:
                self._log.info("Operation refused", verb=operation.verb, error=str(error))
                operation.failed(error)
            finally:
                structlog.contextvars.unbind_contextvars("operation")
                if not operation.planned.is_set():
                    operation.failed(errors.Disconnected(reason="qmpsnapd stopped before it had begun"))

    async def _handle(self, operation: operations.Operation) -> None:
        request = operation.request
        plan = await self._plan(operation)
        if getattr(request, "dry_run", False):
            operation.done(plan.result, plan.texts)
        elif not plan.steps:
            operation.done(plan.result)
        else:
            await self._carrier.begin(operation, plan)

    async def _plan(self, operation: operations.Operation) -> steps.Plan:
        """Decides, from a fresh look, what will be done; nothing is done."""
        self._carrier.check_settled()
        request = operation.request
        if isinstance(request, requests.SetCurrent):
            return metadata.set_current(self.name, self.tree, request)
        if isinstance(request, requests.Forget):
            return metadata.forget(self.name, self.tree, request)
        assert request is not None
        view = await self.machine().observer.look()
        await self._remember(self.recorded_with(view))
        if isinstance(request, requests.Pull):
            plan = pull.plan(view, request, operation=operation.id)
        else:
            plan = await self._plan_create(view, request, operation.id)
        self._carrier.check_free(plan)
        for target in plan.targets:
            disk = view.disk(target)
            if disk is not None:
                describe.check_drift(self.recorded, disk)
        return plan

    async def _plan_create(
        self, view: chain.View, request: requests.SnapshotCreate, ident: str
    ) -> steps.Plan:
        now = int(time.time())
        _name, chosen = snapshot_create.choose(view, self.tree, request, now)
        names = [choice.file for choice in chosen]
        facts = await execute.in_thread(lambda: seeing.file_facts(names, headers=request.reuse_external))
        return snapshot_create.plan(
            view,
            self.tree,
            self.recorded,
            request,
            operation=ident,
            now=now,
            facts=facts,
            way=self._home.settings.overlay,
        )

    # --- recovery: at start, and after every loss of QEMU ---

    async def _ready(self, machine: execute.Machine) -> None:
        await self._learn(machine)
        await self._carrier.recover()

    async def _off(self) -> None:
        self.id = None
        await self._carrier.recover()

    async def recover_off(self) -> None:
        """Recovers without a monitor; ``NoMonitor`` unless it is proved that no QEMU runs."""
        if not await execute.in_thread(self.link.prove_off):
            raise errors.NoMonitor(domain=self.name, reason="a QEMU may still be running on its images")
        async with trio.open_nursery() as self._carrier.nursery:
            await self._carrier.recover()

    async def _retry(self) -> None:
        """What waits for recovery although nothing was lost is tried again now and then."""
        while True:
            await trio.sleep(_RETRY)
            await self._carrier.recover()

    # --- what it records ---

    async def record(self, act: steps.Record) -> None:
        """Carries out ``steps.Record``: on disk first, then in memory."""
        recorded = self.recorded.on(act.active) if act.active else None
        written = {name: snapshot_xml.parse(text, name) for name, text in act.snapshots.items()}
        after = {n: s for n, s in {**self.tree.snapshots, **written}.items() if n not in act.remove}
        for name, value in after.items():
            wanted = name == act.current if act.current else value.current
            if value.current != wanted:
                written[name] = after[name] = attrs.evolve(value, current=wanted)
        # The new current one first: two that claim it are settled by the journal, none that does would be a loss.
        ordered = dict(sorted(written.items(), key=lambda item: item[0] != act.current))
        await execute.in_thread(self._home.store.record, self.name, recorded, ordered, act.remove)
        self.recorded = recorded or self.recorded
        self.tree = snapshot.Tree(after)

    async def _learn(self, machine: execute.Machine) -> None:
        """What QEMU says of itself is recorded, before anything is done on its strength."""
        view = await machine.observer.look(fresh=True)
        await self._remember(await describe.describe(self.recorded_with(view), machine))

    def recorded_with(self, view: chain.View) -> domain_xml.RecordedDomain:
        """The domain with the disks that were just seen: one may have been plugged in."""
        return attrs.evolve(self.recorded, disks=describe.disks(self.recorded, view))

    async def _remember(self, recorded: domain_xml.RecordedDomain) -> None:
        if recorded != self.recorded:
            await execute.in_thread(self._home.store.record, self.name, recorded, {})
            self.recorded = recorded

    def _images(self) -> Iterable[str]:
        found = {disk.file for disk in self.recorded.disks if disk.file and disk.device == "disk"}
        for operation in self.open:
            found |= seeing.images(operation.plan) if operation.plan else set()
        return found

    def _job_changed(self, job: jobs.Tracked) -> None:
        self._log.info("Job", job=job.id, now=job.status, error=job.error or None)


_STATES = {
    "running": "running",
    "paused": "paused",
    "prelaunch": "paused",
    "io-error": "paused",
    "internal-error": "paused",
    "inmigrate": "paused",
    "postmigrate": "paused",
    "finish-migrate": "paused",
    "save-vm": "paused",
    "restore-vm": "paused",
    "debug": "paused",
    "watchdog": "paused",
    "shutdown": "in shutdown",
    "suspended": "pmsuspended",
    "guest-panicked": "crashed",
}


def blank(name: str) -> domain_xml.RecordedDomain:
    """A domain of which nothing is known yet but its name; its UUID is the one it keeps, unless QEMU has one."""
    return domain_xml.RecordedDomain(name=name, uuid=str(uuid.uuid4()))


def _starts(act: steps.Act, job: str) -> bool:
    return isinstance(act, steps.StartJob) and act.job == job
