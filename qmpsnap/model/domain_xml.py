"""What is recorded of a domain: ``state/domain/NAME.xml``, a small ``<domain>`` in libvirt's words.

It names each disk's active layer, which is what qemu-launch boots, and what libvirt needs inside a snapshot's ``<domain>``
(facts/libvirt.md 6.1: name, uuid, memory, os/type with arch and machine, the disks). What is ours alone stands in ``<metadata>``
under our namespace, which libvirt keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.etree import ElementTree as ET

import attrs

from qmpsnap import errors
from qmpsnap.model import names, xmltree

_NS = xmltree.NAMESPACE
_OWN = f"{{{_NS}}}domain/{{{_NS}}}"

FORMER = 15


@attrs.frozen
class RecordedDisk:
    """A disk as last seen: ``file`` is the active layer, ``qdev`` is how the target is found again in a running QEMU.

    ``was`` are its former active layers: a command line or definition that still names one of them means this disk, also after a
    pull has taken the image out of the chain and its snapshot is forgotten. The first stays, because that is what people write
    down, and the newest ``FORMER``: the file does not grow with the depth of the chain.
    """

    target: str
    bus: str
    file: str
    format: str
    device: str = "disk"
    qdev: str = ""
    was: tuple[str, ...] = ()
    # In a snapshot: the fingerprint of ``file``, which holds the state and must not change any more; "" where none was taken.
    stamp: str = ""

    def on(self, file: str, form: str) -> RecordedDisk:
        """The disk with another active layer."""
        was = self.was
        if file != self.file and self.file:
            was = (*(former for former in was if former != file), self.file)
        return attrs.evolve(self, file=file, format=form, was=(*was[:1], *was[1:][-FORMER:]))


@attrs.frozen
class FrozenLayer:
    """An image below an active layer that is no snapshot's state, and its fingerprint when it was first seen there."""

    file: str
    stamp: str


@attrs.frozen
class RecordedDomain:
    """A domain as last seen. ``monitor`` is set for a machine that was attached by hand."""

    name: str
    uuid: str
    memory_kib: int = 131072
    vcpus: int = 1
    arch: str = "x86_64"
    machine: str = "pc"
    emulator: str = ""
    monitor: str = ""
    agent: str = ""
    disks: tuple[RecordedDisk, ...] = ()
    layers: tuple[FrozenLayer, ...] = ()

    def disk(self, target: str) -> RecordedDisk | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    def on(self, active: Mapping[str, tuple[str, str]]) -> RecordedDomain:
        """The domain with other active layers: target to file and format."""
        return attrs.evolve(
            self,
            disks=tuple(d.on(*active[d.target]) if d.target in active else d for d in self.disks),
        )


def identify(recorded: Iterable[RecordedDisk], seen: Iterable[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Targets by qdev of the disks that are seen (qdev, images active layer first) and known.

    A disk is told by its image: by the recorded layer anywhere in its chain, else by a former layer that it runs on. Only then by
    its qdev, because without an id that is a place on a bus, which the next disk takes when one is left out (facts/qemu.md 19).
    """
    known, seen = list(recorded), list(seen)
    ways: tuple[Callable[[RecordedDisk, str, Sequence[str]], bool], ...] = (
        lambda disk, _qdev, images: bool(disk.file) and disk.file in images,
        lambda disk, _qdev, images: bool(images) and images[0] in disk.was,
        lambda disk, qdev, _images: bool(disk.qdev) and disk.qdev == qdev,
    )
    found: dict[str, str] = {}
    for is_it in ways:
        for qdev, images in seen:
            if qdev not in found:
                free = (disk for disk in known if disk.target not in found.values())
                match = next((disk for disk in free if is_it(disk, qdev, images)), None)
                if match is not None:
                    found[qdev] = match.target
    return found


def element(domain: RecordedDomain) -> ET.Element:
    """``<domain>`` with the disks as they are in ``domain``."""
    root = ET.Element("domain", {"type": "qemu"})
    xmltree.add(root, "name", domain.name)
    xmltree.add(root, "uuid", domain.uuid)
    if domain.monitor or domain.agent or domain.layers or any(_is_ours(disk) for disk in domain.disks):
        _own(xmltree.add(root, "metadata"), domain)
    xmltree.add(root, "memory", str(domain.memory_kib), unit="KiB")
    xmltree.add(root, "currentMemory", str(domain.memory_kib), unit="KiB")
    xmltree.add(root, "vcpu", str(domain.vcpus))
    xmltree.add(xmltree.add(root, "os"), "type", "hvm", arch=domain.arch, machine=domain.machine)
    devices = xmltree.add(root, "devices")
    if domain.emulator:
        xmltree.add(devices, "emulator", domain.emulator)
    for disk in domain.disks:
        _disk(devices, disk)
    return root


def _disk(devices: ET.Element, disk: RecordedDisk) -> None:
    block = names.is_device(disk.file)
    node = xmltree.add(devices, "disk", type="block" if block else "file", device=disk.device)
    if disk.format:
        xmltree.add(node, "driver", name="qemu", type=disk.format)
    if disk.file:
        xmltree.add(node, "source", **{"dev" if block else "file": disk.file})
    xmltree.add(node, "target", dev=disk.target, bus=disk.bus)


def _own(metadata: ET.Element, domain: RecordedDomain) -> None:
    own = ET.SubElement(metadata, f"{{{_NS}}}domain")
    for name in ("monitor", "agent"):
        if path := getattr(domain, name):
            ET.SubElement(own, f"{{{_NS}}}{name}", {"path": xmltree.text(path)})
    for disk in domain.disks:
        if _is_ours(disk):
            values = {"target": disk.target, "qdev": xmltree.text(disk.qdev)}
            if disk.stamp:
                values["stamp"] = disk.stamp
            element = ET.SubElement(own, f"{{{_NS}}}disk", values)
            for file in disk.was:
                ET.SubElement(element, f"{{{_NS}}}was", {"file": xmltree.text(file)})
    for layer in domain.layers:
        ET.SubElement(own, f"{{{_NS}}}layer", {"file": xmltree.text(layer.file), "stamp": layer.stamp})


def _is_ours(disk: RecordedDisk) -> bool:
    return bool(disk.qdev or disk.was or disk.stamp)


def stamps(root: ET.Element) -> dict[str, str]:
    """The fingerprints in a ``<domain>`` by target."""
    found = {d.get("target", ""): d.get("stamp", "") for d in root.iterfind(f"metadata/{_OWN}disk")}
    return {target: stamp for target, stamp in found.items() if stamp}


def stamped(text: str, stamps: Mapping[str, str]) -> str:
    """The ``<domain>`` with other fingerprints for these targets; all else, whoever has written it, is kept."""
    root = ET.fromstring(text)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        # libvirt's order: name, uuid, title, description, metadata.
        before = [n for n, child in enumerate(root) if child.tag in {"name", "uuid", "title", "description"}]
        root.insert(max(before, default=-1) + 1, metadata)
    own = metadata.find(f"{{{_NS}}}domain")
    if own is None:
        own = ET.SubElement(metadata, f"{{{_NS}}}domain")
    for target, stamp in stamps.items():
        disk = next((d for d in own.iterfind(f"{{{_NS}}}disk") if d.get("target") == target), None)
        if disk is None:
            disk = ET.SubElement(own, f"{{{_NS}}}disk", {"target": target, "qdev": ""})
        disk.set("stamp", stamp)
    return xmltree.write(root)


def build(domain: RecordedDomain) -> str:
    """The file's content."""
    return xmltree.write(element(domain))


def parse(text: str | bytes, origin: str) -> RecordedDomain:
    """The domain in a file of ours; ``Corrupt`` says what is wrong."""
    root = xmltree.parse(text, origin)
    if root.tag != "domain":
        raise errors.BadXml(origin=origin, reason=f"expecting root element of 'domain', not '{root.tag}'")
    kind = root.find("os/type")
    name, uuid = xmltree.content(root, "name"), xmltree.content(root, "uuid")
    if not name or not uuid or kind is None:
        raise errors.BadXml(origin=origin, reason="name, uuid or os/type is missing")
    own = f"metadata/{_OWN}"
    ours = {d.get("target", ""): d for d in root.iterfind(own + "disk")}
    return RecordedDomain(
        name=name,
        uuid=uuid,
        memory_kib=_number(root, "memory", origin),
        vcpus=_number(root, "vcpu", origin),
        arch=kind.get("arch", ""),
        machine=kind.get("machine", ""),
        emulator=xmltree.content(root, "devices/emulator"),
        monitor=_path(root, own + "monitor"),
        agent=_path(root, own + "agent"),
        disks=tuple(_parsed_disk(disk, ours) for disk in root.iterfind("devices/disk")),
        layers=tuple(
            FrozenLayer(layer.get("file", ""), layer.get("stamp", ""))
            for layer in root.iterfind(own + "layer")
        ),
    )


def _number(root: ET.Element, path: str, origin: str) -> int:
    value = xmltree.number(root, path)
    if value is None:
        found = xmltree.content(root, path).strip()
        raise errors.BadXml(origin=origin, reason=f"{path} is no number: '{found[:32]}'")
    return value


def _path(root: ET.Element, path: str) -> str:
    found = root.find(path)
    return found.get("path", "") if found is not None else ""


def _parsed_disk(disk: ET.Element, ours: Mapping[str, ET.Element]) -> RecordedDisk:
    def attribute(path: str, *names: str) -> str:
        found = disk.find(path)
        return next((found.get(n, "") for n in names if found.get(n)), "") if found is not None else ""

    target = attribute("target", "dev")
    own = ours.get(target, ET.Element("none"))
    return RecordedDisk(
        target=target,
        bus=attribute("target", "bus"),
        file=attribute("source", "file", "dev"),
        format=attribute("driver", "type"),
        device=disk.get("device", "disk"),
        qdev=own.get("qdev", ""),
        was=tuple(was.get("file", "") for was in own.iterfind(f"{{{_NS}}}was")),
        stamp=own.get("stamp", ""),
    )
