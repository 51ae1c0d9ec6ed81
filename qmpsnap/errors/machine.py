"""What a machine is, or does, that keeps us from a change."""

from __future__ import annotations

from qmpsnap.errors.base import Busy, CommandFailed, Error, JobFailed, Refused


class NotRunning(Refused):
    msg = "Requested operation is not valid: domain is not running"
    code = "not-running"


class WrongStatus(Busy):
    msg = "Requested operation is not valid: domain '{self.domain}' cannot be {self.act} now: {self.reason}"
    code = "wrong-status"


class MigrationBegan(Error):
    """Past the commit point: QEMU writes to the overlays. Whether the state below stays as it is, is not ours to know."""

    msg = (
        "domain '{self.domain}': {self.reason} since before the snapshot was complete, and none is recorded: this QEMU writes"
        " to {self.overlays}, a destination that was started earlier will write to {self.below} below it; cancel the"
        " migration (migrate_cancel), and start the destination anew on {self.overlays}"
    )
    code = "migration-began"
    http = 409


class DiskBusy(Busy):
    msg = "Operation not supported: disk '{self.target}' already in active block job"
    code = "disk-busy"


class ImageBusy(Busy):
    msg = "'{self.file}' is used by the operation {self.operation} of {self.owner}, which is not finished yet"
    code = "image-busy"


class OperationOpen(Busy):
    msg = "operation {self.operation} ({self.verb}) on domain '{self.domain}' is not finished yet: {self.reason}"
    code = "operation-open"


class Drifted(Refused):
    """The machine was started below the newest layer that we acknowledged, or somebody changed its chain."""

    msg = (
        "disk '{self.target}' runs on '{self.active}', but its newest layer is '{self.recorded}': shut the machine down"
        " and start it with qemu-launch; or, to give that layer up, delete the snapshots' metadata, detach '{self.domain}'"
        " and attach it"
    )
    code = "drifted"


class NoMonitor(Busy):
    """The machine may run, but its monitor does not answer us now."""

    msg = "domain '{self.domain}': {self.reason}"
    code = "no-monitor"


class MonitorBusy(Busy):
    """The kernel queues no more clients for this monitor, or we are out of descriptors."""

    msg = "monitor {self.path} takes no more connections now: {self.reason}"
    code = "monitor-busy"


class MonitorGone(Busy):
    """Nobody listens at the path, or who did left before the session was ready."""

    msg = "monitor {self.path} is gone: {self.reason}"
    code = "monitor-gone"


class MonitorDenied(Refused):
    """We may not, or cannot at all, use this path as a monitor."""

    msg = "cannot connect to monitor {self.path}: {self.reason}"
    code = "monitor-denied"
    http = 403


class Foreign(Refused):
    """libvirtd keeps its own record of the disks: a change that it does not make is lost at the next boot (facts/libvirt.md 25)."""

    msg = (
        "the machine at {self.path} is libvirtd's domain '{self.name}': use virsh for it, or start it without libvirtd"
        " (qemu-launch)"
    )
    code = "foreign"


class MonitorGarbage(Error):
    """The peer does not speak QMP; ``excerpt`` is the start of what it said, printable and short."""

    msg = "monitor speaks garbage: {self.reason}: {self.excerpt}"
    code = "monitor-garbage"
    http = 502


class JobAborted(JobFailed):
    msg = "block job of disk {self.target} was aborted"
    code = "job-aborted"


class Unexpected(CommandFailed):
    """QEMU reported success, and a look shows something else."""

    msg = "QEMU did not do what it acknowledged: {self.reason}"
    code = "unexpected"


class Undone(CommandFailed):
    """The daemon or QEMU ended in the middle; recovery has taken everything back."""

    msg = "{self.verb} was interrupted and is undone: {self.reason}"
    code = "undone"
