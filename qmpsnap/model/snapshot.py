"""Snapshots and their tree: parent, children, which one is current."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from qmpsnap import errors
from qmpsnap.model import names


@attrs.frozen
class SnapshotDisk:
    """A disk in a snapshot: ``overlay`` was created by it and holds what came after; ``image`` holds the state at the snapshot.

    A disk that was left out has neither. ``carried`` is libvirt's ``<disk>`` where it says more than the rest here: the snapshot
    is inside the image, the overlay is no file.
    """

    target: str
    overlay: str = ""
    overlay_format: str = "qcow2"
    image: str = ""
    image_format: str = ""
    # The fingerprint of ``image`` when the snapshot was made: with another one, somebody has written to it since.
    stamp: str = ""
    carried: str = ""

    @property
    def external(self) -> bool:
        return bool(self.overlay)


@attrs.frozen
class Snapshot:
    """A point in time with metadata, as in libvirt's ``<domainsnapshot>``; ``creation_time`` in epoch seconds.

    ``memory`` is libvirt's word for where the machine's memory was saved: no, internal or external, then in ``memory_file``.
    ``domain`` and ``inactive`` are the XML texts of ``<domain>`` and ``<inactiveDomain>`` at the snapshot, ``carried`` those of
    other elements that libvirt wrote: carried, not read again, so that what libvirt or a user put there survives.
    """

    name: str
    creation_time: int
    state: str = "disk-snapshot"
    description: str = ""
    parent: str = ""
    disks: tuple[SnapshotDisk, ...] = ()
    current: bool = False
    memory: str = "no"
    memory_file: str = ""
    domain: str = ""
    inactive: str = ""
    carried: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """libvirt's word: external when memory or any disk is in a file of its own, else internal (facts/libvirt.md 6.1)."""
        external = self.memory == "external" or any(disk.external for disk in self.disks)
        return "external" if external else "internal"


@attrs.frozen
class Tree:
    """The snapshots of a domain by name. A parent that is missing makes its child a root."""

    snapshots: Mapping[str, Snapshot]

    @staticmethod
    def of(snapshots: Iterable[Snapshot]) -> Tree:
        return Tree({snapshot.name: snapshot for snapshot in snapshots})

    def __len__(self) -> int:
        return len(self.snapshots)

    def get(self, name: str) -> Snapshot:
        """The snapshot, or ``NoSnapshot``."""
        if name not in self.snapshots:
            raise errors.NoSnapshot(name=name)
        return self.snapshots[name]

    @property
    def current(self) -> Snapshot | None:
        """The one that the present state descends from. Two that claim it (a crash between two files, or a person) are
        settled as libvirt does: the last one read, which here is the last by name."""
        claims = [s for s in self.ordered() if s.current]
        return claims[-1] if claims else None

    def ordered(self) -> list[Snapshot]:
        """All, in virsh's order."""
        return sorted(self.snapshots.values(), key=lambda s: names.sort_key(s.name))

    def parent(self, name: str) -> str:
        parent = self.get(name).parent
        return parent if parent in self.snapshots else ""

    def children(self, name: str) -> list[Snapshot]:
        return [s for s in self.ordered() if s.parent == name and s.name != name]

    def descendants(self, name: str) -> list[Snapshot]:
        """Children, their children and so on, parents first; a cycle made by hand ends where it began."""
        found: dict[str, Snapshot] = {}
        todo = self.children(name)
        while todo:
            snapshot = todo.pop(0)
            if snapshot.name not in found and snapshot.name != name:
                found[snapshot.name] = snapshot
                todo[:0] = self.children(snapshot.name)
        return list(found.values())

    def family(self) -> dict[str, tuple[int, int]]:
        """Number of children and descendants of every snapshot, in one walk (a tree of 100 is listed often)."""
        children: dict[str, list[str]] = {name: [] for name in self.snapshots}
        for snapshot in self.snapshots.values():
            if snapshot.parent in children and snapshot.parent != snapshot.name:
                children[snapshot.parent].append(snapshot.name)
        counts: dict[str, tuple[int, int]] = {}
        for name in self.snapshots:
            seen, todo = {name}, list(children[name])
            while todo:
                child = todo.pop()
                if child not in seen:
                    seen.add(child)
                    todo.extend(children[child])
            counts[name] = (len(children[name]), len(seen) - 1)
        return counts
