"""The life of a block job, as a table.

Two rules: every way from status to status is in TABLE and nowhere else; a status that is not reachable is an error
with job, status and event, because then we no longer know what QEMU does.

The words are QEMU's (QAPI, JobStatus), but for ``vanished``: a job that a query no longer shows. With auto-dismiss, as
streams must be started (design rule 10), that is how a job ends: ``null`` may be missed, the absence cannot.
"""

from __future__ import annotations

import attrs

from qmpsnap import errors

# Seen on 7.2.22 and 10.0.13: after each pause `running` or `ready` comes again, a cancelled job aborts from anywhere,
# and a query may show any later status than the last event: so the ways lead to every later status, too.
TABLE: dict[str, frozenset[str]] = {
    "undefined": frozenset(
        {
            "created",
            "running",
            "paused",
            "ready",
            "standby",
            "waiting",
            "pending",
            "aborting",
            "concluded",
            "vanished",
            "null",
        }
    ),
    "created": frozenset(
        {
            "running",
            "paused",
            "ready",
            "standby",
            "waiting",
            "pending",
            "aborting",
            "concluded",
            "null",
            "vanished",
        }
    ),
    "running": frozenset(
        {"paused", "ready", "standby", "waiting", "pending", "aborting", "concluded", "null", "vanished"}
    ),
    "paused": frozenset(
        {"running", "ready", "standby", "waiting", "pending", "aborting", "concluded", "null", "vanished"}
    ),
    "ready": frozenset({"standby", "waiting", "pending", "aborting", "concluded", "null", "vanished"}),
    "standby": frozenset({"ready", "waiting", "pending", "aborting", "concluded", "null", "vanished"}),
    "waiting": frozenset({"pending", "aborting", "concluded", "null", "vanished"}),
    "pending": frozenset({"aborting", "concluded", "null", "vanished"}),
    "aborting": frozenset({"concluded", "null", "vanished"}),
    "concluded": frozenset({"null", "vanished"}),
    "null": frozenset({"vanished"}),
    "vanished": frozenset(),
}

#: Nothing more will happen to the job by itself.
ENDED = frozenset({"concluded", "null", "vanished"})


class Impossible(errors.Error):
    """QEMU, or our idea of it, is wrong: the domain is observed anew."""

    msg = "job {self.job}: {self.status} cannot become {self.event}"
    code = "impossible-event"


@attrs.frozen
class Tracked:
    """A job being followed: the last status, the error that came with its end, and its progress in bytes."""

    id: str
    status: str = "undefined"
    error: str = ""
    current: int = 0
    total: int = 0

    def after(self, status: str) -> Tracked:
        """The job once QEMU has shown ``status``; the same one again changes nothing."""
        if status == self.status:
            return self
        if status not in TABLE[self.status]:
            raise Impossible(job=self.id, status=self.status, event=status)
        return attrs.evolve(self, status=status)

    def may_become(self, status: str) -> bool:
        """Whether ``after`` takes the status: a look that an event has overtaken shows one that it does not."""
        return status == self.status or status in TABLE[self.status]

    def progressed(self, current: int, total: int) -> Tracked:
        return attrs.evolve(self, current=current, total=total)

    def failed(self, error: str) -> Tracked:
        """The job with the reason of its end; the first reason stays."""
        return attrs.evolve(self, error=self.error or error)

    @property
    def ended(self) -> bool:
        return self.status in ENDED
