"""What the state directory knows of disks and images. Blocking, read-only."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import attrs

from qemu_launch import prefix
from qmpsnap.model import domain_xml, snapshot
from qmpsnap.model import images as model
from qmpsnap.talk import images as image_files
from qmpsnap.talk import needs, store


@attrs.frozen
class State:
    """One state directory as a start sees it; ``warn`` hears what cannot be read and is not this machine's."""

    store: store.Store
    warn: Callable[[str], None]
    looker: image_files.Looker = attrs.field(factory=image_files.Looker)

    def disks(self, domain: str) -> list[prefix.Known]:
        """The recorded disks of the domain. ``Corrupt`` when its record cannot be read.

        A snapshot that cannot be read does not keep the machine off (``needs`` warns): the active layer does not depend on it.
        """
        recorded = self.store.domain(domain)
        tree, _bad = self.store.snapshots(domain)
        # A CD-ROM is not ours to swap; a network image has no file.
        disks = [d for d in recorded.disks if d.file and d.device == "disk"] if recorded else []
        return [_known(disk, tree, self.looker) for disk in disks]

    def graph(self) -> model.Graph:
        """Every image on this host that somebody needs, by what recorded domains, snapshots and definitions say, or that lies
        beside one."""
        found, unknown = needs.of_store(self.store)
        graph = self.looker.graph(found, unknown=unknown)
        for text in graph.unknown:
            self.warn(text)
        return graph


def _known(disk: domain_xml.RecordedDisk, tree: snapshot.Tree, looker: image_files.Looker) -> prefix.Known:
    links = list(looker.chain(disk.file, disk.format))
    names = {disk.file, *(link.file for link in links)}
    family = {link.identity for link in links if link.identity}
    parts = [d for taken in tree.ordered() for d in taken.disks if d.target == disk.target]
    former = [(part.image, part.image_format) for part in parts] + [
        (part.overlay, part.overlay_format) for part in parts
    ]
    names |= set(disk.was)
    family |= {found for file in disk.was if (found := image_files.identity(file)) is not None}
    for file, form in former:
        found = image_files.identity(file) if file else None
        if file and (found is None or found not in family):
            below = list(looker.chain(file, form))
            names |= {file, *(link.file for link in below)}
            family |= {link.identity for link in below if link.identity}
    return prefix.Known(
        target=disk.target,
        active=layer(disk.file, disk.format),
        identity=image_files.identity(disk.file),
        family=frozenset(family),
        names=frozenset(names),
    )


def layer(file: str, form: str) -> prefix.Layer:
    """The image as something to start on."""
    try:
        block = stat.S_ISBLK(os.stat(file).st_mode)
    except OSError:
        block = False
    return prefix.Layer(file, form, block)
