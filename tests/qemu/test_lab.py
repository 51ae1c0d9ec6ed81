"""The lab is honest: what it says is there is there, and what is wrong it sees."""

import os
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.images import KIB, MIB

pytestmark = requires.requires_qemu


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image of 8 MiB with 64 KiB of 0x11 at its start."""
    path = qemu.image(tmp_path / "disk.qcow2", 8 * MIB)
    qemu.write_pattern(path, "qcow2", 0x11, 0, 64 * KIB)
    return path


def drive(path: Path) -> tuple[str, ...]:
    return "-drive", f"file={path},format=qcow2,if=virtio"


# -- images


def test_read_ok_sees_one_wrong_byte(disk: Path) -> None:
    assert qemu.read_ok(disk, 0x11, 0, 64 * KIB)
    assert not qemu.read_ok(disk, 0x12, 0, 64 * KIB)
    qemu.write_pattern(disk, "qcow2", 0x12, 5000, 1)
    assert not qemu.read_ok(disk, 0x11, 0, 64 * KIB)
    assert qemu.read_ok(disk, 0x12, 5000, 1)


def test_read_ok_raises_where_it_cannot_read(disk: Path) -> None:
    """A missing image, a broken chain and an offset past the end are never just "not equal"."""
    with pytest.raises(qemu.GuestIOError):
        qemu.read_ok(disk.with_name("none"), 0, 0, 512)
    with pytest.raises(qemu.GuestIOError):
        qemu.read_ok(disk, 0, 8 * MIB, 512)
    overlay = qemu.image(disk.with_name("overlay.qcow2"), backing=disk)
    disk.unlink()
    with pytest.raises(qemu.GuestIOError):
        qemu.read_ok(overlay, 0x11, 0, 512)


def test_image_never_overwrites(disk: Path) -> None:
    with pytest.raises(FileExistsError):
        qemu.image(disk, 1 * MIB)
    assert qemu.read_ok(disk, 0x11, 0, 64 * KIB)


def test_chain_is_read_from_the_headers(disk: Path) -> None:
    mid = qemu.image(disk.with_name("mid.qcow2"), backing=disk.name)
    top = qemu.image(disk.with_name("top.qcow2"), backing=mid)
    assert qemu.chain(top) == [top, mid, disk]
    assert qemu.virtual_size(top) == 8 * MIB


def test_digest_is_of_contents(disk: Path, tmp_path: Path) -> None:
    """Format, chain, holes and allocated zeroes make no difference."""
    digest = qemu.content_digest(disk)
    assert qemu.content_digest(qemu.image(tmp_path / "overlay.qcow2", backing=disk)) == digest
    raw = qemu.image(tmp_path / "disk.raw", 8 * MIB, "raw")
    qemu.write_pattern(raw, "raw", 0x11, 0, 64 * KIB)
    assert qemu.content_digest(raw, "raw") == digest
    qemu.write_pattern(raw, "raw", 0, 4 * MIB, 1 * MIB)
    assert qemu.content_digest(raw, "raw") == digest


def test_digest_changes_with_a_byte_its_place_and_the_size(disk: Path, tmp_path: Path) -> None:
    digests = {qemu.content_digest(disk)}
    for name, offset in ("byte", 8 * MIB - 1), ("place", 64 * KIB):
        copy = qemu.image(tmp_path / f"{name}.qcow2", backing=disk)
        qemu.write_pattern(copy, "qcow2", 0x11, offset, 1)
        digests.add(qemu.content_digest(copy))
    larger = qemu.image(tmp_path / "larger.qcow2", 9 * MIB, backing=disk)
    digests.add(qemu.content_digest(larger))
    moved = qemu.image(tmp_path / "moved.qcow2", 8 * MIB)
    qemu.write_pattern(moved, "qcow2", 0x11, 64 * KIB, 64 * KIB)
    digests.add(qemu.content_digest(moved))
    assert len(digests) == 5


def test_check_sees_a_damaged_image(disk: Path) -> None:
    qemu.check(disk)
    with disk.open("r+b") as file:
        file.seek(64 * KIB)  # the refcount table, as qemu-img create lays an image out
        file.write(b"\xff" * 512)
    with pytest.raises(qemu.LabError):
        qemu.check(disk)


# -- machines


def test_guest_io(disk: Path, machine: StartMachine) -> None:
    vm = machine(drive(disk))
    vm.guest_write("virtio0", 0x22, 1 * MIB, 64 * KIB)
    assert vm.guest_read_ok("virtio0", 0x22, 1 * MIB, 64 * KIB)
    assert not vm.guest_read_ok("virtio0", 0x23, 1 * MIB, 64 * KIB)
    assert not vm.guest_read_ok("virtio0", 0x22, 1 * MIB - 512, 64 * KIB)
    vm.guest_flush("virtio0")
    assert qemu.read_ok(disk, 0x22, 1 * MIB, 64 * KIB)
    vm.guest_zero("virtio0", 1 * MIB, 64 * KIB)
    assert vm.guest_read_ok("virtio0", 0, 1 * MIB, 64 * KIB)
    vm.guest_discard("virtio0", 1 * MIB, 64 * KIB)


def test_guest_io_raises_where_qemu_fails(disk: Path, machine: StartMachine) -> None:
    vm = machine(drive(disk))
    for run in vm.guest_write, vm.guest_read_ok:
        with pytest.raises(qemu.GuestIOError):
            run("virtio0", 1, 8 * MIB, 512)
    with pytest.raises(qemu.LabError, match="no disk 'virtio1'"):
        vm.guest_write("virtio1", 1, 0, 512)


def test_much_output_does_not_stop_qemu(disk: Path, machine: StartMachine) -> None:
    vm = machine(drive(disk))
    text = vm.guest_io("virtio0", "read -v 0 262144")
    assert text.count("\n") > 262144 // 16
    assert vm.qmp("query-status")["status"] == "running"


def test_kill9_is_a_crash(disk: Path, machine: StartMachine) -> None:
    """The process is gone, its locks are free, and what nobody flushed is lost; `quit` keeps it."""
    for end, kept in ("kill9", False), ("quit", True):
        vm = machine(drive(disk))
        vm.guest_write("virtio0", 0x33, 4 * MIB, 64 * KIB)
        with pytest.raises(qemu.LabError, match="lock"):
            qemu.write_pattern(disk, "qcow2", 0x44, 0, 512)
        getattr(vm, end)()
        assert not vm.alive
        with pytest.raises(ProcessLookupError):
            os.kill(vm.pid, 0)
        assert qemu.read_ok(disk, 0x33, 4 * MIB, 64 * KIB, share=False) == kept
    qemu.write_pattern(disk, "qcow2", 0x44, 0, 512)


def test_monitors(disk: Path, machine: StartMachine) -> None:
    """The second monitor is free; events reach both, and are kept in their order."""
    vm = machine(drive(disk), paused=True, name="daisy")
    assert vm.qmp("query-name") == {"name": "daisy"}
    assert vm.qmp("query-status")["status"] == "prelaunch"
    with qemu.QMP(vm.monitor_path) as daemon:
        assert daemon.version == qemu.version()
        for command in "cont", "stop", "cont":
            daemon.execute(command)
    vm.event("STOP")
    assert [event["event"] for event in vm.client.events] == ["RESUME"]
    vm.event("RESUME")
    vm.event("RESUME")
    with pytest.raises(qemu.QMPError, match="CommandNotFound"):
        vm.qmp("no-such-command")
    assert vm.reconnect().events == []


def test_a_qemu_that_does_not_start_is_told(short_dir: Path, machine: StartMachine) -> None:
    with pytest.raises(qemu.LabError, match=r"did not start: .*No such file"):
        machine(drive(short_dir / "none.qcow2"))
    with pytest.raises(ValueError, match="too long"):
        machine(directory=short_dir / ("x" * 100))


def test_prefix_and_command(disk: Path, short_dir: Path, machine: StartMachine) -> None:
    """A prefix that execs keeps the pid; a command can be started again by anybody."""
    vm = machine(drive(disk), prefix=["env", "FLOWER=daisy"])
    assert b"FLOWER=daisy\0" in Path(f"/proc/{vm.pid}/environ").read_bytes()
    vm.kill9()
    with qemu.Qemu(vm.directory, vm.command) as again:
        assert again.pid != vm.pid
        assert again.guest_read_ok("virtio0", 0x11, 0, 64 * KIB)


def test_snapshot(disk: Path, short_dir: Path, machine: StartMachine) -> None:
    """QEMU under test makes a snapshot; later writes are in the overlay alone."""
    vm = machine(drive(disk))
    overlay = short_dir / "overlay.qcow2"
    node = vm.backend("virtio0")["inserted"]["node-name"]
    before = qemu.content_digest(disk)
    vm.qmp("blockdev-snapshot-sync", node_name=node, snapshot_file=str(overlay), snapshot_node_name="s1")
    vm.guest_write("virtio0", 0x55, 0, 64 * KIB)
    vm.guest_flush("virtio0")
    assert qemu.chain(overlay) == [overlay, disk]
    assert qemu.read_ok(overlay, 0x55, 0, 64 * KIB)
    assert qemu.content_digest(disk) == before
    vm.quit()
    qemu.check(overlay)


def test_other_qemu(disk: Path, machine: StartMachine, other_qemu: str) -> None:
    """The second QEMU is another version, and reads what the first wrote."""
    vm = machine(drive(disk))
    vm.guest_write("virtio0", 0x66, 0, 64 * KIB)
    vm.quit()
    second = machine(drive(disk), binary=other_qemu)
    assert second.client.version == qemu.version(other_qemu) != vm.client.version
    assert second.guest_read_ok("virtio0", 0x66, 0, 64 * KIB)
