"""Every error is one of these, by what the caller may do next."""

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
