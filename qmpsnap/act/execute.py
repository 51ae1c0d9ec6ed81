"""The only place that acts: walks a plan's steps, each act by its kind, forwards or taking back.

Every act passes two crash points, ``VERB/STEP/before`` and ``VERB/STEP/after``. What a failure means is not decided here:
the owner of the domain looks and asks ``plan.recovery``.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import structlog
import trio

from qmpsnap import errors, faults
from qmpsnap.act import look, tracker
from qmpsnap.model import chain, jobs
from qmpsnap.plan import migration, recovery, steps
from qmpsnap.talk import files, monitor, qemu_img

_log = structlog.stdlib.get_logger(__name__)
T = TypeVar("T")

# Progress is for people; the job's end comes by event. A look this often also finds what an event did not tell.
_PROGRESS_EVERY = 0.5

# qemu-img map reads tables that QEMU writes: a torn read is taken again before it counts.
_PROOFS = 5


class Records(Protocol):
    """Where a plan's records go: the owner of the domain, who also remembers them."""

    async def record(self, act: steps.Record) -> None: ...

    async def fingerprint(self, act: steps.Fingerprint) -> None: ...


@attrs.frozen
class Machine:
    """A running QEMU, as acts need it."""

    link: monitor.Monitor
    observer: look.Observer
    tracker: tracker.Tracker


@attrs.frozen
class Context:
    """What acts act on; ``machine`` is None when QEMU is proved to be gone."""

    records: Records
    machine: Machine | None
    progress: Callable[[int, int], None] = lambda current, total: None


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Runs a blocking call without holding up the daemon. When cancelled it is left to itself: like a crash, which every act
    survives."""
    return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)


async def forward(
    plan: steps.Plan, context: Context, start: int = 0, *, reached: Callable[[int], None] = lambda index: None
) -> None:
    """Every step from ``start`` on has been carried out; ``reached`` is told of each before it begins.

    At the first failure it stops and raises it, with whatever was done left as it is.
    """
    with faults.within(plan.verb):
        index = start
        while index < len(plan.steps):
            group = _independent(plan.steps[index:])
            reached(index)
            await _together([functools.partial(_step, step, context) for step in group])
            index += len(group)


def _independent(rest: Sequence[steps.Step]) -> Sequence[steps.Step]:
    """The steps that can be carried out at once: overlays know nothing of each other, and wait for the same disk."""
    made = [*itertools.takewhile(lambda step: isinstance(step.act, steps.MakeOverlay), rest)]
    return made or rest[:1]


async def _together(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """All at once, each to its end; then the first failure, in their order, is raised."""
    failures: dict[int, errors.Error] = {}

    async def run(number: int, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except errors.Error as error:
            failures[number] = error

    if len(calls) == 1:
        await calls[0]()
        return
    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(run, number, call)
    if failures:
        raise failures[min(failures)]


async def back(plan: steps.Plan, context: Context, *, keep: Collection[str] = ()) -> None:
    """Everything up to the commit point is taken back, last step first, but for the images to ``keep``. The first failure is
    raised after all were tried."""
    failed: errors.Error | None = None
    with faults.within(plan.verb):
        for step in plan.undo:
            if isinstance(step.act, steps.RemoveOverlay) and step.act.file in keep:
                continue
            try:
                await _step(step, context)
            except errors.Disconnected:
                raise
            except errors.Error as error:
                failed = failed or error
    if failed:
        raise failed


async def _step(step: steps.Step, context: Context) -> None:
    with faults.within(step.name):
        faults.point("before")
        await _act(step.act, context)
        faults.point("after")
    _log.debug("Step done", step=step.name)


async def _act(act: steps.Act, context: Context) -> None:
    match act:
        case steps.MakeOverlay():
            await in_thread(
                qemu_img.make_overlay, act.file, act.temp, act.backing, act.backing_format, act.size, act.like
            )
        case steps.RemoveOverlay():
            await in_thread(qemu_img.remove_overlay, act.file, act.temp, act.backing)
        case steps.TakeOverlay():
            await in_thread(files.check_stamp, act.file, act.stamp)
        case steps.SyncFiles():
            # All at once: the files may lie on different disks.
            await _together([functools.partial(in_thread, files.flush_data, name) for name in act.files])
        case steps.Record():
            await context.records.record(act)
        case steps.Fingerprint():
            await context.records.fingerprint(act)
        case steps.RebaseBack():
            # While QEMU runs, the header is QEMU's and a job of ours that has ended without effect left it alone.
            if context.machine is None:
                await in_thread(_rebase_back, act)
        case _ if context.machine is not None:
            await _act_in_qemu(act, context.machine, context.progress)
        case _:
            pass  # QEMU is gone, and with it every node and job of ours


async def _act_in_qemu(act: steps.Act, machine: Machine, progress: Callable[[int, int], None]) -> None:
    match act:
        case steps.Command():
            await _command(act, machine)
        case steps.ExpectActive():
            await _expect_active(act, machine)
        case steps.StartJob():
            machine.tracker.track(act.job)
            await machine.link.execute(act.execute, act.arguments)
            machine.tracker.started(act.job)
        case steps.AwaitJob():
            await _await_job(act, machine, progress)
        case steps.CancelJob():
            await _cancel(act, machine)
        case steps.Settle():
            await _settle(act, machine)
        case steps.ExpectBacking():
            view = await machine.observer.look_at_blocks()
            if (found := recovery.below(view, act.file)) != act.base:
                raise errors.Unexpected(
                    reason=f"{act.file} has {found or 'nothing'} below it, not {act.base or 'nothing'}"
                )
        case steps.DropNodes():
            # Those that snapshot-sync made have gone by themselves (facts/qemu.md 18).
            view = await machine.observer.look_at_blocks()
            for node in act.nodes:
                if node in view.nodes:
                    await _command(
                        steps.Command("blockdev-del", {"node-name": node}, absent_ok=True), machine
                    )


async def _command(act: steps.Command, machine: Machine) -> None:
    try:
        await machine.link.execute(act.execute, act.arguments)
    except errors.CommandFailed:
        # Whether the object is there is looked up, never read from the error's text (QAPI forbids it).
        if not act.absent_ok or await _present(act.arguments, machine):
            raise


async def _present(arguments: Mapping[str, Any], machine: Machine) -> bool:
    view = await machine.observer.look()
    job = arguments.get("id")
    return arguments.get("node-name") in view.nodes or any(j.id == job for j in view.jobs)


async def _expect_active(act: steps.ExpectActive, machine: Machine) -> None:
    view = await machine.observer.look_at_blocks(act.overlays)
    for target, layer in act.overlays.items():
        disk = view.disk(target)
        if disk is None or not disk.chain or disk.active.file != layer.file:
            # The reply can be success and the overlay gone again, where no device uses the node (facts/qemu.md 9).
            raise errors.Unexpected(reason=f"{target} does not write to {layer.file}")
    if reason := migration.unsafe(view):
        raise migration.began(view, act.overlays, reason)


async def look_at_jobs(machine: Machine) -> chain.View:
    """A look whose jobs are folded into the tracker."""
    before = machine.tracker.acknowledged
    view = await machine.observer.look()
    machine.tracker.fold(view.jobs, before)
    return view


async def _await_job(act: steps.AwaitJob, machine: Machine, progress: Callable[[int, int], None]) -> None:
    machine.tracker.started(act.job)

    def until(job: jobs.Tracked) -> bool:
        return job.ended or (act.until == "pending" and job.status == "pending")

    job: jobs.Tracked | None = None
    while job is None:
        with trio.move_on_after(_PROGRESS_EVERY):
            job = await machine.tracker.wait(act.job, until)
        if job is None:
            view = await look_at_jobs(machine)
            progress(*_progress(view.jobs, act.job))
    if job.ended:
        machine.tracker.forget(act.job)
    if act.until == "pending" and job.ended:
        raise errors.JobFailed(reason=job.error or f"job {act.job} ended early, and QEMU did not say why")
    if job.error:
        raise errors.JobFailed(reason=job.error)
    progress(job.current, job.total)


def _progress(seen: Sequence[chain.Job], name: str) -> tuple[int, int]:
    return next(((job.current, job.total) for job in seen if job.id == name), (0, 0))


async def _cancel(act: steps.CancelJob, machine: Machine) -> None:
    machine.tracker.started(act.job)
    view = await look_at_jobs(machine)
    if not any(job.id == act.job for job in view.jobs):
        machine.tracker.forget(act.job)
        return
    # job-cancel, never block-job-cancel: that ends a ready job as a success without pivot (facts/qemu.md 25).
    await _command(steps.Command("job-cancel", {"id": act.job}, absent_ok=True), machine)
    await machine.tracker.wait(act.job, lambda job: job.ended)
    machine.tracker.forget(act.job)


async def _settle(act: steps.Settle, machine: Machine) -> None:
    view = await machine.observer.look_at_blocks()
    found = view.by_image(act.file)
    if found is None:
        raise errors.Unexpected(reason=f"no disk has {act.file}")
    node = found[0].chain[found[1]].node
    # There is no QMP command to flush a node; HMP's qemu-io is one, and hides errors: hence the proof from outside.
    flush = {"command-line": f'qemu-io {node} "flush"'}
    for _attempt in range(_PROOFS):
        await machine.link.execute("human-monitor-command", flush)
        await in_thread(files.flush_data, act.file)
        if not act.pulled:
            return
        if await in_thread(_needs_nothing, act):
            # The job is finalized next. QEMU would do so in the middle of a migration, and after it (seen on 7.2).
            migration.check(await machine.observer.look_at_status(), "pulled")
            return
    raise errors.Unexpected(reason=f"{act.file} still needs the layers below it after {_PROOFS} flushes")


def _needs_nothing(act: steps.Settle) -> bool:
    """No part of the image is read from one of the ``pulled`` layers, as an outsider sees it on disk."""
    return not any(
        e["present"] and 1 <= e["depth"] <= act.pulled for e in qemu_img.extents(act.file, act.format)
    )


def _rebase_back(act: steps.RebaseBack) -> None:
    """Nothing is done where the header is right already, or where one of the two is no longer there."""
    if not os.path.exists(act.backing) or not os.path.exists(act.file):
        return
    named = str(qemu_img.info(act.file).get("full-backing-filename", ""))
    if os.path.realpath(named) != os.path.realpath(act.backing):  # it may name the same image in another way
        qemu_img.rebase(act.file, act.backing, act.backing_format)
