"""The image graph: every image that this host knows, what backs what, and who needs each one.

An image is what a name leads to (device and inode), so that a link does not hide one behind another. Who needs an image needs all
below it; who changes one, or takes it away, hurts everybody above it. No act that does either happens without ``hurt`` saying
nothing (design 4: nobody else has this, and QEMU prevents none of it: facts/qemu.md 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import attrs

from qmpsnap.model import domain_xml, snapshot


@attrs.frozen
class Identity:
    """What makes two names the same image: device and inode, or a block device's number."""

    kind: str
    device: int
    inode: int


@attrs.frozen
class Found:
    """What a name leads to. ``identity`` is None where no image is; ``backing`` is the absolute name of the file below it.

    ``strange`` is a backing file that is no file of this host; ``bad`` is why the image cannot be read. ``stamp`` is another one
    once somebody has written to it (facts/qemu.md 32); ``written`` is the time of that, in nanoseconds since the epoch.
    """

    file: str
    identity: Identity | None
    format: str = ""
    backing: str = ""
    backing_format: str = ""
    strange: str = ""
    stamp: str = ""
    written: int = 0
    length: int = 0
    allocated: int = 0
    bad: str = ""


@attrs.frozen
class Need:
    """Somebody's need of the image ``file``.

    ``active``: the guest of ``domain`` writes to it, ``what`` is the disk. ``state``: it is what the snapshot ``what`` shows.
    ``overlay``: it holds what came after the snapshot. ``open``: a QEMU has it open. ``operation``: something is under way.
    ``hold``: the settings keep it. ``image``: nobody that we know, but the image ``what`` names it as its backing file.
    """

    kind: Literal["active", "state", "overlay", "open", "operation", "hold", "image"]
    file: str
    domain: str = ""
    what: str = ""
    format: str = ""

    def says(self, image: str) -> str:
        """The need as a sentence's part; ``image`` is the word for the image."""
        whose = f" of domain '{self.domain}'" if self.domain else ""
        return {
            "active": f"disk {self.what}{whose} boots {image}",
            "state": f"{image} holds the state of snapshot '{self.what}'{whose}",
            "overlay": f"{image} holds what came after snapshot '{self.what}'{whose}",
            "open": f"QEMU has {image} open as a part of disk {self.what}{whose}",
            "operation": f"the operation {self.what}{whose} uses {image}",
            "hold": f"the settings hold {image}",
            "image": f"the image '{self.what}' has {image} as its backing file",
        }[self.kind]


@attrs.frozen
class Harm:
    """A need that would be hurt; ``through`` is the image that somebody needs, where it is one above the image in question."""

    need: Need
    through: str = ""

    def __str__(self) -> str:
        if not self.through:
            return self.need.says("it")
        return f"it is below '{self.through}', and {self.need.says('that')}"


@attrs.frozen
class Graph:
    """All that is known at one moment. ``unknown`` says what could not be found out: while it is not empty, that nobody needs an
    image is not proved."""

    found: Mapping[str, Found]
    needs: tuple[Need, ...]
    unknown: tuple[str, ...] = ()
    _above: Mapping[Identity, frozenset[Identity]] = attrs.field(init=False, repr=False, eq=False)
    _names: Mapping[Identity, tuple[str, ...]] = attrs.field(init=False, repr=False, eq=False)
    _by: Mapping[Identity, tuple[Need, ...]] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        above: dict[Identity, set[Identity]] = {}
        names: dict[Identity, list[str]] = {}
        by: dict[Identity, list[Need]] = {}
        for name, image in self.found.items():
            if image.identity is not None:
                names.setdefault(image.identity, []).append(name)
                below = self.identity(image.backing)
                if below is not None and below != image.identity:
                    above.setdefault(below, set()).add(image.identity)
        for need in self.needs:
            if (identity := self.identity(need.file)) is not None:
                by.setdefault(identity, []).append(need)
        object.__setattr__(self, "_above", {k: frozenset(v) for k, v in above.items()})
        object.__setattr__(self, "_names", {k: tuple(sorted(v)) for k, v in names.items()})
        object.__setattr__(self, "_by", {k: tuple(v) for k, v in by.items()})

    def identity(self, file: str) -> Identity | None:
        """What the name leads to, as far as anybody has looked."""
        found = self.found.get(file)
        return found.identity if found else None

    def same(self, one: str, other: str) -> bool:
        """Both names lead to the same image."""
        identity = self.identity(one)
        return identity is not None and identity == self.identity(other)

    def names(self, file: str) -> tuple[str, ...]:
        """Every known name of the image."""
        identity = self.identity(file)
        return self._names.get(identity, ()) if identity else ()

    def _up(self, start: Identity) -> Iterator[Identity]:
        """The image and all above it; a cycle that headers make ends where it began."""
        seen, todo = {start}, [start]
        while todo:
            one = todo.pop()
            yield one
            more = self._above.get(one, frozenset()) - seen
            seen |= more
            todo.extend(sorted(more, key=lambda i: self._names[i]))

    def hurt(self, file: str) -> list[Harm]:
        """Who would be hurt were the image's contents changed, or were it gone: nearest first.

        Images above it that nobody known needs count: somebody has made them.
        """
        start = self.identity(file)
        return self.harms(start) if start else [Harm(need) for need in self._missing(file)]

    def harms(self, start: Identity) -> list[Harm]:
        """The same for an image that is there."""
        found: list[Harm] = []
        for one in self._up(start):
            through = "" if one == start else self._name(one)
            found += [Harm(need, through) for need in self._by.get(one, ())]
            if one != start and not self._by.get(one) and not self._above.get(one):
                below = self.found[through].backing
                need = Need("image", below, what=through)
                found.append(Harm(need, "" if self.identity(below) == start else below))
        return found

    def _name(self, identity: Identity) -> str:
        return self._names[identity][0]

    def _missing(self, file: str) -> Iterator[Need]:
        """Who names an image that is not there."""
        yield from (need for need in self.needs if need.file == file)
        yield from (Need("image", file, what=name) for name, one in self.found.items() if one.backing == file)

    def chain(self, file: str) -> list[Found]:
        """The image and those below it, top first, as headers have it, as far as they are there."""
        seen: set[Identity] = set()
        layers = []
        found = self.found.get(file)
        while found is not None and found.identity is not None and found.identity not in seen:
            seen.add(found.identity)
            layers.append(found)
            found = self.found.get(found.backing)
        return layers

    def of(self, domain: str) -> list[Found]:
        """Every image that the domain needs, and those below, each once."""
        files = (need.file for need in self.needs if need.domain == domain)
        return list({layer.identity: layer for file in files for layer in self.chain(file)}.values())

    def missing(self, file: str) -> str:
        """The first name in the image's chain that leads nowhere, or in a circle; "" when the chain is whole."""
        layers = self.chain(file)
        if not layers:
            return file
        last = layers[-1]
        return last.backing

    def needed(self) -> frozenset[Identity]:
        """Every image that somebody known needs, itself or by what is above it."""
        found: set[Identity] = set()
        for need in self.needs:
            for layer in self.chain(need.file):
                if layer.identity in found:
                    break
                found.add(layer.identity)  # type: ignore[arg-type]  # layers of a chain are there
        return frozenset(found)


def needs_of(domain: domain_xml.RecordedDomain, tree: snapshot.Tree) -> Iterator[Need]:
    """What a domain needs by what is recorded of it."""
    for disk in domain.disks:
        if disk.file and disk.device == "disk":
            yield Need("active", disk.file, domain.name, disk.target, disk.format)
    yield from snapshot_needs(domain.name, tree)


def snapshot_needs(domain: str, tree: snapshot.Tree) -> Iterator[Need]:
    """What the snapshots of a domain need."""
    for taken in tree.ordered():
        for part in taken.disks:
            if part.image:
                yield Need("state", part.image, domain, taken.name, part.image_format)
            if part.overlay:
                yield Need("overlay", part.overlay, domain, taken.name, part.overlay_format)
