"""What the daemon takes of the host's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.bench import sides, timing
from tests.bench.rig import Rig
from tests.lab import qemu
from tests.lab.images import KIB

_MACHINES = 100


def memory(rig: Rig) -> Iterator[timing.Row]:
    """Resident memory with one machine and with a hundred, libvirtd's beside it."""
    many = 2 if rig.quick else _MACHINES
    ours = _ours(rig, many)
    theirs = _libvirtd(rig, many)
    for count in (1, many):
        what = f"qmpsnapd's memory with {count} machine{'s' if count > 1 else ''}"
        yield timing.Row(what, ours[count], "MiB", "libvirtd", theirs.get(count))


def _ours(rig: Rig, many: int) -> dict[int, float]:
    found = {}
    with rig.scene() as scene, sides.serving(scene.folder / "d") as server, contextlib.ExitStack() as stack:
        for count in range(1, many + 1):
            vm = stack.enter_context(
                qemu.Machine(
                    scene.folder / f"q{count}", machine_type="none", memory=16, paused=True, firmware=False
                )
            )
            sides.Ours(server, vm)
            if count in (1, many):
                found[count] = _resident(Path(f"/proc/{server.pid}/status"))
    return found


def _libvirtd(rig: Rig, many: int) -> dict[int, float]:
    """A libvirtd that has done nothing else; it has no machine without a board, and a small one is as good for its own size."""
    found: dict[int, float] = {}
    if rig.libvirtd is None:
        return found
    with rig.another_libvirtd() as home:
        for count in range(1, many + 1):
            home.domain(memory=16)
            if count in (1, many):
                found[count] = _resident(home.status)
    return found


def _resident(status: Path) -> float:
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / KIB
    raise ProcessLookupError(status)
