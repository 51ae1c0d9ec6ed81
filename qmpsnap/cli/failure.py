"""What ends a verb early: lines for a person and the exit status for a shell."""

from __future__ import annotations


class Failure(Exception):
    """The verb ran and failed; each line is shown behind ``error:`` on stderr."""

    def __init__(self, *lines: str, status: int = 1) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.status = status


class Usage(Failure):
    """The command line cannot be understood; as in virsh, nothing goes to stdout."""


class Unreachable(Failure):
    """No connection to the daemon, so nothing happened."""


class Lost(Failure):
    """The connection ended before the answer: the outcome is unknown."""


class Answered(Failure):
    """The daemon answered with an error: its ``message`` is the line, ``status`` the exit status."""

    def __init__(self, message: str, *, code: str, kind: str, status: int) -> None:
        super().__init__(message, status=status)
        self.code = code
        self.kind = kind


class DeadlinePassed(Exception):
    """The time that the user gave with ``--timeout`` is over."""
