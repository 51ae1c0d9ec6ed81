"""The jobs being followed: events and queries are folded into them, and whoever waits is woken.

A job is tracked before the command that starts it, because its first events outrun the reply (seen on 7.2 and 10.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio

from qmpsnap import errors
from qmpsnap.model import chain, jobs
from qmpsnap.talk import wire


class Tracker:
    """The jobs of ours in one QEMU. ``changed`` is called after every change, with the job."""

    def __init__(self, changed: Callable[[jobs.Tracked], None]) -> None:
        self._jobs: dict[str, jobs.Tracked] = {}
        self._changed = changed
        self._wake = trio.Event()
        self._lost = False

    def track(self, job: str) -> None:
        """From now on the job's events are kept; one that is tracked already is not begun anew."""
        self._jobs.setdefault(job, jobs.Tracked(job))

    def started(self, job: str) -> None:
        """QEMU has acknowledged the job, now or before we were here: from now on its absence means its end."""
        self.track(job)
        if self._jobs[job].status == "undefined":
            self._put(self._jobs[job].after("created"))

    def forget(self, job: str) -> None:
        self._jobs.pop(job, None)

    def knows(self, event: wire.Event) -> bool:
        """Whether the event of a block job is about one of ours."""
        return event.data.get("device") in self._jobs

    def feed(self, event: wire.Event) -> None:
        """Folds an event in. JOB_STATUS_CHANGE drives; BLOCK_JOB_* (whose ``device`` is the job id) only tell why it ended."""
        data: dict[str, Any] = dict(event.data)
        if event.name == "JOB_STATUS_CHANGE" and data["id"] in self._jobs:
            self._put(self._jobs[data["id"]].after(data["status"]))
        elif event.name in {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"} and data["device"] in self._jobs:
            reason = data.get("error", "Operation canceled" if event.name == "BLOCK_JOB_CANCELLED" else "")
            self._put(self._jobs[data["device"]].progressed(data["offset"], data["len"]).failed(reason))

    @property
    def acknowledged(self) -> frozenset[str]:
        """Jobs that QEMU has and that have not ended, as far as we know: to be asked for before a look is sent, for ``fold``."""
        return frozenset(n for n, job in self._jobs.items() if job.status != "undefined" and not job.ended)

    def fold(self, seen: Iterable[chain.Job], before: frozenset[str]) -> None:
        """Folds in what a look showed: the truth where an event was missed, but of the moment when QEMU answered.

        ``before`` are the jobs acknowledged before the look was sent: only their absence means an end. A status that an event
        has overtaken meanwhile is left out.
        """
        found = {job.id: job for job in seen}
        for name, tracked in list(self._jobs.items()):
            if job := found.get(name):
                if tracked.may_become(job.status):
                    self._put(tracked.after(job.status).progressed(job.current, job.total).failed(job.error))
            elif name in before and not tracked.ended:
                self._put(tracked.after("vanished"))

    def _put(self, job: jobs.Tracked) -> None:
        if self._jobs.get(job.id) != job:
            self._jobs[job.id] = job
            self._changed(job)
            self._wake.set()
            self._wake = trio.Event()

    def lose(self) -> None:
        """The link has ended: whoever waits gets Disconnected."""
        self._lost = True
        self._wake.set()

    async def wait(self, job: str, until: Callable[[jobs.Tracked], bool]) -> jobs.Tracked:
        """The job, once ``until`` is true of it; ``Disconnected`` when the link ends first."""
        while True:
            tracked = self._jobs[job]
            if until(tracked):
                return tracked
            if self._lost:
                raise errors.Disconnected(reason=f"the monitor was lost while job {job} was {tracked.status}")
            await self._wake.wait()
