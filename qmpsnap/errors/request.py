"""What is wrong with a request: texts as virsh has them, where virsh has the case (measured on libvirt 9.0.0 and 11.3.0)."""

from __future__ import annotations

from qmpsnap.errors.base import Refused


class ConfigError(Refused):
    """A setting cannot be used; nothing is guessed in its place."""

    msg = "{self.file}: {self.key} {self.reason}"
    code = "config"
    http = 400


class BadRequest(Refused):
    msg = "malformed request: {self.reason}"
    code = "bad-request"
    http = 400


class BadName(Refused):
    """A name that could not be a file of its own, or that no XML can hold."""

    msg = "invalid {self.what} name '{self.name}': {self.reason}"
    code = "bad-name"
    http = 400


class NoDomain(Refused):
    msg = "failed to get domain '{self.domain}'"
    code = "no-domain"
    http = 404


class DomainExists(Refused):
    msg = "domain '{self.domain}' already exists with monitor '{self.monitor}'"
    code = "domain-exists"


class NoSnapshot(Refused):
    msg = "Domain snapshot not found: no domain snapshot with matching name '{self.name}'"
    code = "no-snapshot"
    http = 404


class SnapshotExists(Refused):
    msg = "operation failed: domain moment {self.name} already exists"
    code = "snapshot-exists"


class HasSnapshots(Refused):
    msg = "domain '{self.domain}' has {self.count} snapshots; delete their metadata first (snapshot-delete --metadata)"
    code = "has-snapshots"


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


class DiskReadOnly(Refused):
    msg = "Requested operation is not valid: disk '{self.target}' is read-only"
    code = "disk-read-only"


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


class WouldHurt(Refused):
    """Somebody needs the image as it is. There is no --force for what would corrupt."""

    msg = "'{self.file}' cannot be {self.act}: {self.reason}; {self.way}"
    code = "would-hurt"


class NotOrphan(Refused):
    msg = "'{self.file}' is no orphan: {self.reason}"
    code = "not-orphan"


class NotInTrash(Refused):
    msg = "no image with id '{self.trash}' in the trash"
    code = "not-in-trash"
    http = 404


class CannotRestore(Refused):
    msg = "'{self.file}' cannot be restored: {self.reason}"
    code = "cannot-restore"


class ReuseMissing(Refused):
    msg = "missing existing file for disk {self.target}: {self.file}: No such file or directory"
    code = "reuse-missing"


class ReuseUnfit(Refused):
    """libvirt takes any file here, a 1 MiB one for a 20 GiB disk too (facts/libvirt.md 16); we do not."""

    msg = "file '{self.file}' cannot be the overlay of disk {self.target}: {self.reason}"
    code = "reuse-unfit"


class ChainTooDeep(Refused):
    """QEMU takes more, but libvirt refuses beyond 200 images and 11.3's own JSON parser at 26 (facts/libvirt.md 11, 12)."""

    msg = "Operation not supported: backing chains more than {self.limit} layers deep are not supported for disk '{self.target}'"
    code = "chain-too-deep"


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


class NoOperation(Refused):
    msg = "no operation with id '{self.operation}'"
    code = "no-operation"
    http = 404


class Unsupported(Refused):
    msg = "{self.what} is not supported yet{self.instead}"
    code = "unsupported"
    http = 400
