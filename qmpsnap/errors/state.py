"""Our files, and acts on files."""

from __future__ import annotations

from qmpsnap.errors.base import CommandFailed, Corrupt, Refused


class BadXml(Corrupt):
    msg = "XML error: {self.origin}: {self.reason}"
    code = "bad-xml"


class RecordDamaged(Corrupt):
    """What names the newest layers cannot be read; what runs, or what a definition names, may be older."""

    msg = (
        "the record of domain '{self.domain}' cannot be read: {self.file}: {self.reason}; it names the newest layers, so nothing"
        " is changed or started without it: put a good copy there, or look at the disks and move it away"
        " (mv {self.file} {self.file}.damaged)"
    )
    code = "record-damaged"


class SnapshotDamaged(Corrupt):
    msg = (
        "a snapshot of domain '{self.domain}' cannot be read: {self.reason}; it may be the current one or have that name, so no"
        " other is made: put a good copy there, or look at it and move it out of that directory"
    )
    code = "snapshot-damaged"


class BadJournal(Corrupt):
    msg = (
        "journal entry {self.file} cannot be read: {self.reason}; nothing is changed until it can be, by the qmpsnap that wrote"
        " it, or until somebody has looked at the disks and taken it away"
    )
    code = "bad-journal"


class StateInUse(Refused):
    msg = "another qmpsnapd uses {self.folder}; stop it, or give this one another state directory (QMPSNAP_ROOT)"
    code = "state-in-use"


class StateOfAnotherHost(Refused):
    """Two hosts on one state directory: neither lock nor process table of the one tells anything to the other."""

    msg = (
        "the state directory {self.folder} belongs to another host ({self.file} says which): if it is shared with that host, give"
        " this one its own; if it was moved or restored from a backup, start once with: qmpsnapd --take-over"
    )
    code = "state-of-another-host"


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


class CannotCreateFile(FileFailed):
    msg = "failed to create image file '{self.file}': {self.reason}"
    code = "cannot-create-file"
