"""QMP replies read as disks, chains and jobs.

The full look is ``query-block`` with ``query-blockstats``: both nest a disk's images the same way (filters and backing files in
one line, QEMU's own implicit filters left out), the first with file names, the second with node names. ``query-named-block-nodes``
is never used: it kills QEMU 7.2 while a stream job is concluded (facts/qemu.md 1) and takes 112 ms at depth 200 (facts G).

The cheap look is ``x-debug-query-block-graph`` (3.4 ms at depth 200): names and edges only. Equal graphs mean an equal chain,
because a node never changes its file; ``Graph`` exists to be compared and to be asked who backs whom.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from qmpsnap.model import chain, command_line, domain_xml

Reply = Mapping[str, Any]

#: Drivers that only pass data on: a snapshot goes below them (facts/qemu.md A, B).
FILTERS = frozenset(
    {
        "throttle",
        "copy-on-read",
        "copy-before-write",
        "preallocate",
        "blkdebug",
        "blkverify",
        "blkreplay",
        "compress",
    }
)

#: Drivers of storage itself. A device that sits on one, with no format node between, has a raw image: `-b x -F file` would
#: be read by QEMU, but no other program knows a format of that name.
STORAGE = frozenset({"file", "host_device"})

# What no path of this host has; bytes that are no UTF-8 are \udc80 to \udcff (PEP 383). A name inside of a name is text: what
# it holds, and how deep it nests, was not looked at when the answer was read.
_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")

_DEVICE: dict[str, tuple[str, chain.DeviceKind]] = {
    "virtio-blk-device": ("virtio", "disk"),
    "vhost-user-blk": ("virtio", "disk"),
    "scsi-hd": ("scsi", "disk"),
    "scsi-block": ("scsi", "disk"),
    "scsi-cd": ("scsi", "cdrom"),
    "ide-hd": ("ide", "disk"),
    "ide-cd": ("ide", "cdrom"),
    "nvme": ("nvme", "disk"),
    "nvme-ns": ("nvme", "disk"),
    "usb-storage": ("usb", "disk"),
    "floppy": ("fdc", "floppy"),
}


@attrs.frozen
class Device:
    """What QOM says of a qdev: its type, and for IDE the type of its controller (``ich9-ahci`` is SATA)."""

    type: str
    controller: str = ""


@attrs.frozen
class Graph:
    """The block graph by names: (parent, role, child). Root edges come from devices, `job` edges from block jobs."""

    edges: frozenset[tuple[str, str, str]]
    nodes: frozenset[str]
    jobs: Mapping[str, frozenset[str]]

    def backing(self, node: str) -> str | None:
        """The node below ``node`` in its chain: its backing file, or what it filters."""
        below = {role: child for parent, role, child in self.edges if parent == node}
        return below.get("backing") or (below.get("file") if node in self._filters() else None)

    def _filters(self) -> frozenset[str]:
        """Nodes whose file child has a file child of its own: a format node's file is storage and has none."""
        parents = {parent for parent, role, _child in self.edges if role in {"file", "backing"}}
        return frozenset(parent for parent, role, child in self.edges if role == "file" and child in parents)

    def below(self, top: str) -> list[str]:
        """The nodes from ``top`` down to the bottom of its chain."""
        found, node = [top], self.backing(top)
        while node is not None and node not in found:
            found.append(node)
            node = self.backing(node)
        return found


def graph(reply: Reply) -> Graph:
    """The reply of x-debug-query-block-graph."""
    names = {node["id"]: node["name"] for node in reply["nodes"]}
    kinds = {node["id"]: node["type"] for node in reply["nodes"]}
    edges, jobs = set(), {}
    for node in reply["nodes"]:
        if node["type"] == "block-job":
            jobs[node["name"]] = set[str]()
    for edge in reply["edges"]:
        parent, child = edge["parent"], names[edge["child"]]
        if kinds[parent] == "block-job":
            jobs[names[parent]].add(child)
        else:
            edges.add((names[parent], edge["name"], child))
    drivers = frozenset(node["name"] for node in reply["nodes"] if node["type"] == "block-driver")
    return Graph(frozenset(edges), drivers, {name: frozenset(nodes) for name, nodes in jobs.items()})


def jobs(block_jobs: Iterable[Reply], all_jobs: Iterable[Reply], seen: Graph) -> tuple[chain.Job, ...]:
    """query-block-jobs with the errors of query-jobs; the job's id is called ``device`` there."""
    reasons = {job["id"]: job.get("error", "") for job in all_jobs}
    return tuple(
        chain.Job(
            id=job["device"],
            type=job["type"],
            status=job["status"],
            current=job["offset"],
            total=job["len"],
            speed=job["speed"],
            ready=job["ready"],
            auto_dismiss=job.get("auto-dismiss", True),
            error=reasons.get(job["device"], "") or job.get("error", ""),
            nodes=seen.jobs.get(job["device"], frozenset()),
        )
        for job in block_jobs
    )


def plugged(block: Iterable[Reply]) -> list[str]:
    """The qdev of every drive that a guest device holds, in the order of the machine; pflash is firmware, not a disk."""
    return [b["qdev"] for b in block if b.get("qdev") and not b["qdev"].startswith("/machine/system.flash")]


def disks(
    block: Sequence[Reply],
    stats: Sequence[Reply],
    devices: Mapping[str, Device],
    known: Sequence[domain_xml.RecordedDisk],
    command: Sequence[str],
    canonical: Callable[[str], str],
) -> tuple[chain.Disk, ...]:
    """The guest's disks, in the order of the machine.

    ``known`` are the recorded disks, there or not;
    ``command`` is QEMU's command line ([] where it cannot be read); ``canonical`` makes
    a file name of QEMU's absolute, as seen by this host, or "" where there is no such file.
    """
    by_qdev = {s["qdev"]: s for s in stats if s.get("qdev")}
    rows = {b["qdev"]: b for b in block if b.get("qdev") in devices and devices[b["qdev"]].type in _DEVICE}
    found = [_disk(row, by_qdev.get(q, {}), devices[q], command, canonical) for q, row in rows.items()]
    told = domain_xml.identify(known, [(d.qdev, [layer.file for layer in d.chain]) for d in found])
    names = chain.targets(
        told, [(d.qdev, d.bus) for d in found], (d.target for d in known if d.device == "disk")
    )
    return tuple(attrs.evolve(disk, target=names[disk.qdev]) for disk in found)


def consistent(block: Iterable[Reply], stats: Iterable[Reply]) -> bool:
    """Both replies show the same chains: somebody else may have changed one between the two queries."""
    by_qdev = {s["qdev"]: s for s in stats if s.get("qdev")}
    return all(
        b["inserted"]["node-name"] == by_qdev.get(b["qdev"], {}).get("node-name")
        and _depth(b["inserted"]["image"], "backing-image") == _depth(by_qdev[b["qdev"]], "backing")
        for b in block
        if b.get("qdev") and b.get("inserted")
    )


def _depth(reply: Reply, below: str) -> int:
    depth, at = 0, reply.get(below)
    while at:
        depth, at = depth + 1, at.get(below)
    return depth


def _bus(device: Device) -> str:
    bus, _kind = _DEVICE[device.type]
    return "sata" if bus == "ide" and "ahci" in device.controller else bus


def _disk(
    row: Reply,
    stat: Reply,
    device: Device,
    command: Sequence[str],
    canonical: Callable[[str], str],
) -> chain.Disk:
    inserted = row.get("inserted")
    kind = _DEVICE[device.type][1]
    blank = chain.Disk(target="", bus=_bus(device), device=kind, qdev=row["qdev"], chain=())
    if not inserted:
        return attrs.evolve(blank, skipped="drive is empty")
    filters, layers = _layers(inserted["image"], stat, canonical)
    cache, nodes = inserted.get("cache", {}), [layer.node for layer in layers]
    told = command_line.image_options(command, nodes, row.get("device", "")) or {}
    disk = attrs.evolve(
        blank,
        backend=row.get("device", ""),
        chain=layers,
        filters=filters,
        read_only=inserted["ro"],
        options=chain.BlockOptions(
            detect_zeroes=_detect_zeroes(inserted, filters, told),
            aio=told.get("aio", ""),
            discard=told.get("discard", ""),
            direct=cache.get("direct", False),
            no_flush=cache.get("no-flush", False),
        ),
    )
    return attrs.evolve(disk, skipped=_skipped(disk), refused=_refused(disk))


def _detect_zeroes(inserted: Reply, filters: Sequence[str], told: Mapping[str, str]) -> str:
    """query-block shows the top node's; under a filter only the command line knows the format node's."""
    return told.get("detect-zeroes", "off") if filters else str(inserted.get("detect_zeroes", "off"))


def _layers(
    image: Reply, stat: Reply, canonical: Callable[[str], str]
) -> tuple[tuple[str, ...], tuple[chain.Layer, ...]]:
    filters: list[str] = []
    layers: list[chain.Layer] = []
    below: Reply | None = image
    while below is not None:
        node = stat.get("node-name", "")
        if below["format"] in FILTERS and not layers:
            filters.append(node)
        else:
            layers.append(_layer(below, node, canonical))
        below, stat = below.get("backing-image"), stat.get("backing", {})
    return tuple(filters), tuple(layers)


def _layer(image: Reply, node: str, canonical: Callable[[str], str]) -> chain.Layer:
    data = image.get("format-specific", {}).get("data", {})
    return chain.Layer(
        node=node,
        format="raw" if image["format"] in STORAGE else image["format"],
        file=canonical(storage(image["filename"])),
        size=image["virtual-size"],
        backing=image.get("backing-filename", ""),
        encrypted=image["format"] == "luks" or "encrypt" in data,
    )


def storage(name: str) -> str:
    """The file under a node's name: plain, or inside ``json:{…}`` as QEMU writes it when the header says something else."""
    if not name.startswith("json:"):
        return name
    try:
        value = json.loads(name.removeprefix("json:"))
        tree = command_line.flatten(value) if isinstance(value, dict) else {}
    except (ValueError, RecursionError):
        return ""
    keys = ("file.filename", "file.file.filename", "filename")
    found = next((str(tree[key]) for key in keys if key in tree), "")
    return "" if _NO_PATH.search(found) else found


def _skipped(disk: chain.Disk) -> str:
    if disk.device != "disk":
        return f"is a {disk.device}"
    return "is read-only" if disk.read_only else ""


def _refused(disk: chain.Disk) -> str:
    active = disk.active
    if active.encrypted:
        # snapshot-sync would make an unencrypted overlay of it (facts/qemu.md 8).
        return "is encrypted, and its overlay would not be"
    if not active.file:
        return "is no file of this host (a network image, or a temporary layer of snapshot=on)"
    return ""
