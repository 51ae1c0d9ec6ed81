"""Starting a machine: qemu-launch."""

from __future__ import annotations

from qmpsnap.errors.base import Busy, Refused


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
