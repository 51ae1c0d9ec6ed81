"""The worst disk that POSIX allows, as a value: what is there now, and what a loss of power would leave.

Every file has its bytes now, the bytes that are safe, and the changes between the two, in order; every directory the same with
its entries. fsync of a file makes its contents safe, not its name; fsync of a directory makes its entries safe, not what they
name. A rename from one directory to another is two entries, each safe with its own directory.
"""

from __future__ import annotations

import enum
import errno
import os
import random
import stat
import time
from collections.abc import Iterator

import attrs

ROOT = 1

#: What a disk writes whole or not at all.
SECTOR = 512


class Policy(enum.Enum):
    """What a loss of power leaves of the changes that were not made safe."""

    #: Nothing.
    SYNCED = "synced"
    #: Every name, and no contents: the empty files that a rename without fsync leaves.
    NAMES = "names"
    #: Anything: of each directory's changes some, of each file's some sectors.
    TORN = "torn"


@attrs.frozen
class Meta:
    """What stat(2) tells beside size and links."""

    mode: int
    uid: int
    gid: int
    mtime: int


@attrs.frozen
class Write:
    """Bytes at a place; the file grows where they end beyond it."""

    offset: int
    data: bytes


@attrs.frozen
class Resize:
    """The file has this length."""

    size: int


def _apply(data: bytearray, change: Write | Resize) -> None:
    end = change.size if isinstance(change, Resize) else change.offset + len(change.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    if isinstance(change, Resize):
        del data[change.size :]
    else:
        data[change.offset : end] = change.data


class File:
    """A regular file."""

    def __init__(self, meta: Meta) -> None:
        self.meta = self.safe_meta = meta
        self.links = 0
        self.data = bytearray()
        self._safe = bytearray()
        self._pending: list[Write | Resize] = []

    def change(self, change: Write | Resize) -> None:
        _apply(self.data, change)
        self._pending.append(change)
        self.meta = attrs.evolve(self.meta, mtime=time.time_ns())

    def sync(self, *, data_only: bool = False) -> None:
        for change in self._pending:
            _apply(self._safe, change)
        self._pending.clear()
        if not data_only:
            self.safe_meta = self.meta

    def cut(self, policy: Policy, chance: random.Random) -> int:
        """The file is what is left of it; how many changes were not safe."""
        lost = len(self._pending)
        if policy is Policy.TORN:
            share = chance.choice((0.1, 0.5, 0.9))
            for change in self._pending:
                for part in _sectors(change):
                    if chance.random() < share:
                        _apply(self._safe, part)
        self._pending.clear()
        if lost or self.meta != self.safe_meta:
            self.data, self.meta = bytearray(self._safe), self.safe_meta
        return lost


def _sectors(change: Write | Resize) -> Iterator[Write | Resize]:
    if isinstance(change, Resize):
        yield change
        return
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, start - start % SECTOR + SECTOR)
        yield Write(start, change.data[start - change.offset : stop - change.offset])
        start = stop


class Folder:
    """A directory: names to numbers of nodes. A pending change sets several names at once, to None for one that goes."""

    def __init__(self, meta: Meta) -> None:
        self.meta = self.safe_meta = meta
        self.links = 0
        self.entries: dict[str, int] = {}
        self._safe: dict[str, int] = {}
        self._pending: list[dict[str, int | None]] = []

    def change(self, names: dict[str, int | None]) -> None:
        _rename(self.entries, names)
        self._pending.append(names)
        self.meta = attrs.evolve(self.meta, mtime=time.time_ns())

    def sync(self, *, data_only: bool = False) -> None:
        self._safe = dict(self.entries)
        self._pending.clear()
        if not data_only:
            self.safe_meta = self.meta

    def cut(self, policy: Policy, chance: random.Random) -> int:
        """The directory is what is left of it; how many changes were not safe."""
        lost = len(self._pending)
        if policy is not Policy.SYNCED:
            share = 1.0 if policy is Policy.NAMES else chance.choice((0.1, 0.5, 0.9))
            for names in self._pending:
                if chance.random() < share:
                    _rename(self._safe, names)
        self._pending.clear()
        self.entries, self.meta = dict(self._safe), self.safe_meta
        return lost


def _rename(entries: dict[str, int], names: dict[str, int | None]) -> None:
    for name, number in names.items():
        if number is None:
            entries.pop(name, None)
        else:
            entries[name] = number


Node = File | Folder


class Disk:
    """A tree of files and directories, by numbers of nodes as the kernel asks for them. Every call is one of the kernel's."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._last = ROOT - 1
        self._add(Folder(Meta(stat.S_IFDIR | 0o755, os.getuid(), os.getgid(), time.time_ns())))

    def _add(self, node: Node) -> int:
        self._last += 1
        self._nodes[self._last] = node
        return self._last

    def node(self, number: int) -> Node:
        try:
            return self._nodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, "gone with the power") from None

    def file(self, number: int) -> File:
        node = self.node(number)
        if isinstance(node, Folder):
            raise OSError(errno.EISDIR, "a directory")
        return node

    def folder(self, number: int) -> Folder:
        node = self.node(number)
        if isinstance(node, File):
            raise OSError(errno.ENOTDIR, "a file")
        return node

    def lookup(self, parent: int, name: str) -> int:
        try:
            return self.folder(parent).entries[name]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None

    def make(self, parent: int, name: str, mode: int, uid: int, gid: int) -> int:
        """A new file or directory."""
        if name in self.folder(parent).entries:
            raise OSError(errno.EEXIST, name)
        meta = Meta(mode, uid, gid, time.time_ns())
        number = self._add(Folder(meta) if stat.S_ISDIR(mode) else File(meta))
        self._enter(parent, {name: number})
        return number

    def link(self, number: int, parent: int, name: str) -> None:
        if name in self.folder(parent).entries:
            raise OSError(errno.EEXIST, name)
        self._enter(parent, {name: number})

    def remove(self, parent: int, name: str) -> None:
        """A name is gone; a directory's only when it is empty."""
        node = self.node(self.lookup(parent, name))
        if isinstance(node, Folder) and node.entries:
            raise OSError(errno.ENOTEMPTY, name)
        self._enter(parent, {name: None})

    def rename(self, parent: int, name: str, to: int, new: str) -> None:
        number = self.lookup(parent, name)
        if self.folder(to).entries.get(new) == number:
            return  # rename(2): two names of one file both stay
        if parent == to:
            self._enter(parent, {name: None, new: number})
        else:
            self._enter(to, {new: number})
            self._enter(parent, {name: None})

    def _enter(self, parent: int, names: dict[str, int | None]) -> None:
        folder = self.folder(parent)
        for name, number in names.items():
            if old := folder.entries.get(name):
                self.node(old).links -= 1
            if number:
                self.node(number).links += 1
        folder.change(names)

    def sync(self) -> None:
        """All is safe."""
        for node in self._nodes.values():
            node.sync()

    def cut(self, policy: Policy, seed: int) -> int:
        """The power is gone, and back: what is there is what ``policy`` leaves; how many changes were not safe."""
        chance = random.Random(seed)
        lost = sum(node.cut(policy, chance) for node in self._nodes.values())
        for node in self._nodes.values():
            node.links = 0
        reached, ways = {ROOT}, [ROOT]
        while ways:
            node = self._nodes[ways.pop()]
            for number in node.entries.values() if isinstance(node, Folder) else ():
                self._nodes[number].links += 1
                if number not in reached:
                    reached.add(number)
                    ways.append(number)
        self._nodes = {number: node for number, node in self._nodes.items() if number in reached}
        self.sync()
        return lost
