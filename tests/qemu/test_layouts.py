"""Every layout starts, and its disks are what they say: their names, kinds, files and contents."""

from pathlib import Path
from typing import Any

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import layouts, qemu
from tests.lab.images import KIB
from tests.lab.layouts import MARK, MARK_LENGTH, Disk, Layout

pytestmark = requires.requires_qemu

OTHER = 0xC3


def prepare(layout: Layout, directory: Path) -> layouts.Setup:
    if layout.name == "native-aio" and not layouts.direct_io(directory):
        pytest.skip("the file system has no O_DIRECT")
    return layout.prepare(directory)


def nodes(vm: qemu.Machine) -> dict[str, dict[str, Any]]:
    return {node["node-name"]: node for node in vm.qmp("query-named-block-nodes")}


@pytest.mark.parametrize("layout", layouts.all_layouts(), ids=str)
def test_layout(layout: Layout, short_dir: Path, machine: StartMachine) -> None:
    """Each disk's row exists; a disk's guest reads the marker, writes, and its file has the write."""
    setup = prepare(layout, short_dir)
    vm = machine(setup.args, **setup.keywords)
    for disk in setup.disks:
        inserted = vm.backend(disk.guest).get("inserted")
        assert (inserted is None) == (disk.kind == "empty")
        if inserted is not None:
            expect_kind(vm, disk, inserted)
    assert len(vm.qmp("query-block")) == len(setup.disks)


def expect_kind(vm: qemu.Machine, disk: Disk, inserted: dict[str, Any]) -> None:
    path = disk.path
    assert path is not None
    assert inserted["ro"] == (disk.kind in {"read-only", "cdrom"})
    assert inserted["encrypted"] == (disk.kind == "encrypted")
    assert inserted["cache"]["direct"] == disk.direct
    assert inserted["detect_zeroes"] == disk.detect_zeroes
    assert inserted["node-name"] == (disk.filters[0] if disk.filters else disk.node or inserted["node-name"])
    assert set(disk.filters) <= nodes(vm).keys()
    if disk.kind in {"disk", "bare"}:
        before = qemu.content_digest(path, disk.format)
        assert vm.guest_read_ok(disk.guest, MARK, 0, MARK_LENGTH)
        vm.guest_write(disk.guest, OTHER, 128 * KIB, 64 * KIB)
        vm.guest_flush(disk.guest)
        assert vm.guest_read_ok(disk.guest, OTHER, 128 * KIB, 64 * KIB)
        assert qemu.read_ok(path, OTHER, 128 * KIB, 64 * KIB, format=disk.format)
        assert qemu.chain(path, disk.format)[1:] == list(disk.below)
        assert qemu.content_digest(path, disk.format) != before
    if disk.kind == "encrypted":
        vm.guest_write(disk.guest, OTHER, 0, 64 * KIB)
        assert vm.guest_read_ok(disk.guest, OTHER, 0, 64 * KIB)
    if disk.kind == "temporary":
        vm.guest_write(disk.guest, OTHER, 0, 64 * KIB)
        vm.guest_flush(disk.guest)
        assert qemu.read_ok(path, MARK, 0, MARK_LENGTH)
    if disk.kind in {"read-only", "cdrom"}:
        with pytest.raises(qemu.GuestIOError, match="read-only"):
            vm.guest_write(disk.guest, OTHER, 0, 64 * KIB)
        assert vm.guest_read_ok(disk.guest, MARK, 0, MARK_LENGTH)
