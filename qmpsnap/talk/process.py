"""What /proc tells of a QEMU process. Blocking, but from memory: no storage is asked."""

from __future__ import annotations

import contextlib
import itertools
import os
import re

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

    @property
    def libvirt(self) -> str:
        """The name of libvirt's domain, when libvirtd has started this QEMU; else "".

        Told by the secret that libvirtd hands to every QEMU (libvirt 9.0 and 11.3: facts/libvirt.md): its file exists only
        for the machine that it was made for, so that a command line copied from libvirt starts with this object taken out.
        """
        if not any("masterKey0" in word and "/master-key.aes" in word for word in self.command):
            return ""
        name = next((b for a, b in itertools.pairwise(self.command) if a == "-name"), "")
        found = re.match(r"guest=((?:[^,]|,,)*)", name)
        return found[1].replace(",,", ",") if found else "?"


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
