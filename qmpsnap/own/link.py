"""Keeping the monitor of one machine: connect, hold, and when it is lost find out what became of QEMU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal

import attrs
import structlog
import trio

from qmpsnap import errors
from qmpsnap.act import execute, look, tracker
from qmpsnap.model import domain_xml, jobs
from qmpsnap.talk import files, monitor, process, wire

_log = structlog.stdlib.get_logger(__name__)

MonitorState = Literal["ready", "connecting", "taken", "hung", "gone", "denied", "garbage", "busy", "foreign"]

# A machine that is started is seen within a second; 200 machines that are off cost 200 failing connects a second, 4 ms of CPU.
# The pauses grow until a session has held for as long as the last of them: one that greets well and then talks nonsense waits, too.
_AGAIN_FIRST, _AGAIN_LAST = 0.05, 1.0

# A transaction drains the disks: 0.5 s in the worst run here (facts/qemu.md 12). Beyond this QEMU hangs.
_LONG = 5.0

_TAKEN = "another client holds the monitor; give qmpsnap one of its own (-qmp unix:PATH,server=on,wait=off)"

#: Events after which the run state may be another; what it is, is queried.
_RUN_STATE = frozenset(
    {
        "STOP",
        "RESUME",
        "SHUTDOWN",
        "RESET",
        "SUSPEND",
        "WAKEUP",
        "GUEST_PANICKED",
        "POWERDOWN",
        "BLOCK_IO_ERROR",
    }
)


@attrs.frozen
class Owner:
    """What the owner of the domain wants to hear."""

    #: QEMU answers: look, recover, serve. Called again after every loss.
    ready: Callable[[execute.Machine], Awaitable[None]]
    #: QEMU is proved to be gone.
    off: Callable[[], Awaitable[None]]
    #: Anything that `list` shows has changed.
    changed: Callable[[], None]
    #: A job of ours has changed.
    job: Callable[[jobs.Tracked], None]
    #: Somebody else's job has changed a chain.
    moved: Callable[[], None]
    #: Recorded disks.
    disks: Callable[[], Sequence[domain_xml.RecordedDisk]]
    #: Images that QEMU would have open, were it alive.
    images: Callable[[], Iterable[str]]


class Link:
    """The monitor at ``path``. ``machine`` is set while QEMU answers; ``off`` is true once it is proved that none runs."""

    def __init__(self, domain: str, path: str, greeting_timeout: float, owner: Owner) -> None:
        self.domain = domain
        self.path = path
        self._state: MonitorState = "connecting"
        self._detail = ""
        self.status = ""
        self.version = ""
        self.machine: execute.Machine | None = None
        self._session: monitor.Monitor | None = (
            None  # from the greeting on: ``machine`` comes after the first answers
        )
        self.process: process.Process | None = None
        self._stranger: process.Process | None = None
        self.off = False
        self._patience = greeting_timeout
        self._owner = owner
        self._hurry = trio.Event()
        self._settled = trio.Event()
        self._stale = trio.Event()  # the run state may be another

    @property
    def state(self) -> MonitorState:
        """How the monitor is now. One that was ready and leaves a command without answer is hung until it answers."""
        return "hung" if self._unanswered() else self._state

    @property
    def detail(self) -> str:
        """Why it is not ready, in words."""
        return self._unanswered() or self._detail

    def _unanswered(self) -> str:
        command, seconds = self._session.waiting if self._session else ("", 0.0)
        return f"no answer to {command} for {seconds:.0f} s" if seconds > _LONG else ""

    @property
    def stranger(self) -> str:
        """The libvirt domain that the machine is; "" for one that is ours to join."""
        return self._stranger.libvirt if self._stranger else ""

    def hurry(self) -> None:
        """Try again now: somebody asks for the machine."""
        self._hurry.set()

    async def wait_settled(self, seconds: float) -> None:
        """Returns once the state is not "connecting" any more, or after that time."""
        with trio.move_on_after(seconds):
            await self._settled.wait()

    def _show(self, state: MonitorState, detail: str = "") -> None:
        if (state, detail) != (self._state, self._detail):
            # A reason that changes all the time (an id in it) shall not fill the log.
            log = _log.info if state != self._state else _log.debug
            log("Monitor", domain=self.domain, was=self._state, now=state, detail=detail)
            self._state, self._detail = state, detail
            self._owner.changed()
        if state != "connecting":
            self._settled.set()

    async def run(self) -> None:
        """Holds the monitor for ever; ends by cancellation only."""
        again = _AGAIN_FIRST
        while True:
            since = trio.current_time()
            try:
                async with trio.open_nursery() as nursery:
                    link = await monitor.connect(
                        nursery,
                        self.path,
                        on_state=self._on_state,
                        vet=self._vet,
                        greeting_timeout=self._patience,
                    )
                    since = trio.current_time()
                    await self._hold(nursery, link)
                    self._show("connecting", "the monitor was lost")
                    nursery.cancel_scope.cancel()
            except* errors.Error as group:
                await self._lost(group)
            if trio.current_time() - since > _AGAIN_LAST:
                again = _AGAIN_FIRST
            self._hurry = trio.Event()
            with trio.move_on_after(again):
                await self._hurry.wait()
            again = min(again * 2, _AGAIN_LAST)
            await self._wait_for_stranger()

    def _vet(self, pid: int) -> None:
        """``Foreign`` for a QEMU that libvirtd has started, on whichever of its monitors: nothing is said to it."""
        self.off = False  # somebody listens
        found = process.look(pid)
        if found.libvirt:
            self._stranger = found
            raise errors.Foreign(path=self.path, name=found.libvirt)

    async def _wait_for_stranger(self) -> None:
        """Returns when it has ended; a client that connects meanwhile would stand in the way of its owner's next one."""
        if self._stranger is None:
            return
        with contextlib.suppress(OSError):  # it has gone already
            fd = os.pidfd_open(self._stranger.pid)
            try:
                if self._stranger.alive:  # and the number is no other process's by now
                    await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)
        self._stranger = None

    def _on_state(self, state: monitor.State) -> None:
        # READY is shown when the owner has looked, not when QEMU has greeted.
        if state in {monitor.State.TAKEN, monitor.State.HUNG}:
            taken = state is monitor.State.TAKEN
            self._show("taken" if taken else "hung", _TAKEN if taken else "it accepts and does not answer")

    async def _hold(self, nursery: trio.Nursery, link: monitor.Monitor) -> None:
        """The link is up: the owner has looked and recovered, events flow, until it is lost."""
        followed = tracker.Tracker(self._owner.job)
        observer = await execute.in_thread(look.Observer, self.domain, link, self._owner.disks)
        machine = execute.Machine(link, observer, followed)
        self.process = observer.process
        self.version = ".".join(str(part) for part in link.version)
        self.off = False
        # Subscribed before anything can start a job: its first events outrun the reply.
        nursery.start_soon(self._follow, machine, link.events())
        nursery.start_soon(self._follow_status, machine)
        self._session = link
        try:
            await self._query_status(machine)
            self.machine = machine
            await self._owner.ready(machine)
            self._show("ready")
            await link.wait_closed()
        except errors.Disconnected:
            pass  # `reason` has it
        finally:
            self.machine = self._session = None
            followed.lose()
        if link.reason and not isinstance(link.reason, errors.Disconnected):
            raise link.reason

    async def _follow(self, machine: execute.Machine, channel: trio.MemoryReceiveChannel[wire.Event]) -> None:
        """Routes events: to the tracker, and to a query of the run state. After a channel that ended early, a look makes up.

        Waits for nothing while the channel lasts: what QEMU says faster than it answers would pile up.
        """
        with contextlib.suppress(errors.Disconnected):  # `_hold` knows why
            while True:
                with channel:
                    async for event in channel:
                        machine.tracker.feed(event)
                        if event.name in _RUN_STATE:
                            self._stale.set()
                        if event.name == "BLOCK_JOB_COMPLETED" and not machine.tracker.knows(event):
                            self._owner.moved()
                if machine.link.closed:
                    return
                channel = machine.link.events()
                self._stale.set()
                await execute.look_at_jobs(machine)

    async def _follow_status(self, machine: execute.Machine) -> None:
        """One query for any number of events that came while the one before was on its way."""
        with contextlib.suppress(errors.Disconnected):  # `_hold` knows why
            while True:
                await self._stale.wait()
                self._stale = trio.Event()
                await self._query_status(machine)

    async def _query_status(self, machine: execute.Machine) -> None:
        status = str((await machine.link.execute("query-status"))["status"])
        if status != self.status:
            self.status = status
            self._owner.changed()

    async def _lost(self, group: BaseExceptionGroup[errors.Error]) -> None:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        states: dict[type[errors.Error], MonitorState] = {
            errors.MonitorGone: "gone",
            errors.MonitorDenied: "denied",
            errors.MonitorBusy: "busy",
            errors.Foreign: "foreign",
            errors.FileFailed: "gone",
            # What a QEMU that we know would not say: it refuses a query, a job goes a way that no job goes, a text is none.
            errors.MonitorGarbage: "garbage",
            errors.CommandFailed: "garbage",
            errors.BadXml: "garbage",
            jobs.Impossible: "garbage",
        }
        state: MonitorState = next((s for kind, s in states.items() if isinstance(error, kind)), "gone")
        was = self.off
        met = getattr(error, "met", False)
        if state == "gone" and not met and await execute.in_thread(self.prove_off):
            if not was:
                self.status = ""
                await self._owner.off()
            self._show("gone")
        else:
            self._show(state, str(error))

    def prove_off(self) -> bool:
        """Blocking. Whether no QEMU runs: no process that we knew is alive, and nobody has one of its images open for writing.

        An image that we may not read proves nothing. ``off`` says the same until a monitor answers again.
        """
        alive = self.process is not None and self.process.alive
        try:
            self.off = not alive and not any(
                files.opened_for_writing(image) for image in self._owner.images()
            )
        except errors.FileFailed as error:
            _log.warning("Cannot tell whether QEMU is off", domain=self.domain, error=str(error))
            self.off = False
        return self.off
