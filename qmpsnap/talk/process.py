"""What /proc tells of a QEMU process. Blocking, but from memory: no storage is asked."""

from __future__ import annotations

import contextlib
import os

import attrs


@attrs.frozen
class Process:
    """A process as it was when its monitor answered; ``started`` (clock ticks since boot) tells it from a later one of its pid."""

    pid: int
    started: int
    command: tuple[str, ...]
    cwd: str

    @property
    def alive(self) -> bool:
        """The same process still runs; a zombie does not."""
        return started(self.pid) == self.started


def look(pid: int) -> Process:
    """The process; fields stay empty that this user may not read."""
    command: tuple[str, ...] = ()
    cwd = "/"
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        command = tuple(os.fsdecode(word) for word in file.read().split(b"\0")[:-1])
    with contextlib.suppress(OSError):
        cwd = os.readlink(f"/proc/{pid}/cwd")
    return Process(pid, started(pid), command, cwd)


def started(pid: int) -> int:
    """When the process was started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])
