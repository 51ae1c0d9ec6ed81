"""The owner of one domain: all its mutable state, one inbox, one operation at a time.

People's requests come through ``submit``; losses of QEMU and starts of the daemon come through the link. Both become plans that
the carrier carries out. Nobody else acts on the domain.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import attrs
import structlog
import trio

from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import chain, domain_xml, images, jobs, snapshot
from qmpsnap.own import carry, checking, deciding, describe, link, operations, records, seeing
from qmpsnap.plan import accept, check, gate, metadata, pull, requests, steps

_log = structlog.stdlib.get_logger(__name__)

_VERBS: dict[type, str] = {
    requests.SnapshotCreate: "snapshot-create",
    requests.Pull: "block-pull",
    requests.SetCurrent: "snapshot-current",
    requests.Forget: "snapshot-delete",
    requests.Accept: "accept",
}

# What could not be finished is tried again: a full disk may have room, a mount may be back.
_RETRY = 5.0


class Domain:
    """A domain with a monitor at ``monitor``. Runs for ever in ``run``; what it records survives it."""

    def __init__(
        self, home: carry.Home, name: str, monitor: str, recorded: domain_xml.RecordedDomain | None
    ) -> None:
        self.name = name
        self.records = records.Records(home.store, name, recorded, lambda: self.link.machine)
        self.id: int | None = None
        self.loaded = False
        #: Set when it is loaded, or could not be.
        self.read = trio.Event()
        self._home = home
        self._log = _log.bind(domain=name)
        self._moved = trio.Event()
        self._send, self._inbox = trio.open_memory_channel[operations.Operation](math.inf)
        owner = link.Owner(
            ready=self._ready,
            off=self._off,
            changed=lambda: home.changed(name),
            job=self._job_changed,
            moved=lambda: self._moved.set(),
            disks=lambda: self.recorded.disks,
            images=self._images,
        )
        self.link = link.Link(name, monitor, home.settings.greeting_timeout, owner)
        self._carrier = carry.Carrier(home, name, self.records, self.link)

    # --- what others may ask ---

    @property
    def recorded(self) -> domain_xml.RecordedDomain:
        """The domain as it was last seen."""
        return self.records.domain

    @property
    def tree(self) -> snapshot.Tree:
        """Its snapshots."""
        return self.records.tree

    @property
    def state(self) -> str:
        """virsh's word for the run state; "no state" where we cannot know."""
        if self.link.machine is None or not self.link.status or self.link.state == "hung":
            return "shut off" if self.link.off else "no state"
        return chain.RUN_STATES.get(self.link.status, "paused")

    @property
    def open(self) -> list[operations.Operation]:
        """Operations that have begun and not ended."""
        return self._carrier.open

    @property
    def unknown(self) -> list[str]:
        """What could not be read, and may need an image."""
        bad = [self.records.bad] if self.records.bad else []
        found = [*self.records.damaged, *(str(error) for error in (*bad, *self._carrier.blocked))]
        return found if self.loaded else [*found, f"domain '{self.name}' could not be loaded"]

    def needs(self) -> Iterator[images.Need]:
        """Every image that the domain needs: recorded ones, those that QEMU had open when it was last looked at, those of open
        operations."""
        if self.loaded:
            yield from self.records.needs()
        machine = self.link.machine
        for disk in machine.observer.disks if machine else ():
            for layer in disk.chain:
                if layer.file:
                    yield images.Need("open", layer.file, self.name, disk.target, layer.format)
        for operation in self.open:
            for file in sorted(gate.mentions(operation.plan)) if operation.plan else ():
                yield images.Need("operation", file, self.name, operation.id)

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
        try:
            self._send.send_nowait(operation)
        except trio.BrokenResourceError:
            operation.failed(_ended())
        await operation.planned.wait()
        return operation

    async def inspect(self) -> check.Seen:
        """Everything that is known of the domain and its images now; nothing is changed, but for the record of what QEMU shows."""
        async with self._carrier.turn:
            return await self._inspect()

    async def _inspect(self) -> check.Seen:
        view = None
        try:
            view = await self.machine().observer.look(fresh=True)
            await self._remember(view)
        except (errors.NotRunning, errors.NoMonitor):
            pass  # `domstate` tells why; what lies on disk is looked at all the same
        graph = await self._home.graph()
        return await execute.in_thread(
            checking.seen, self.recorded, self.tree, graph, view, self.open, self.unknown
        )

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
        await self.records.read()
        await self.records.read_snapshots()
        await self._carrier.load()

    async def _read_again(self) -> None:
        """What could not be read may have been put right."""
        if self.records.bad:
            await self.records.read()
        if self._carrier.blocked and not self.open:
            await self._carrier.load()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Loads, then serves inbox and monitor for ever; started once it is loaded."""
        try:
            await self.load()
            self.loaded = True
        finally:
            self.read.set()
        task_status.started()
        try:
            async with trio.open_nursery() as self._carrier.nursery:
                self._carrier.nursery.start_soon(self._serve)
                self._carrier.nursery.start_soon(self._tend)
                # What needs no QEMU is settled at once; the rest when the link has found it, or proved that there is none.
                await self._carrier.recover()
                await self.link.run()
        finally:
            self._refuse_all()

    def _refuse_all(self) -> None:
        """Whoever still waits for this object's answer would wait for ever: it was detached, or a bug has ended it."""
        with contextlib.suppress(trio.WouldBlock):
            while True:
                self._inbox.receive_nowait().failed(_ended())
        self._inbox.close()

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
                    operation.failed(_ended())

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
        await self._read_again()
        if self.records.bad:
            raise self.records.bad
        self._carrier.check_settled()
        request = operation.request
        if isinstance(request, requests.SetCurrent):
            return metadata.set_current(self.name, self.tree, request)
        if isinstance(request, requests.Forget):
            return metadata.forget(self.name, self.tree, request)
        if isinstance(request, requests.Accept):
            return accept.plan(await self._inspect())
        assert request is not None
        view = await self.machine().observer.look()
        await self._remember(view)
        plan = await deciding.decide(view, self.records, request, operation.id, self._home.settings)
        self._carrier.check_free(plan)
        for target in plan.targets:
            disk = view.disk(target)
            if disk is not None:
                describe.check_drift(self.recorded, disk)
        if plan.steps and not request.dry_run:
            await self._carrier.check_images(operation, plan)
        return plan

    # --- recovery: at start, and after every loss of QEMU ---

    async def _ready(self, machine: execute.Machine) -> None:
        await self._read_again()
        # First what was begun, whose layers are older than what runs: somebody may have put another on top meanwhile.
        await self._carrier.recover()
        await self._learn(machine)

    async def _off(self) -> None:
        self.id = None
        await self._carrier.recover()

    async def recover_off(self) -> None:
        """Recovers without a monitor; ``NoMonitor`` unless it is proved that no QEMU runs."""
        if not await execute.in_thread(self.link.prove_off):
            raise errors.NoMonitor(domain=self.name, reason="a QEMU may still be running on its images")
        async with trio.open_nursery() as self._carrier.nursery:
            await self._carrier.recover()

    async def _tend(self) -> None:
        """What waits for recovery although nothing was lost is tried again now and then; after somebody else's job the record
        follows the chain at once."""
        while True:
            with trio.move_on_after(_RETRY):
                await self._moved.wait()
            if self._moved.is_set():
                self._moved = trio.Event()
                await self._follow_chain()
            await self._read_again()
            await self._carrier.recover()

    async def _follow_chain(self) -> None:
        machine = self.link.machine
        if machine is None:
            return
        try:
            async with self._carrier.turn:
                view = await machine.observer.look(fresh=True)
                await self._remember(view)
        except errors.Error as error:  # the next look will see it
            self._log.warning("Chain not followed", error=str(error))

    # --- what it records ---

    async def _learn(self, machine: execute.Machine) -> None:
        """What QEMU says of itself is recorded, before anything is done on its strength; where it cannot be, what runs is
        followed all the same, and whatever is new is refused by its own record."""
        await self._read_again()
        view = await machine.observer.look(fresh=True)
        described = await describe.describe(self.recorded, machine)
        try:
            await self._remember(view, described)
        except errors.FileFailed as error:
            self._log.error("Not recorded", error=str(error))

    async def _remember(self, view: chain.View, hardware: domain_xml.RecordedDomain | None = None) -> None:
        if await self.records.remember(view, hardware):
            self._home.changed(self.name)

    def _images(self) -> Iterable[str]:
        found = {disk.file for disk in self.recorded.disks if disk.file and disk.device == "disk"}
        for operation in self.open:
            found |= seeing.images(operation.plan) if operation.plan else set()
        return found

    def _job_changed(self, job: jobs.Tracked) -> None:
        self._log.info("Job", job=job.id, now=job.status, error=job.error or None)


def _ended() -> errors.Disconnected:
    return errors.Disconnected(reason="qmpsnapd stopped before it had begun")


def _starts(act: steps.Act, job: str) -> bool:
    return isinstance(act, steps.StartJob) and act.job == job
