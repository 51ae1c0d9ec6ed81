"""Snapshot to libvirt's ``<domainsnapshot>`` and back.

The order of elements is libvirt's (facts/libvirt.md 2.1). libvirtd needs ``name``, ``state``, ``creationTime``, ``<active>`` and
a whole small ``<domain>``; anything less is refused by it or crashes it later (facts/libvirt.md 20, 21).
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from qmpsnap import errors
from qmpsnap.model import names, snapshot, xmltree

COMMENT = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  qmpsnap snapshot-create-as, snapshot-current, snapshot-delete
or other application using the qmpsnap API.
-->

"""


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
    xmltree.add(root, "memory", snapshot="no")
    disks = xmltree.add(root, "disks")
    for disk in value.disks:
        _disk(disks, disk)
    for text in (value.domain, value.inactive):
        if text:
            root.append(ET.fromstring(text))
    return root


def _disk(disks: ET.Element, disk: snapshot.SnapshotDisk) -> None:
    if not disk.external:
        xmltree.add(disks, "disk", name=disk.target, snapshot="no")
        return
    element = xmltree.add(disks, "disk", name=disk.target, snapshot="external", type="file")
    xmltree.add(element, "driver", type=disk.overlay_format)
    xmltree.add(element, "source", file=disk.overlay)


def parse(text: str | bytes, origin: str) -> snapshot.Snapshot:
    """The snapshot in a file of ours or of libvirt's; ``Corrupt`` says what is missing."""
    root = xmltree.parse(text, origin)
    if root.tag != "domainsnapshot":
        raise errors.BadXml(
            origin=origin, reason=f"expecting root element of 'domainsnapshot', not '{root.tag}'"
        )
    name, created = xmltree.content(root, "name"), xmltree.content(root, "creationTime")
    try:
        names.check(name, "snapshot")
    except errors.BadName as error:
        raise errors.BadXml(origin=origin, reason=str(error)) from error
    if not created.strip().isdecimal():
        raise errors.BadXml(origin=origin, reason="missing creationTime from existing snapshot")
    state = xmltree.content(root, "state")
    if not state:
        raise errors.BadXml(origin=origin, reason="missing state from existing snapshot")
    memory, domain = root.find("memory"), root.find("domain")
    return snapshot.Snapshot(
        name=name,
        creation_time=int(created),
        state=state,
        description=xmltree.content(root, "description"),
        parent=xmltree.content(root, "parent/name"),
        disks=_disks(root),
        current=xmltree.content(root, "active").strip() == "1",
        memory=memory is not None and memory.get("snapshot") in {"internal", "external"},
        domain=_text(domain),
        inactive=_text(root.find("inactiveDomain")),
    )


def _text(element: ET.Element | None) -> str:
    if element is None:
        return ""
    element.tail = None
    return ET.tostring(element, encoding="unicode")


def _disks(root: ET.Element) -> tuple[snapshot.SnapshotDisk, ...]:
    states: dict[str, tuple[str, str]] = {}
    for disk in root.iterfind("domain/devices/disk"):
        target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
        if target is not None and source is not None:
            form = driver.get("type", "") if driver is not None else ""
            states[target.get("dev", "")] = (source.get("file") or source.get("dev") or "", form)
    found = []
    for disk in root.iterfind("disks/disk"):
        name, source, driver = disk.get("name", ""), disk.find("source"), disk.find("driver")
        if disk.get("snapshot") != "external" or source is None:
            found.append(snapshot.SnapshotDisk(target=name))
            continue
        image, form = states.get(name, ("", ""))
        found.append(
            snapshot.SnapshotDisk(
                target=name,
                overlay=source.get("file") or source.get("dev") or "",
                overlay_format=driver.get("type", "qcow2") if driver is not None else "qcow2",
                image=image,
                image_format=form,
            )
        )
    return tuple(found)
