"""What a running QEMU says of itself, as the domain that is recorded of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs

from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import chain, domain_xml, snapshot

_NO_UUID = "00000000-0000-0000-0000-000000000000"


async def describe(
    recorded: domain_xml.RecordedDomain, machine: execute.Machine
) -> domain_xml.RecordedDomain:
    """The recorded domain with its hardware as QEMU tells it."""
    link = machine.link
    identity = (await link.execute("query-uuid"))["UUID"]
    memory = (await link.execute("query-memory-size-summary"))["base-memory"]
    cpus = await link.execute("query-cpus-fast")
    arch = (await link.execute("query-target"))["arch"]
    kind = await link.execute("qom-get", {"path": "/machine", "property": "type"})
    command = machine.observer.process.command
    return attrs.evolve(
        recorded,
        uuid=recorded.uuid if identity == _NO_UUID else identity,
        memory_kib=memory // 1024,
        vcpus=max(1, len(cpus)),
        arch=arch,
        machine=str(kind).removesuffix("-machine"),
        emulator=command[0] if command and os.path.isabs(command[0]) else recorded.emulator,
    )


def disks(
    recorded: domain_xml.RecordedDomain, view: chain.View, witnessed: Mapping[str, str]
) -> tuple[domain_xml.RecordedDisk, ...]:
    """The disks of the view with the layer that each shall boot, and those that are not there today.

    A disk that is left out of one start keeps its record: at the next it must come back on its newest layer.
    Normally that is the active one. But where QEMU was started below the newest layer that we acknowledged (by an old command
    line: facts/qemu.md I), the record stays: see ``drifted``. ``witnessed`` are the files that disks were seen to write to
    earlier in the life of this QEMU: one that has left its recorded layer before our eyes was committed or copied by somebody,
    and took its contents along.
    """
    found = []
    for disk in view.disks:
        active = disk.active if disk.chain else None
        entry = domain_xml.RecordedDisk(
            target=disk.target,
            bus=disk.bus,
            file=active.file if active else "",
            format=active.format if active else "",
            device=disk.device,
            qdev=disk.qdev,
        )
        before = recorded.disk(disk.target)
        if before is not None:
            followed = witnessed.get(disk.target) == before.file
            # A file that was removed while QEMU has it open has no name: what is recorded stays, and is missing.
            stays = (drifted(before, disk) and not followed) or (disk.chain and not entry.file)
            moved = before if stays else before.on(entry.file, entry.format)
            entry = attrs.evolve(entry, file=moved.file, format=moved.format, was=moved.was)
        found.append(entry)
    seen = {disk.target: disk for disk in found}
    kept = [
        seen.pop(d.target, d) for d in recorded.disks if d.target in seen or (d.device == "disk" and d.file)
    ]
    return (*kept, *seen.values())


def unmarked(recorded: domain_xml.RecordedDomain, tree: snapshot.Tree, view: chain.View) -> list[str]:
    """Layers below the active ones of which there is no fingerprint."""
    known = {one.file for one in recorded.layers}
    known |= {d.image for s in tree.snapshots.values() for d in s.disks if d.stamp}
    below = (layer.file for disk in view.disks for layer in disk.chain[1:])
    return [file for file in dict.fromkeys(below) if file and file not in known]


def drifted(recorded: domain_xml.RecordedDisk, disk: chain.Disk) -> bool:
    """QEMU does not have the recorded layer in the disk's chain, although the layer is still there; or it writes to a former layer
    above that one, as an old command line does after a commit: it is no new one."""
    if not (recorded.device == disk.device == "disk" and recorded.file and disk.chain):
        return False
    strays = disk.find(recorded.file) is None or disk.active.file in recorded.was
    return strays and os.path.exists(recorded.file)


def check_drift(recorded: domain_xml.RecordedDomain, disk: chain.Disk) -> None:
    """``Drifted`` when a change of the disk would be built on the wrong layer."""
    before = recorded.disk(disk.target)
    if before is not None and drifted(before, disk):
        raise errors.Drifted(
            target=disk.target, active=disk.active.file, recorded=before.file, domain=recorded.name
        )
