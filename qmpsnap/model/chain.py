"""What was observed of a machine: its disks, their backing chains, its jobs. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

DeviceKind = Literal["disk", "cdrom", "floppy"]


@attrs.frozen
class Layer:
    """One image at its place in a chain, as QEMU has it open.

    ``file`` is absolute and canonical; "" when the storage is no file of this host. ``backing`` is the
    string in the image's header.
    """

    node: str
    format: str
    file: str
    size: int
    backing: str = ""
    encrypted: bool = False


@attrs.frozen
class BlockOptions:
    """How QEMU was told to open a disk; what a new overlay must be opened with to behave alike."""

    detect_zeroes: str = "off"
    aio: str = ""
    discard: str = ""
    direct: bool = False
    no_flush: bool = False


@attrs.frozen
class Disk:
    """A guest's disk; ``chain`` is active layer first, ``filters`` are the nodes between the device and the active layer."""

    target: str
    bus: str
    device: DeviceKind
    qdev: str
    chain: tuple[Layer, ...]
    backend: str = ""
    filters: tuple[str, ...] = ()
    read_only: bool = False
    options: BlockOptions = BlockOptions()
    # Why a snapshot leaves this disk out without being told to ("" when it does not).
    skipped: str = ""
    # Why a snapshot of this disk would be wrong ("" when it would not).
    refused: str = ""

    @property
    def active(self) -> Layer:
        """The layer the guest writes to; a drive without medium has none and must not be asked."""
        return self.chain[0]

    def find(self, image: str) -> int | None:
        """The place in the chain of the layer whose file is ``image``."""
        return next((n for n, layer in enumerate(self.chain) if layer.file == image), None)


@attrs.frozen
class Job:
    """A block job of QEMU as query-block-jobs and query-jobs show it; ``speed`` in bytes per second, 0 is unlimited."""

    id: str
    type: str
    status: str
    current: int = 0
    total: int = 0
    speed: int = 0
    ready: bool = False
    auto_dismiss: bool = True
    error: str = ""
    # Node names that the job holds, from the block graph.
    nodes: frozenset[str] = frozenset()


@attrs.frozen
class View:
    """One consistent observation of a domain; planners see nothing else."""

    domain: str
    status: str
    migrating: bool
    disks: tuple[Disk, ...]
    jobs: tuple[Job, ...] = ()
    # Every node name in use, so that a new one is new.
    nodes: frozenset[str] = frozenset()

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    def by_image(self, image: str) -> tuple[Disk, int] | None:
        """The disk, and the place in its chain, of the image with that path."""
        for disk in self.disks:
            if (place := disk.find(image)) is not None:
                return disk, place
        return None

    def job_of(self, disk: Disk) -> Job | None:
        """The job that holds a layer or a filter of the disk."""
        names = {layer.node for layer in disk.chain} | set(disk.filters)
        return next((job for job in self.jobs if job.nodes & names), None)


@attrs.frozen
class FileFact:
    """What lies at a path: facts that a planner needs and that only a look can give.

    ``path`` is canonical: the directory's symbolic links are resolved, so that it can stand in a header (facts/qemu.md 15).
    """

    path: str
    kind: Literal["absent", "file", "block", "directory", "other", "unreachable"]
    # For "absent": why nothing can be created there ("" when it can). For "unreachable": why we cannot look.
    reason: str = ""
    # Another one means that somebody has written to the file since.
    stamp: str = ""
    # The header, where the file is a qcow2 image.
    format: str = ""
    backing: str = ""
    size: int = 0
    # Something is stored in the image itself.
    data: bool = False


#: virsh's words for what query-status says.
RUN_STATES = {
    "running": "running",
    "paused": "paused",
    "prelaunch": "paused",
    "io-error": "paused",
    "internal-error": "paused",
    "inmigrate": "paused",
    "postmigrate": "paused",
    "finish-migrate": "paused",
    "save-vm": "paused",
    "restore-vm": "paused",
    "debug": "paused",
    "watchdog": "paused",
    "shutdown": "in shutdown",
    "suspended": "pmsuspended",
    "guest-panicked": "crashed",
}


def targets(
    known: Mapping[str, str], devices: Iterable[tuple[str, str]], reserved: Iterable[str] = ()
) -> dict[str, str]:
    """A target for each device (qdev, bus), stable over time: known ones stay, an id that is a target is one, others get the
    next letter of their bus, in the order of the machine, that is neither taken nor ``reserved`` for a disk that is not there."""
    devices = list(devices)
    chosen: dict[str, str] = {}
    taken = {known[qdev] for qdev, _bus in devices if qdev in known} | set(reserved)
    for qdev, bus in devices:
        own = _device_id(qdev)
        if qdev in known:
            chosen[qdev] = known[qdev]
        elif own.startswith(PREFIX[bus]) and own[2:].isalpha() and own[2:].islower() and own not in taken:
            chosen[qdev] = own
            taken.add(own)
    for qdev, bus in devices:
        if qdev not in chosen:
            chosen[qdev] = next(name for name in _letters(PREFIX[bus]) if name not in taken)
            taken.add(chosen[qdev])
    return chosen


PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd", "nvme": "nvme"}


def _device_id(qdev: str) -> str:
    """The id that the user gave: `vda` of /machine/peripheral/vda/virtio-backend (facts/qemu.md 19)."""
    return qdev.split("/")[3] if qdev.startswith("/machine/peripheral/") else qdev


def _letters(prefix: str) -> Iterable[str]:
    n = 0
    while True:
        digits, rest = "", n
        while rest >= 0:
            digits, rest = chr(ord("a") + rest % 26) + digits, rest // 26 - 1
        yield prefix + digits
        n += 1
