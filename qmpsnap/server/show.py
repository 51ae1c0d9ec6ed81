"""What the daemon knows, as the objects of docs/control-protocol.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, names, snapshot
from qmpsnap.own import domain, operations
from qmpsnap.plan import check
from qmpsnap.talk import qemu_img

Json = dict[str, Any]


def domain_object(found: domain.Domain) -> Json:
    """Domain."""
    recorded, link = found.recorded, found.link
    running = link.machine is not None
    return {
        "name": found.name,
        "id": found.id if running else None,
        "uuid": recorded.uuid,
        "state": found.state,
        "reason": link.status if running else link.detail,
        "monitor": {"path": link.path, "state": link.state, "detail": link.detail},
        "pid": link.process.pid if running and link.process else None,
        "qemu": link.version if running else "",
        "machine": recorded.machine,
        "arch": recorded.arch,
        "vcpus": recorded.vcpus,
        "memory_kib": recorded.memory_kib,
        "snapshots": len(found.tree),
        "operations": [operation.id for operation in found.open],
    }


def check_object(seen: check.Seen) -> Json:
    """Check."""
    return {
        "domain": seen.recorded.name,
        "disks": len(seen.recorded.disks),
        "snapshots": len(seen.tree),
        "images": len(seen.graph.of(seen.recorded.name)),
        "findings": [attrs.asdict(one) for one in check.findings(seen)],
    }


def job_object(job: chain.Job, disk: str, owner: Mapping[str, str]) -> Json:
    """Job; ``owner`` is the operation by job id."""
    return {
        "disk": disk,
        "id": job.id,
        "type": job.type,
        "status": job.status,
        "bandwidth": job.speed,
        "current": job.current,
        "total": job.total,
        "ready": job.ready,
        "operation": owner.get(job.id),
    }


def owners(open_operations: Iterable[operations.Operation]) -> dict[str, str]:
    """Operation by job id."""
    return {
        getattr(step.act, "job", ""): operation.id
        for operation in open_operations
        for step in (operation.plan.steps if operation.plan else ())
    }


def disk_objects(view: chain.View, open_operations: Iterable[operations.Operation]) -> list[Json]:
    """Blocking (it asks the file system for sizes). Disks of a running machine."""
    owner = owners(open_operations)
    found = []
    for disk in view.disks:
        job = view.job_of(disk)
        active = disk.active if disk.chain else chain.Layer("", "", "", 0)
        found.append(
            _disk(disk.target, disk.bus, disk.device, active.file, active.format)
            | {
                "node": active.node,
                "read_only": disk.read_only,
                "capacity": active.size,
                "chain": [{"file": x.file, "format": x.format, "node": x.node} for x in disk.chain],
                "skipped": disk.skipped or disk.refused,
                "job": job_object(job, disk.target, owner) if job else None,
            }
        )
    return found


def recorded_disks(recorded: domain_xml.RecordedDomain) -> list[Json]:
    """Blocking. Disks of a machine that is off: what its next start boots, with the chains that the headers name."""
    found = []
    for disk in recorded.disks:
        layers = _headers(disk)
        found.append(
            _disk(disk.target, disk.bus, disk.device, disk.file, disk.format)
            | {
                "node": "",
                "read_only": False,
                "capacity": layers[0]["virtual-size"] if layers else 0,
                "chain": [{"file": x["filename"], "format": x["format"], "node": ""} for x in layers],
                "skipped": "",
                "job": None,
            }
        )
    return found


def _headers(disk: domain_xml.RecordedDisk) -> list[Mapping[str, Any]]:
    """The chain on disk; none where an image is missing or is none."""
    try:
        return qemu_img.backing_chain(disk.file, disk.format) if disk.file else []
    except errors.ToolFailed:
        return []


def _disk(target: str, bus: str, device: str, source: str, form: str) -> Json:
    allocation = physical = 0
    if source and os.path.exists(source):
        status = os.stat(source)
        allocation, physical = status.st_blocks * 512, status.st_size
    return {
        "target": target,
        "bus": bus,
        "device": device,
        "type": "block" if names.is_device(source) else "file",
        "source": source or None,
        "format": form,
        "allocation": allocation,
        "physical": physical,
    }


def snapshot_objects(tree: snapshot.Tree, missing: Iterable[str]) -> list[Json]:
    """Snapshots, in virsh's order; ``missing`` are images that are not there."""
    family, gone = tree.family(), set(missing)
    current = tree.current
    return [
        snapshot_object(tree, value, family[value.name], value is current, gone) for value in tree.ordered()
    ]


def snapshot_object(
    tree: snapshot.Tree, value: snapshot.Snapshot, family: tuple[int, int], current: bool, gone: set[str]
) -> Json:
    """Snapshot."""
    why_not = _why_not(value, gone)
    return {
        "name": value.name,
        "description": value.description,
        "state": value.state,
        "location": value.location,
        "parent": tree.parent(value.name) or None,
        "children": family[0],
        "descendants": family[1],
        "creation_time": value.creation_time,
        "current": current,
        "disks": [
            {"target": d.target, "overlay": d.overlay, "image": d.image, "format": d.image_format}
            for d in value.disks
            if d.external
        ],
        "revertible": not why_not,
        "why_not": why_not,
    }


def _why_not(value: snapshot.Snapshot, gone: set[str]) -> str:
    for disk in value.disks:
        if disk.external and disk.image in gone:
            return f"{disk.image}, which holds the state of {disk.target}, is missing"
    return "" if value.location == "external" else "it is an internal snapshot"


def missing_images(tree: snapshot.Tree) -> set[str]:
    """Blocking. Images that hold the state of a snapshot and are not there."""
    images = {d.image for value in tree.snapshots.values() for d in value.disks if d.external and d.image}
    return {image for image in images if not os.path.exists(image)}
