"""Every error that qmpsnap raises on purpose, by what the caller may do next.

::

    Error
    ├─ Refused          nothing happened: fix the request
    ├─ Busy             nothing happened: the same request may pass later
    ├─ CommandFailed    QEMU (or a tool) said no; what was begun is undone
    │   └─ JobFailed    a block job ended with an error
    ├─ Disconnected     the outcome is unknown: we look again
    ├─ Incomplete       past the commit point: recovery goes on
    └─ Corrupt          our own files are damaged: a person must look

A class is a template over its attributes, a stable ``code`` for programs and an exit status for shells.
``str(error)`` is one line, worded as virsh words it where virsh has the same case
(texts measured on libvirt 9.0.0 and 11.3.0).
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """Base of all; attributes given by keyword fill ``msg`` and travel to the client."""

    msg: ClassVar[str] = "{self.reason}"
    code: ClassVar[str] = "error"
    status: ClassVar[int] = 1
    http: ClassVar[int] = 500

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self.facts = facts
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return " ".join(self.msg.format(self=self).split("\n"))


class Refused(Error):
    """Nothing happened: the request must be changed before it can pass."""

    code = "refused"
    http = 409


class Busy(Error):
    """Nothing happened: the same request may pass later."""

    code = "busy"
    http = 423


class CommandFailed(Error):
    """QEMU or a tool refused an act; everything begun before it was undone."""

    code = "command-failed"
    http = 502


class JobFailed(CommandFailed):
    """A block job of ours ended with an error; the chain is as it was."""

    code = "job-failed"


class Disconnected(Error):
    """The connection ended before the answer: the outcome is unknown until we have looked."""

    code = "disconnected"
    http = 503


class Incomplete(Error):
    """Past the commit point something failed; the journal keeps the rest and recovery goes on."""

    code = "incomplete"


class Corrupt(Error):
    """A file of our own state cannot be trusted; nothing is guessed from it."""

    code = "corrupt"


# --- what is wrong with a request: texts as virsh has them, where virsh has the case ---


class ConfigError(Refused):
    """A setting cannot be used; nothing is guessed in its place."""

    msg = "{self.file}: {self.key} {self.reason}"
    code = "config"
    http = 400


class NoDomain(Refused):
    msg = "failed to get domain '{self.domain}'"
    code = "no-domain"
    http = 404


class DomainExists(Refused):
    msg = "domain '{self.domain}' already exists with monitor '{self.monitor}'"
    code = "domain-exists"


class BadName(Refused):
    """A name that could not be a file of its own, or that no XML can hold."""

    msg = "invalid {self.what} name '{self.name}': {self.reason}"
    code = "bad-name"
    http = 400


class NotRunning(Refused):
    msg = "Requested operation is not valid: domain is not running"
    code = "not-running"


class NoMonitor(Busy):
    """The machine may run, but its monitor does not answer us now."""

    msg = "domain '{self.domain}': {self.reason}"
    code = "no-monitor"


class NoSnapshot(Refused):
    msg = "Domain snapshot not found: no domain snapshot with matching name '{self.name}'"
    code = "no-snapshot"
    http = 404


class NoCurrentSnapshot(Refused):
    msg = "domain '{self.domain}' has no current snapshot"
    code = "no-current-snapshot"
    http = 404


class SnapshotExists(Refused):
    msg = "operation failed: domain moment {self.name} already exists"
    code = "snapshot-exists"


class NoDisk(Refused):
    msg = "unsupported configuration: no disk named '{self.target}'"
    code = "no-disk"


class NoDiskInDomain(Refused):
    msg = "invalid argument: disk '{self.disk}' not found in domain"
    code = "no-disk-in-domain"
    http = 404


class NothingSelected(Refused):
    msg = "unsupported configuration: nothing selected for snapshot"
    code = "nothing-selected"


class DiskTwice(Refused):
    msg = "unsupported configuration: disk '{self.target}' is requested twice"
    code = "disk-twice"


class DiskUnsupported(Refused):
    msg = "unsupported configuration: disk '{self.target}' {self.reason}; leave it out with --diskspec {self.target},snapshot=no"
    code = "disk-unsupported"


class FormatUnsupported(Refused):
    msg = "unsupported configuration: external snapshot format for disk {self.target} is unsupported: {self.format}"
    code = "format-unsupported"


class FileExists(Refused):
    msg = (
        "unsupported configuration: external snapshot file for disk {self.target} already exists"
        " and is not a block device: {self.file}"
    )
    code = "file-exists"


class FileTwice(Refused):
    msg = "unsupported configuration: disks {self.first} and {self.target} would share the file '{self.file}'"
    code = "file-twice"


class FileRelative(Refused):
    msg = "XML error: disk snapshot image path '{self.file}' must be absolute"
    code = "file-relative"
    http = 400


class CannotCreate(Refused):
    msg = "failed to create image file '{self.file}': {self.reason}"
    code = "cannot-create"


class ReuseMissing(Refused):
    msg = "missing existing file for disk {self.target}: {self.file}: No such file or directory"
    code = "reuse-missing"


class ReuseUnfit(Refused):
    """libvirt takes any file here, a 1 MiB one for a 20 GiB disk too (facts/libvirt.md 16); we do not."""

    msg = "file '{self.file}' cannot be the overlay of disk {self.target}: {self.reason}"
    code = "reuse-unfit"


class DiskBusy(Busy):
    msg = "Operation not supported: disk '{self.target}' already in active block job"
    code = "disk-busy"


class OperationOpen(Busy):
    msg = "operation {self.operation} ({self.verb}) on domain '{self.domain}' is not finished yet: {self.reason}"
    code = "operation-open"


class NotInChain(Refused):
    msg = "invalid argument: could not find image '{self.base}' beneath '{self.top}' in chain for '{self.target}'"
    code = "not-in-chain"


class NoIndex(Refused):
    msg = "invalid argument: could not find backing store index '{self.index}' in chain for '{self.target}'"
    code = "no-index"


class NoJob(Refused):
    msg = "invalid argument: disk {self.target} does not have an active block job"
    code = "no-job"
    http = 404


class JobAborted(JobFailed):
    msg = "block job of disk {self.target} was aborted"
    code = "job-aborted"


class NoOperation(Refused):
    msg = "no operation with id '{self.operation}'"
    code = "no-operation"
    http = 404


class Unsupported(Refused):
    msg = "{self.what} is not supported yet{self.instead}"
    code = "unsupported"
    http = 400


class ChainTooDeep(Refused):
    """QEMU takes more, but libvirt refuses beyond 200 images and 11.3's own JSON parser at 26 (facts/libvirt.md 11, 12)."""

    msg = "Operation not supported: backing chains more than {self.limit} layers deep are not supported for disk '{self.target}'"
    code = "chain-too-deep"


class HasSnapshots(Refused):
    msg = "domain '{self.domain}' has {self.count} snapshots; delete their metadata first (snapshot-delete --metadata)"
    code = "has-snapshots"


class BadXml(Corrupt):
    msg = "XML error: {self.origin}: {self.reason}"
    code = "bad-xml"


class BadJournal(Corrupt):
    msg = "journal entry {self.file} cannot be read: {self.reason}"
    code = "bad-journal"


# --- reaching a monitor: `talk.monitor.connect` raises these and nothing else of ours ---


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


class MonitorGarbage(Error):
    """The peer does not speak QMP; ``excerpt`` is the start of what it said, printable and short."""

    msg = "monitor speaks garbage: {self.reason}: {self.excerpt}"
    code = "monitor-garbage"
    http = 502


class ListenFailed(Refused):
    msg = "cannot listen on {self.path}: {self.reason}"
    code = "listen-failed"


class AlreadyRunning(ListenFailed):
    msg = "cannot listen on {self.path}: another daemon answers there"
    code = "already-running"


class NotASocket(ListenFailed):
    msg = "cannot listen on {self.path}: it exists and is not a socket, so it is left alone"
    code = "not-a-socket"


class BadHttp(Refused):
    """Not HTTP/1.1, or not a form of it that we read."""

    msg = "malformed HTTP request: {self.reason}"
    code = "bad-http"
    http = 400


class HttpTimeout(Refused):
    msg = "the request's {self.part} took longer than {self.seconds:g} seconds"
    code = "http-timeout"
    http = 408


class BodyTooLarge(Refused):
    msg = "the request's body is larger than {self.limit} bytes"
    code = "body-too-large"
    http = 413


class HeadTooLarge(Refused):
    msg = "the request's head is larger than {self.limit} bytes"
    code = "head-too-large"
    http = 431


class TooManyConnections(Busy):
    msg = "too many connections{self.whose}"
    code = "too-many-connections"
    http = 503


class InternalError(Error):
    """A bug of ours: the log has its traceback, the client only learns that there is one."""

    msg = "internal error; the daemon's log tells more"
    code = "internal"


class WrongStatus(Busy):
    msg = "Requested operation is not valid: domain '{self.domain}' cannot be snapshotted now: {self.reason}"
    code = "wrong-status"


class DiskReadOnly(Refused):
    msg = "Requested operation is not valid: disk '{self.target}' is read-only"
    code = "disk-read-only"


class Undecided(Corrupt):
    """Recovery found a state in which either way could lose data: nothing is touched until a person has looked."""

    msg = "{self.verb} on domain '{self.domain}' can neither be finished nor undone by itself: {self.reason}"
    code = "undecided"


class ToolFailed(CommandFailed):
    msg = "{self.tool}: {self.reason}"
    code = "tool-failed"


class FileFailed(CommandFailed):
    """An act on a file did not work: no space, no permission, a broken disk."""

    msg = "cannot {self.act} '{self.file}': {self.reason}"
    code = "file-failed"


class StateInUse(Refused):
    msg = "another qmpsnapd uses {self.folder}; stop it, or give this one another state directory (QMPSNAP_ROOT)"
    code = "state-in-use"


class CannotCreateFile(FileFailed):
    msg = "failed to create image file '{self.file}': {self.reason}"
    code = "cannot-create-file"


class Unexpected(CommandFailed):
    """QEMU reported success, and a look shows something else."""

    msg = "QEMU did not do what it acknowledged: {self.reason}"
    code = "unexpected"


class Undone(CommandFailed):
    """The daemon or QEMU ended in the middle; recovery has taken everything back."""

    msg = "{self.verb} was interrupted and is undone: {self.reason}"
    code = "undone"


class Drifted(Refused):
    """The machine was started below the newest layer that we acknowledged, or somebody changed its chain."""

    msg = (
        "disk '{self.target}' runs on '{self.active}', but its newest layer is '{self.recorded}': shut the machine down"
        " and start it with qemu-launch; or, to give that layer up, delete the snapshots' metadata, detach '{self.domain}'"
        " and attach it"
    )
    code = "drifted"


class BadRequest(Refused):
    msg = "malformed request: {self.reason}"
    code = "bad-request"
    http = 400


class NoRoute(Refused):
    msg = "{self.method} {self.path}: {self.reason}"
    code = "no-route"
    http = 404


# --- starting a machine: qemu-launch ---


class NoDefinition(Refused):
    msg = "domain '{self.domain}' is not defined: there is no {self.file}"
    code = "no-definition"
    http = 404


class DomainRunning(Busy):
    msg = "domain '{self.domain}' is already running: {self.monitor} answers"
    code = "domain-running"


class DomainStarting(Busy):
    """Another qemu-launch, or an operation on the powered-off machine, holds the machine's lock."""

    msg = (
        "domain '{self.domain}' is running, being started or being changed: another process holds {self.file}"
    )
    code = "domain-starting"


class JournalOpen(Busy):
    """Only recovery may say which layer is active while an operation is open."""

    msg = "domain '{self.domain}' has an unfinished operation ({self.entries}): {self.reason}"
    code = "journal-open"


class ActiveMissing(Refused):
    msg = (
        "disk {self.target} of domain '{self.domain}' has its active layer in '{self.file}', which is missing;"
        " bring it back, or name the image to be used with --as-given"
    )
    code = "active-missing"


class ImageStrange(Refused):
    """What is named for a disk was never part of it, as far as anything recorded tells."""

    msg = (
        "'{self.given}' is not in the backing chain of disk {self.target} of domain '{self.domain}', whose active layer is"
        " '{self.active}'; name that one, or use what is named with --as-given"
    )
    code = "image-strange"


class ImageAmbiguous(Refused):
    msg = "'{self.given}' is below several disks of domain '{self.domain}': {self.layers}; name the active layer"
    code = "image-ambiguous"


class ImageNeeded(Refused):
    """To start would write to an image that others read through: silent corruption (facts/qemu.md I)."""

    msg = (
        "'{self.file}' must not be written to: {self.reason}; open it read-only, or use an overlay of it"
        " (qemu-img create -f qcow2 -F {self.format} -b {self.file} NEW)"
    )
    code = "image-needed"


class DrivesUnseen(Refused):
    msg = "cannot see which images '{self.option}' opens; give them with -drive or -blockdev"
    code = "drives-unseen"


class SocketPathTooLong(Refused):
    msg = "socket path '{self.path}' has {self.length} bytes; {self.limit} are possible"
    code = "socket-path-too-long"
