"""Snapshot to libvirt's ``<domainsnapshot>`` and back.

The order of elements is libvirt's (facts/libvirt.md 2.1). libvirtd needs ``name``, ``state``, ``creationTime``, ``<active>`` and
a whole small ``<domain>``; anything less is refused by it or crashes it later (facts/libvirt.md 20, 21).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree as ET

import attrs

from qmpsnap import errors
from qmpsnap.model import domain_xml, names, snapshot, xmltree

COMMENT = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  qmpsnap snapshot-create-as, snapshot-current, snapshot-delete
or other application using the qmpsnap API.
-->

"""

# What is read into fields; everything else below <domainsnapshot> is carried, and of that what libvirt writes after <domain>.
_READ = {
    "name",
    "description",
    "state",
    "parent",
    "creationTime",
    "memory",
    "disks",
    "domain",
    "inactiveDomain",
    "active",
}
_LAST = {"cookie"}


def build(value: snapshot.Snapshot) -> str:
    """The file's content: comment, ``<domainsnapshot>``, ``<active>``."""
    root = _element(value)
    xmltree.add(root, "active", "1" if value.current else "0")
    return COMMENT + xmltree.write(root)


def dump(value: snapshot.Snapshot) -> str:
    """What snapshot-dumpxml shows: without comment and ``<active>``."""
    return xmltree.write(_element(value))


def _element(value: snapshot.Snapshot) -> ET.Element:
    root = ET.Element("domainsnapshot")
    xmltree.add(root, "name", value.name)
    if value.description:
        xmltree.add(root, "description", value.description)
    xmltree.add(root, "state", value.state)
    if value.parent:
        xmltree.add(xmltree.add(root, "parent"), "name", value.parent)
    xmltree.add(root, "creationTime", str(value.creation_time))
    memory = xmltree.add(root, "memory", snapshot=value.memory)
    if value.memory_file:
        memory.set("file", xmltree.text(value.memory_file))
    if value.disks:
        root.append(_disks_element(value.disks))
    carried = [ET.fromstring(text) for text in value.carried]
    root.extend(element for element in carried if element.tag not in _LAST)
    root.extend(ET.fromstring(text) for text in (value.domain, value.inactive) if text)
    root.extend(element for element in carried if element.tag in _LAST)
    return root


def _disks_element(disks: Iterable[snapshot.SnapshotDisk]) -> ET.Element:
    root = ET.Element("disks")
    root.extend(ET.fromstring(disk.carried) if disk.carried else _disk(disk) for disk in disks)
    return root


def _disk(disk: snapshot.SnapshotDisk) -> ET.Element:
    element = ET.Element("disk", {"name": xmltree.text(disk.target)})
    if not disk.external:
        element.set("snapshot", "no")
        return element
    element.attrib.update(snapshot="external", type="file")
    xmltree.add(element, "driver", type=disk.overlay_format)
    xmltree.add(element, "source", file=disk.overlay)
    return element


def parse(text: str | bytes, origin: str) -> snapshot.Snapshot:
    """The snapshot in a file of ours or of libvirt's; ``Corrupt`` says what is missing."""
    root = xmltree.parse(text, origin)
    if root.tag != "domainsnapshot":
        raise errors.BadXml(
            origin=origin, reason=f"expecting root element of 'domainsnapshot', not '{root.tag}'"
        )
    name, created = xmltree.content(root, "name"), xmltree.number(root, "creationTime")
    try:
        names.check(name, "snapshot")
    except errors.BadName as error:
        raise errors.BadXml(origin=origin, reason=str(error)) from error
    if created is None:
        raise errors.BadXml(origin=origin, reason="missing creationTime from existing snapshot")
    state = xmltree.content(root, "state")
    if not state:
        raise errors.BadXml(origin=origin, reason="missing state from existing snapshot")
    memory, memory_file = _memory(root, state)
    return snapshot.Snapshot(
        name=name,
        creation_time=created,
        state=state,
        description=xmltree.content(root, "description"),
        parent=xmltree.content(root, "parent/name"),
        disks=_disks(root),
        current=xmltree.content(root, "active").strip() == "1",
        memory=memory,
        memory_file=memory_file,
        domain=_text(root.find("domain")),
        inactive=_text(root.find("inactiveDomain")),
        carried=tuple(xmltree.carried(element) for element in root if element.tag not in _READ),
    )


def _text(element: ET.Element | None) -> str:
    return xmltree.carried(element) if element is not None else ""


def _memory(root: ET.Element, state: str) -> tuple[str, str]:
    """Where the memory was saved, and its file; what is not said means what libvirt takes it to mean."""
    memory = root.find("memory")
    file = memory.get("file", "") if memory is not None else ""
    unsaid = "external" if file else "no" if state in {"disk-snapshot", "shutoff"} else "internal"
    return memory.get("snapshot", unsaid) if memory is not None else unsaid, file


def stamped(value: snapshot.Snapshot, stamps: Mapping[str, str]) -> snapshot.Snapshot:
    """The snapshot with other fingerprints of the images that hold its state, by target."""
    if not value.domain or not stamps:
        return value
    disks = tuple(attrs.evolve(d, stamp=stamps.get(d.target, d.stamp)) for d in value.disks)
    return attrs.evolve(value, disks=disks, domain=domain_xml.stamped(value.domain, stamps))


def _disks(root: ET.Element) -> tuple[snapshot.SnapshotDisk, ...]:
    inner = root.find("domain")
    stamps = domain_xml.stamps(inner) if inner is not None else {}
    states: dict[str, tuple[str, str, str]] = {}
    for disk in root.iterfind("domain/devices/disk"):
        target, driver = disk.find("target"), disk.find("driver")
        if target is not None:
            form = driver.get("type", "") if driver is not None else ""
            dev = target.get("dev", "")
            states[dev] = (_source(disk), form, stamps.get(dev, ""))
    return tuple(_parsed_disk(disk, states) for disk in root.iterfind("disks/disk"))


def _parsed_disk(disk: ET.Element, states: Mapping[str, tuple[str, str, str]]) -> snapshot.SnapshotDisk:
    value = snapshot.SnapshotDisk(target=disk.get("name", ""))
    overlay, driver = _source(disk), disk.find("driver")
    if overlay and disk.get("snapshot", "external") == "external":
        form = driver.get("type", "qcow2") if driver is not None else "qcow2"
        value = snapshot.SnapshotDisk(value.target, overlay, form, *states.get(value.target, ("", "", "")))
    return value if xmltree.same(disk, _disk(value)) else attrs.evolve(value, carried=xmltree.carried(disk))


def _source(disk: ET.Element) -> str:
    """The file, the block device, or the name on a network."""
    source = disk.find("source")
    values = () if source is None else (source.get(key, "") for key in ("file", "dev", "name"))
    return next(filter(None, values), "")
