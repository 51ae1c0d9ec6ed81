"""Every way to give QEMU a disk: what qmpsnap shows of it, and two snapshots and a pull of it."""

import dataclasses
import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import layouts, qemu
from tests.lab.daemon import Daemon
from tests.lab.images import KIB
from tests.lab.layouts import MARK, MARK_LENGTH, Disk, Layout, Setup

pytestmark = requires.requires_qemu

# Targets in the order of the layout's disks; one virtio disk where nothing is said. None: not a disk of the guest.
TARGETS: dict[str, list[str | None]] = {
    "two-disks": ["vda", "vdb"],
    "ide-hda": ["hda"],
    "ide-device": ["sda"],  # q35's ide-hd hangs on AHCI, so it is SATA whatever its id says
    "scsi": ["sda"],
    "scsi-iothread": ["sda"],
    "nvme": ["nvmea"],
    "cdrom": ["vda", "sda", "sdb"],
    "read-only": ["vda", "vdb"],
    "pflash": ["vda", None],
    "luks": ["vda", "vdb", "vdc"],
    "temporary": ["vda", "vdb"],
}

SKIPPED = {
    "cdrom": "is a cdrom",
    "empty": "drive is empty",
    "read-only": "is read-only",
    "encrypted": "is encrypted, and its overlay would not be",
    "temporary": "is no file of this host (a network image, or a temporary layer of snapshot=on)",
}
# Left out of a snapshot without a word; the other kinds above are refused unless they are left out by name.
SILENT = {"cdrom", "empty", "read-only"}

FIRST, SECOND, THIRD = 128 * KIB, 256 * KIB, 384 * KIB
OWNER = (65534, 65533)
TRACE = ("-trace", "handle_qmp_command", "-trace", "thread_pool_submit*")


def native_aio_blockdev(directory: Path) -> Setup:
    """QEMU's own overlays of a -blockdev disk forget its aio (facts/qemu.md 14)."""
    path = qemu.image(directory / "a.qcow2", layouts.SIZE)
    qemu.write_pattern(path, "qcow2", MARK, 0, MARK_LENGTH)
    cache = {"direct": True, "no-flush": False}
    storage = {"driver": "file", "filename": str(path), "aio": "native", "cache": cache}
    node = {"driver": "qcow2", "node-name": "node0", "cache": cache, "file": storage}
    args = ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,id=vda,drive=node0")
    return Setup(args, (Disk("vda", path, node="node0", direct=True),))


LAYOUTS = [*layouts.all_layouts(), Layout("native-aio-blockdev", native_aio_blockdev)]


def bytes_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(layout: Layout, directory: Path) -> Setup:
    if layout.name.startswith("native-aio") and not layouts.direct_io(directory):
        pytest.skip("the file system has no O_DIRECT")
    setup = layout.prepare(directory)
    for disk in setup.disks:
        if disk.path is not None:
            disk.path.chmod(0o640)
            if os.geteuid() == 0:
                os.chown(disk.path, *OWNER)
    return setup


def by_device(vm: qemu.Machine, disk: Disk) -> Disk:
    """The disk with a name that it keeps: what names it by its node now must find it under another one later."""
    return dataclasses.replace(disk, guest=vm.backend(disk.guest).get("qdev") or disk.guest)


def write(vm: qemu.Machine, disks: list[Disk], pattern: int, offset: int) -> None:
    for disk in disks:
        vm.guest_write(disk.guest, pattern, offset, 64 * KIB)
        vm.guest_flush(disk.guest)


def expect(path: Path, form: str, *written: int) -> None:
    """The image, through its chain, holds the marker and what was written at each of the three places."""
    assert qemu.read_ok(path, MARK, 0, MARK_LENGTH, format=form)
    for pattern, offset in zip(written, (FIRST, SECOND, THIRD), strict=True):
        assert qemu.read_ok(path, pattern, offset, 64 * KIB, format=form), (path, offset)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layout(
    layout: Layout, shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    daemon = shared_daemon
    setup = prepare(layout, short_dir)
    vm = machine([*setup.args, *TRACE], **setup.keywords)
    disks = [by_device(vm, disk) for disk in setup.disks if disk.kind in {"disk", "bare"}]
    daemon.ok("attach", name, vm.monitor_path)
    targets = TARGETS.get(layout.name, ["vda"])
    expect_shown(daemon, name, setup, targets)

    specs = create_or_be_refused(daemon, name, setup, targets)
    below = [disk.path for disk in disks if disk.path is not None]
    bases = [bytes_of(path) for path in below]
    write(vm, disks, 0xC1, FIRST)
    daemon.ok("snapshot-create-as", name, "s2", "--disk-only", *specs)
    write(vm, disks, 0xC2, SECOND)

    for disk, base, content in zip(disks, below, bases, strict=True):
        s1, s2 = base.with_suffix(".s1"), base.with_suffix(".s2")
        assert bytes_of(base) == content
        assert qemu.chain(s2) == [s2, s1, base, *disk.below]
        for file, under, form in ((s1, base, disk.format), (s2, s1, "qcow2")):
            expect_overlay(file, under, form)
        expect(base, disk.format, 0, 0, 0)
        expect(s1, "qcow2", 0xC1, 0, 0)
        expect(s2, "qcow2", 0xC1, 0xC2, 0)
        expect_options(vm, disk)

    for disk, target in zip(setup.disks, targets, strict=True):
        if disk.kind in {"disk", "bare"}:
            assert daemon.ok("blockpull", name, str(target), "--wait") == "\nPull complete\n"
    write(vm, disks, 0xC3, THIRD)
    vm.quit()
    for disk, base in zip(disks, below, strict=True):
        s1, s2 = base.with_suffix(".s1"), base.with_suffix(".s2")
        assert qemu.chain(s2) == [s2]
        qemu.check(s2)
        expect(base, disk.format, 0, 0, 0)
        expect(s1, "qcow2", 0xC1, 0, 0)
        expect(s2, "qcow2", 0xC1, 0xC2, 0xC3)
    boot_again(machine, [base.with_suffix(".s2") for base in below])


def expect_shown(daemon: Daemon, name: str, setup: Setup, targets: list[str | None]) -> None:
    """`domblklist` and the API list the guest's disks, in the machine's order, with their canonical files."""
    wanted = []
    for disk, target in zip(setup.disks, targets, strict=True):
        if target is not None:
            source = str(disk.path) if disk.path and disk.kind != "temporary" else None
            wanted.append((target, source, SKIPPED.get(disk.kind, "")))
    disks = daemon.get(f"/domains/{name}/disks")["disks"]
    assert [(disk["target"], disk["source"], disk["skipped"]) for disk in disks] == wanted
    for shown, disk in zip(disks, setup.disks, strict=False):
        below = [str(path) for path in disk.below]
        if shown["source"]:
            assert [layer["file"] for layer in shown["chain"]] == [shown["source"], *below]
            assert shown["format"] == disk.format
        assert shown["device"] == ("cdrom" if disk.kind in {"cdrom", "empty"} else "disk")
        assert shown["read_only"] == (disk.kind in {"cdrom", "read-only"})
    table = daemon.ok("domblklist", name).splitlines()[2:-1]
    rows = [(f" {target:<6}", source or "-") for target, source, _skipped in wanted]
    assert [(line[:7], line[line.index("   ", 5) :].strip()) for line in table] == [
        (target, source) for target, source in rows
    ]


def create_or_be_refused(
    daemon: Daemon, name: str, setup: Setup, targets: list[str | None]
) -> tuple[str, ...]:
    """Make s1; what cannot be in it is refused by name first. Returns the specs that leave those out."""
    specs: list[str] = []
    for disk, target in zip(setup.disks, targets, strict=True):
        if disk.kind not in SKIPPED:
            continue
        words = ("snapshot-create-as", name, "s1", "--disk-only")
        advice = f"leave it out with --diskspec {target},snapshot=no"
        reason = f"unsupported configuration: disk '{target}' {SKIPPED[disk.kind]}; {advice}"
        asked = () if disk.kind not in SILENT else ("--diskspec", f"{target},file=/tmp/no")
        assert daemon.refused(*words, *specs, *asked) == reason
        if disk.kind not in SILENT:
            specs += ["--diskspec", f"{target},snapshot=no"]
    daemon.ok("snapshot-create-as", name, "s1", "--disk-only", *specs)
    return tuple(specs)


def expect_overlay(file: Path, below: Path, form: str) -> None:
    """The header names the layer below, absolute, with its format; owner and mode are those of that layer."""
    header = qemu.info(file)
    assert header["backing-filename"] == str(below)
    assert header["backing-filename-format"] == form
    assert header["virtual-size"] == layouts.SIZE
    status = file.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == OWNER


def expect_options(vm: qemu.Machine, disk: Disk) -> None:
    """The new active node does what the old one did: cache, detect-zeroes, aio; filters are still above it."""
    inserted = vm.backend(disk.guest)["inserted"]
    assert inserted["cache"]["direct"] == disk.direct
    assert inserted["detect_zeroes"] == disk.detect_zeroes
    if disk.filters:
        assert inserted["node-name"] == disk.filters[0]
    if disk.direct:
        used = threads_used(vm)
        vm.guest_write(disk.guest, 0xC2, SECOND, 64 * KIB)
        assert threads_used(vm) == used
    if disk.detect_zeroes == "unmap":
        commands = [line for line in vm.stderr.splitlines() if '"blockdev-add"' in line]
        assert len(commands) == 2
        assert all('"discard": "unmap"' in line for line in commands)


def threads_used(vm: qemu.Machine) -> int:
    """How often QEMU has given work to its thread pool. With aio=native a write into an allocated cluster never does."""
    return len(re.findall("^thread_pool_submit", vm.stderr, re.MULTILINE))


def boot_again(machine: StartMachine, files: list[Path]) -> None:
    """A plain QEMU on the overlays alone reads all that was written."""
    drives = [("-drive", f"file={qemu.escape(file)},format=qcow2,if=virtio") for file in files]
    with machine([word for drive in drives for word in drive]) as vm:
        for number in range(len(files)):
            assert vm.guest_read_ok(f"virtio{number}", MARK, 0, MARK_LENGTH)
            for pattern, offset in ((0xC1, FIRST), (0xC2, SECOND), (0xC3, THIRD)):
                assert vm.guest_read_ok(f"virtio{number}", pattern, offset, 64 * KIB)
