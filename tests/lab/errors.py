"""How the lab fails."""

from collections.abc import Mapping


class LabError(Exception):
    """The lab could not do what a test asked for; the text is QEMU's."""


class GuestIOError(LabError):
    """A guest's read or write failed in QEMU, or did less than asked."""


class QMPError(LabError):
    """QEMU answered a command with an error."""

    def __init__(self, command: str, error: Mapping[str, str]) -> None:
        super().__init__(f"{command}: {error['class']}: {error['desc']}")
        self.error_class = error["class"]
        self.desc = error["desc"]
