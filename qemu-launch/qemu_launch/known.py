"""What the state directory knows of disks and images. Blocking, read-only."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator

import attrs

from qemu_launch import backing, guard, prefix
from qmpsnap import config, errors
from qmpsnap.model import domain_xml, snapshot
from qmpsnap.talk import store


@attrs.frozen
class State:
    """One state directory as a start sees it; ``warn`` hears what cannot be read and is not this machine's."""

    store: store.Store
    warn: Callable[[str], None]

    def disks(self, domain: str) -> list[prefix.Known]:
        """The recorded disks of the domain. ``Corrupt`` when its record cannot be read.

        A snapshot that cannot be read does not keep the machine off (``needs`` warns): the active layer does not depend on it.
        """
        recorded = self.store.domain(domain)
        tree, _bad = self.store.snapshots(domain)
        # A CD-ROM is not ours to swap; a network image has no file.
        disks = [d for d in recorded.disks if d.file and d.device == "disk"] if recorded else []
        return [_known(disk, tree) for disk in disks]

    def needs(self) -> dict[prefix.Identity, guard.Need]:
        """Every image on this host that must not change, by what recorded domains, snapshots and definitions say."""
        found: dict[prefix.Identity, guard.Need] = {}
        domains, bad = self.store.domains()
        recorded = {d.name: d for d in domains}
        names = sorted({*recorded, *self._definitions(), *self._with_snapshots()})
        for error in bad:
            self.warn(str(error))
        for name in names:
            for target, file, form in self._active(name, recorded.get(name)):
                self._add_chain(found, file, form, f"which is disk {target} of domain '{name}'")
        # After the chains: most images of snapshots are in one, and need no second look.
        for name in names:
            self._add_snapshots(found, name)
        return found

    def _definitions(self) -> list[str]:
        return [n.removesuffix(".toml") for n in _list(self.store.paths.definitions) if n.endswith(".toml")]

    def _with_snapshots(self) -> list[str]:
        return _list(self.store.paths.snapshots)

    def _active(
        self, name: str, recorded: domain_xml.RecordedDomain | None
    ) -> Iterator[tuple[str, str, str]]:
        if recorded is not None:
            yield from ((d.target, d.file, d.format) for d in recorded.disks if d.file)
            return
        try:
            defined = definition(self.store.paths.definition_file(name), name)
        except errors.NoDefinition:
            return
        except errors.Error as error:
            self.warn(str(error))
            return
        yield from ((d.target, d.file, d.format) for d in defined.disk)

    def _add_chain(self, found: dict[prefix.Identity, guard.Need], file: str, form: str, whose: str) -> None:
        for link in self._below(file, form):
            reason = f"it is a backing file of '{file}', {whose}"
            found.setdefault(link.identity, guard.Need(reason, link.format))

    def _add_snapshots(self, found: dict[prefix.Identity, guard.Need], name: str) -> None:
        tree, bad = self.store.snapshots(name)
        for error in bad:
            self.warn(str(error))
        for taken in tree.ordered():
            for disk in (d for d in taken.disks if d.image):
                held = backing.identity(disk.image)
                if held is None or held in found:
                    continue  # gone, or below something: then everything below it is, too
                whose = f"the state of snapshot '{taken.name}' of domain '{name}'"
                found[held] = guard.Need(f"it holds {whose}", disk.image_format, state=True)
                self._add_chain(found, disk.image, disk.image_format, f"which holds {whose}")

    def _below(self, file: str, form: str) -> Iterable[backing.Link]:
        try:
            return list(backing.chain(file, form))[1:]
        except errors.Error as error:
            self.warn(str(error))
            return []


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.FileFailed(act="read", file=folder, reason=os.strerror(error.errno or 0)) from error


def _known(disk: domain_xml.RecordedDisk, tree: snapshot.Tree) -> prefix.Known:
    links = list(backing.chain(disk.file, disk.format))
    names = {disk.file, *(link.file for link in links)}
    family = {link.identity for link in links}
    parts = [d for taken in tree.ordered() for d in taken.disks if d.target == disk.target]
    former = [(part.image, part.image_format) for part in parts] + [
        (part.overlay, part.overlay_format) for part in parts
    ]
    names |= set(disk.was)
    family |= {found for file in disk.was if (found := backing.identity(file)) is not None}
    for file, form in former:
        found = backing.identity(file) if file else None
        if file and (found is None or found not in family):
            below = list(backing.chain(file, form))
            names |= {file, *(link.file for link in below)}
            family |= {link.identity for link in below}
    return prefix.Known(
        target=disk.target,
        active=layer(disk.file, disk.format),
        identity=backing.identity(disk.file),
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


def definition(file: str, name: str) -> config.Definition:
    """The machine in a definition file; ``NoDefinition`` when it is not there."""
    try:
        with open(file, "rb") as text:
            content = text.read()
    except FileNotFoundError as error:
        raise errors.NoDefinition(domain=name, file=file) from error
    except OSError as error:
        raise errors.FileFailed(act="read", file=file, reason=os.strerror(error.errno or 0)) from error
    try:
        return config.definition(content.decode(), file, name)
    except UnicodeDecodeError as error:
        raise errors.ConfigError(file=file, key="", reason="is not UTF-8") from error
