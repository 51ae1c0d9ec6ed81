"""Our files, and acts on files."""

from __future__ import annotations

from qmpsnap.errors.base import CommandFailed, Corrupt, Refused


class BadXml(Corrupt):
    msg = "XML error: {self.origin}: {self.reason}"
    code = "bad-xml"


class BadJournal(Corrupt):
    msg = "journal entry {self.file} cannot be read: {self.reason}"
    code = "bad-journal"


class StateInUse(Refused):
    msg = "another qmpsnapd uses {self.folder}; stop it, or give this one another state directory (QMPSNAP_ROOT)"
    code = "state-in-use"


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
