"""The place where one run of the bench happens: its folder, its daemons, its libvirtd, and how thorough it is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.bench import libvirt, sides
from tests.lab import daemon, qemu


class Rig:
    """Everything that one run shares; ``stack`` ends it all. ``libvirtd`` is None where there is none, and ``lacking`` says why."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *, quick: bool, with_libvirt: bool) -> None:
        self.folder = folder
        self.quick = quick
        self._stack = stack
        self.lacking = libvirt.lacking() if with_libvirt else "it was not asked for"
        self.libvirtd = None if self.lacking else stack.enter_context(libvirt.Libvirtd(folder / "lv"))
        self.daemon = stack.enter_context(sides.serving(folder / "d"))
        self.unsynced = stack.enter_context(sides.serving(folder / "u", synced=False))

    @classmethod
    @contextlib.contextmanager
    def open(cls, *, quick: bool, with_libvirt: bool) -> Iterator[Self]:
        """A rig in a folder of its own (short, for sockets), all gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="qb-"))
        try:
            with contextlib.ExitStack() as stack:
                yield cls(folder, stack, quick=quick, with_libvirt=with_libvirt)
        finally:
            shutil.rmtree(folder)

    def another_libvirtd(self) -> libvirt.Libvirtd:
        """One more, with nothing behind it."""
        return libvirt.Libvirtd(self.folder / sides.fresh("lv"))

    def times(self, thorough: int) -> int:
        """How often: once when it is only to be seen that it works."""
        return 1 if self.quick else thorough

    @contextlib.contextmanager
    def scene(self) -> Iterator[Scene]:
        """Machines and images for one measurement, gone afterwards."""
        folder = self.folder / sides.fresh("m")
        folder.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                yield Scene(self, folder, stack)
        finally:
            shutil.rmtree(folder)


class Scene:
    """A part of the run with machines of its own."""

    def __init__(self, rig: Rig, folder: Path, stack: contextlib.ExitStack) -> None:
        self.rig = rig
        self.folder = folder
        self._stack = stack

    def chains(self, disks: int, depth: int = 1, data: int = 0) -> list[Path]:
        """Images for one machine: the newest layer of each disk."""
        folder = self.folder / sides.fresh("i")
        return [sides.chain(folder / str(disk), depth, data=data) for disk in range(disks)]

    def machine(self, tops: list[Path]) -> qemu.Machine:
        return self._stack.enter_context(qemu.Machine(self.folder / sides.fresh("q"), sides.drives(tops)))

    def raw(self, tops: list[Path]) -> sides.Raw:
        """A machine of these disks for bare QMP."""
        return sides.Raw(self.machine(tops), tops)

    def ours(self, tops: list[Path], server: daemon.Daemon | None = None) -> sides.Ours:
        """A machine of these disks as a domain of ours."""
        found = sides.Ours(server or self.rig.daemon, self.machine(tops))
        self._stack.callback(found.leave)
        return found

    def domain(self, tops: list[Path]) -> libvirt.Domain | None:
        """A machine of these disks as a domain of libvirt's, where there is one."""
        if self.rig.libvirtd is None:
            return None
        found = self.rig.libvirtd.domain(tops)
        self._stack.callback(found.remove)
        return found
