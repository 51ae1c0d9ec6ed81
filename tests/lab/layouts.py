"""Ways to give a QEMU its disks: one entry for each, so that a test can go through all of them.

    @pytest.mark.parametrize("layout", layouts.all_layouts(), ids=str)
    def test_it(layout, machine, short_dir):
        setup = layout.prepare(short_dir)
        vm = machine(setup.args, **setup.keywords)

Every image holds one marker from the start, `MARK` in its first 64 KiB, unless a test could not have
written it there (empty drives).
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tests.lab.images import KIB, MIB, encrypted_image, escape, image, write_pattern
from tests.lab.qemu import idle_firmware

MARK = 0x5A
MARK_LENGTH = 64 * KIB
SIZE = 16 * MIB

# What a disk is to a program that makes snapshots; only a "disk" can have one.
Kind = Literal["disk", "read-only", "cdrom", "empty", "pflash", "encrypted", "temporary", "bare"]


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a machine: how QEMU knows it, and what is in it.

    `guest` is the name for `Machine.guest_write` and its kin. `path` is the real file of the active layer
    (None in an empty drive), `below` the files under it, nearest first. `filters` are the nodes between
    the device and the format node; `node` is the format node's name where the command line gives one.
    """

    guest: str
    path: Path | None
    format: str = "qcow2"
    kind: Kind = "disk"
    node: str | None = None
    filters: tuple[str, ...] = ()
    below: tuple[Path, ...] = ()
    direct: bool = False
    detect_zeroes: str = "off"


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """A machine to start: QEMU's arguments, `Machine`'s other keywords, and the disks to expect."""

    args: tuple[str, ...]
    disks: tuple[Disk, ...]
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A named way. `prepare(directory)` makes its images there and returns what to start."""

    name: str
    prepare: Callable[[Path], Setup]

    def __str__(self) -> str:
        return self.name


_LAYOUTS: list[Layout] = []


def all_layouts() -> list[Layout]:
    """Return every layout, in a fixed order."""
    return list(_LAYOUTS)


def layout(name: str) -> Layout:
    """Return one layout by its name."""
    return next(one for one in _LAYOUTS if one.name == name)


def _layout(prepare: Callable[[Path], Setup]) -> Callable[[Path], Setup]:
    name = prepare.__name__.removeprefix("_").replace("_", "-")
    _LAYOUTS.append(Layout(name, prepare))
    return prepare


def _marked(path: Path, format: str = "qcow2") -> Path:  # noqa: A002 - QEMU's word
    image(path, SIZE, format)
    write_pattern(path, format, MARK, 0, MARK_LENGTH)
    return path


def _blockdev(**options: object) -> tuple[str, str]:
    return "-blockdev", json.dumps({key.replace("_", "-"): value for key, value in options.items()})


def _qcow2(node: str, path: Path, **options: object) -> tuple[str, str]:
    file = {"driver": "file", "node-name": f"{node}-file", "filename": str(path)}
    return _blockdev(driver="qcow2", node_name=node, file=file, **options)


@_layout
def _drive_virtio(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    return Setup(("-drive", f"file={path},format=qcow2,if=virtio"), (Disk("virtio0", path),))


@_layout
def _drive_probed(directory: Path) -> Setup:
    # no format=: QEMU looks itself
    path = _marked(directory / "a.qcow2")
    return Setup(("-drive", f"file={path},if=virtio"), (Disk("virtio0", path),))


@_layout
def _drive_device(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-drive", f"file={path},format=qcow2,if=none,id=drive0"),
        *("-device", "virtio-blk-pci,id=vda,drive=drive0"),
    )
    return Setup(args, (Disk("vda", path),))


@_layout
def _drive_device_without_id(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-drive", f"file={path},format=qcow2,if=none,id=drive0"),
        *("-device", "virtio-blk-pci,drive=drive0"),
    )
    return Setup(args, (Disk("drive0", path),))


@_layout
def _blockdev_nested(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (*_qcow2("node0", path), "-device", "virtio-blk-pci,id=vda,drive=node0")
    return Setup(args, (Disk("vda", path, node="node0"),))


@_layout
def _blockdev_separate(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-blockdev", f"driver=file,node-name=storage0,filename={path}"),
        *("-blockdev", "driver=qcow2,node-name=node0,file=storage0"),
        *("-device", "virtio-blk-pci,id=vda,drive=node0"),
    )
    return Setup(args, (Disk("vda", path, node="node0"),))


@_layout
def _blockdev_raw(directory: Path) -> Setup:
    path = _marked(directory / "a.raw", "raw")
    args = (
        *_blockdev(driver="raw", node_name="node0", file={"driver": "file", "filename": str(path)}),
        *("-device", "virtio-blk-pci,id=vda,drive=node0"),
    )
    return Setup(args, (Disk("vda", path, "raw", node="node0"),))


@_layout
def _blockdev_bare(directory: Path) -> Setup:
    # the device sits on the protocol node: there is no format node at all
    path = _marked(directory / "a.raw", "raw")
    args = (
        *_blockdev(driver="file", node_name="node0", filename=str(path)),
        *("-device", "virtio-blk-pci,id=vda,drive=node0"),
    )
    return Setup(args, (Disk("vda", path, "raw", "bare", node="node0"),))


@_layout
def _chain(directory: Path) -> Setup:
    base = _marked(directory / "base.raw", "raw")
    mid = image(directory / "mid.qcow2", backing=base, backing_format="raw")
    path = image(directory / "active.qcow2", backing=mid)
    args = ("-drive", f"file={path},format=qcow2,if=virtio")
    return Setup(args, (Disk("virtio0", path, below=(mid, base)),))


@_layout
def _chain_relative(directory: Path) -> Setup:
    # the header's name is relative to the overlay's own directory
    (directory / "below").mkdir()
    base = _marked(directory / "below" / "base.qcow2")
    path = image(directory / "active.qcow2", backing="below/base.qcow2")
    args = ("-drive", f"file={path},format=qcow2,if=virtio")
    return Setup(args, (Disk("virtio0", path, below=(base,)),))


@_layout
def _chain_blockdev(directory: Path) -> Setup:
    base = _marked(directory / "base.qcow2")
    path = image(directory / "active.qcow2", backing=base)
    args = (
        *_qcow2("base0", base, read_only=True),
        *_qcow2("node0", path, backing="base0"),
        *("-device", "virtio-blk-pci,id=vda,drive=node0"),
    )
    return Setup(args, (Disk("vda", path, node="node0", below=(base,)),))


@_layout
def _two_disks(directory: Path) -> Setup:
    one, two = _marked(directory / "a.qcow2"), _marked(directory / "b.qcow2")
    args = (
        *("-drive", f"file={one},format=qcow2,if=virtio"),
        *(*_qcow2("node1", two), "-device", "virtio-blk-pci,id=vdb,drive=node1"),
    )
    return Setup(args, (Disk("virtio0", one), Disk("vdb", two, node="node1")))


@_layout
def _ide_hda(directory: Path) -> Setup:
    # what -hda means, with the format given: a probed raw disk refuses writes to its first sector
    path = _marked(directory / "a.raw", "raw")
    args = ("-drive", f"file={path},format=raw,index=0,media=disk")
    return Setup(args, (Disk("ide0-hd0", path, "raw"),), {"machine_type": "pc"})


@_layout
def _ide_device(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (*_qcow2("node0", path), "-device", "ide-hd,id=hda,drive=node0")
    return Setup(args, (Disk("hda", path, node="node0"),))


@_layout
def _scsi(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (*_qcow2("node0", path), "-device", "virtio-scsi-pci", "-device", "scsi-hd,id=sda,drive=node0")
    return Setup(args, (Disk("sda", path, node="node0"),))


@_layout
def _nvme(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (*_qcow2("node0", path), "-device", "nvme,id=nvme0,serial=1,drive=node0")
    return Setup(args, (Disk("node0", path, node="node0"),))


@_layout
def _iothread(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-object", "iothread,id=io0"),
        *(*_qcow2("node0", path), "-device", "virtio-blk-pci,id=vda,drive=node0,iothread=io0"),
    )
    return Setup(args, (Disk("vda", path, node="node0"),))


@_layout
def _scsi_iothread(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-object", "iothread,id=io0", "-device", "virtio-scsi-pci,iothread=io0"),
        *(*_qcow2("node0", path), "-device", "scsi-hd,id=sda,drive=node0"),
    )
    return Setup(args, (Disk("sda", path, node="node0"),))


@_layout
def _throttle_filter(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-object", "throttle-group,id=group0,x-iops-total=10000"),
        *_qcow2("node0", path),
        *_blockdev(driver="throttle", node_name="throttle0", throttle_group="group0", file="node0"),
        *("-device", "virtio-blk-pci,id=vda,drive=throttle0"),
    )
    return Setup(args, (Disk("vda", path, node="node0", filters=("throttle0",)),))


@_layout
def _throttle_drive(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = ("-drive", f"file={path},format=qcow2,if=virtio,throttling.iops-total=10000")
    return Setup(args, (Disk("virtio0", path),))


@_layout
def _copy_on_read_filter(directory: Path) -> Setup:
    base = _marked(directory / "base.qcow2")
    path = image(directory / "a.qcow2", backing=base)
    args = (
        *_qcow2("node0", path),
        *_blockdev(driver="copy-on-read", node_name="cor0", file="node0"),
        *("-device", "virtio-blk-pci,id=vda,drive=cor0"),
    )
    return Setup(args, (Disk("vda", path, node="node0", filters=("cor0",), below=(base,)),))


@_layout
def _two_filters(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = (
        *("-object", "throttle-group,id=group0,x-iops-total=10000"),
        *_qcow2("node0", path),
        *_blockdev(driver="copy-on-read", node_name="cor0", file="node0"),
        *_blockdev(driver="throttle", node_name="throttle0", throttle_group="group0", file="cor0"),
        *("-device", "virtio-blk-pci,id=vda,drive=throttle0"),
    )
    return Setup(args, (Disk("vda", path, node="node0", filters=("throttle0", "cor0")),))


@_layout
def _cdrom(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    disc = _marked(directory / "disc.iso", "raw")
    args = (
        *("-drive", f"file={path},format=qcow2,if=virtio"),
        *("-drive", f"file={disc},format=raw,if=none,id=disc,media=cdrom,readonly=on"),
        *("-device", "ide-cd,id=cd0,drive=disc"),
        *("-device", "ide-cd,id=cd1,bus=ide.1"),
    )
    disks = (Disk("virtio0", path), Disk("cd0", disc, "raw", "cdrom"), Disk("cd1", None, "raw", "empty"))
    return Setup(args, disks)


@_layout
def _read_only(directory: Path) -> Setup:
    path, fixed = _marked(directory / "a.qcow2"), _marked(directory / "fixed.qcow2")
    args = (
        *("-drive", f"file={path},format=qcow2,if=virtio"),
        *("-drive", f"file={fixed},format=qcow2,if=virtio,readonly=on"),
    )
    return Setup(args, (Disk("virtio0", path), Disk("virtio1", fixed, kind="read-only")))


@_layout
def _pflash(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    flash = idle_firmware(directory / "flash.bin")
    args = (
        *("-drive", f"file={flash},format=raw,if=pflash"),
        *("-drive", f"file={path},format=qcow2,if=virtio"),
    )
    disks = (Disk("virtio0", path), Disk("pflash0", flash, "raw", "pflash"))
    return Setup(args, disks, {"firmware": False})


@_layout
def _luks(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    secret = ("-object", "secret,id=key0,data=hush")
    raw = encrypted_image(directory / "b.luks", SIZE, "luks", "hush")
    inside = encrypted_image(directory / "c.qcow2", SIZE, "qcow2", "hush")
    args = (
        *("-drive", f"file={path},format=qcow2,if=virtio", *secret),
        *_blockdev(
            driver="luks", node_name="node1", key_secret="key0", file={"driver": "file", "filename": str(raw)}
        ),
        *("-device", "virtio-blk-pci,id=vdb,drive=node1"),
        *_qcow2("node2", inside, encrypt={"format": "luks", "key-secret": "key0"}),
        *("-device", "virtio-blk-pci,id=vdc,drive=node2"),
    )
    disks = (
        Disk("virtio0", path),
        Disk("vdb", raw, "luks", "encrypted", node="node1"),
        Disk("vdc", inside, "qcow2", "encrypted", node="node2"),
    )
    return Setup(args, disks)


@_layout
def _temporary(directory: Path) -> Setup:
    # snapshot=on: what the guest writes is in a nameless overlay, and gone at the end
    path, lost = _marked(directory / "a.qcow2"), _marked(directory / "lost.qcow2")
    args = (
        *("-drive", f"file={path},format=qcow2,if=virtio"),
        *("-drive", f"file={lost},format=qcow2,if=virtio,snapshot=on"),
    )
    return Setup(args, (Disk("virtio0", path), Disk("virtio1", lost, kind="temporary")))


@_layout
def _relative_path(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = ("-drive", "file=a.qcow2,format=qcow2,if=virtio")
    return Setup(args, (Disk("virtio0", path),), {"cwd": directory})


@_layout
def _odd_path(directory: Path) -> Setup:
    odd = directory / 'my "disks", all\'s [50%] grün: of #1'
    odd.mkdir()
    path = _marked(odd / "a, b.qcow2")
    args = ("-drive", f"file={escape(path)},format=qcow2,if=virtio")
    return Setup(args, (Disk("virtio0", path),))


@_layout
def _symbolic_link(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    (directory / "link.qcow2").symlink_to("a.qcow2")
    args = ("-drive", f"file={directory / 'link.qcow2'},format=qcow2,if=virtio")
    return Setup(args, (Disk("virtio0", path),))


@_layout
def _json_name(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}})
    args = ("-drive", f"file=json:{escape(name)},if=virtio")
    return Setup(args, (Disk("virtio0", path),))


@_layout
def _detect_zeroes(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = ("-drive", f"file={path},format=qcow2,if=virtio,discard=unmap,detect-zeroes=unmap")
    return Setup(args, (Disk("virtio0", path, detect_zeroes="unmap"),))


@_layout
def _native_aio(directory: Path) -> Setup:
    path = _marked(directory / "a.qcow2")
    args = ("-drive", f"file={path},format=qcow2,if=virtio,cache=none,aio=native")
    return Setup(args, (Disk("virtio0", path, direct=True),))


def direct_io(directory: Path) -> bool:
    """Tell whether a directory's file system takes O_DIRECT, as `native-aio` needs."""
    probe = directory / ".direct"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True
