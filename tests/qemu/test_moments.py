"""Machines that are paused, migrating, losing or gaining disks, and many requests at once."""

import contextlib
import time
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon
from tests.lab.images import KIB, MIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu


@pytest.fixture
def pair(shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str) -> Pair:
    return Pair(shared_daemon, machine, short_dir, name)


def drive(path: Path) -> list[str]:
    return ["-drive", f"file={qemu.image(path, 16 * MIB)},format=qcow2,if=virtio"]


def test_a_paused_machine(pair: Pair) -> None:
    """Stopped by somebody: shown, and snapshots and pulls work; it is still stopped afterwards."""
    pair.vm.qmp("stop")
    pair.daemon.until(pair.name, lambda domain: domain["state"] == "paused")
    pair.create("s1")
    assert pair.daemon.ok("blockpull", pair.name, "vda", "--wait") == "\nPull complete\n"
    assert pair.vm.qmp("query-status")["status"] == "paused"
    assert pair.daemon.ok("domstate", pair.name, "--reason") == "paused (paused)\n\n"
    pair.vm.qmp("cont")
    pair.daemon.until(pair.name, lambda domain: domain["state"] == "running")


def test_a_machine_that_was_not_started_yet(
    shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    vm = machine(drive(short_dir / "a.qcow2"), paused=True)
    shared_daemon.ok("attach", name, vm.monitor_path)
    assert shared_daemon.ok("domstate", name, "--reason") == "paused (prelaunch)\n\n"
    shared_daemon.ok("snapshot-create-as", name, "s1", "--disk-only")
    assert qemu.chain(short_dir / "a.s1")[1] == short_dir / "a.qcow2"


def test_the_destination_of_a_migration(
    shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    """QEMU would do it, and the guest would lose what it wrote since (facts/lab.md 16): refused."""
    vm = machine([*drive(short_dir / "a.qcow2"), "-incoming", "defer"])
    shared_daemon.ok("attach", name, vm.monitor_path)
    assert shared_daemon.refused("snapshot-create-as", name, "s1", "--disk-only") == (
        f"Requested operation is not valid: domain '{name}' cannot be snapshotted now: its status is inmigrate"
    )
    assert list(short_dir.glob("*.s1")) == []


def test_the_source_of_a_migration(pair: Pair) -> None:
    """While it runs, whatever becomes of it, the images may be the destination's at any moment."""
    before = pair.picture()
    wanted = [{"capability": name, "state": True} for name in ("events", "pause-before-switchover")]
    pair.vm.qmp("migrate-set-capabilities", capabilities=wanted)
    pair.vm.qmp("migrate", uri="exec:cat > /dev/null")
    pair.vm.event("MIGRATION", status="pre-switchover")
    assert pair.refused("s1") == (
        f"Requested operation is not valid: domain '{pair.name}' cannot be snapshotted now:"
        " a migration is under way"
    )
    pair.vm.qmp("migrate_cancel")
    pair.vm.event("MIGRATION", status="cancelled")
    pair.daemon.until(pair.name, lambda domain: domain["state"] == "running")
    assert pair.picture() == before
    pair.create("s1")
    assert pair.chain() == ["a.s1", "a.qcow2"]


def test_after_a_migration(pair: Pair, short_dir: Path) -> None:
    pair.vm.qmp("migrate", uri=f"exec:cat > {short_dir}/state")
    pair.vm.event("STOP")
    deadline = time.monotonic() + qemu.PATIENCE
    while pair.vm.qmp("query-status")["status"] != "postmigrate":
        assert time.monotonic() < deadline
    assert pair.refused("s1") == (
        f"Requested operation is not valid: domain '{pair.name}' cannot be snapshotted now:"
        " its status is postmigrate"
    )


def test_a_disk_is_plugged_in_and_out(
    shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    """What the machine has now is what is listed and snapshotted; targets that snapshots know are not given away."""
    vm = machine(drive(short_dir / "a.qcow2"), machine_type="pc")
    shared_daemon.ok("attach", name, vm.monitor_path)
    new = qemu.image(short_dir / "new.qcow2", 16 * MIB)
    vm.qmp("blockdev-add", driver="qcow2", node_name="new", file={"driver": "file", "filename": str(new)})
    vm.qmp("device_add", driver="virtio-blk-pci", id="plugged", drive="new")
    shared_daemon.ok("snapshot-create-as", name, "s1", "--disk-only")
    vm.guest_write("plugged", 7, 0, 64 * KIB)
    vm.guest_flush("plugged")
    assert qemu.read_ok(short_dir / "new.s1", 7, 0, 64 * KIB)
    assert qemu.read_ok(new, 0, 0, 64 * KIB)
    assert [Path(d["source"]).name for d in shared_daemon.get(f"/domains/{name}/disks")["disks"]] == [
        "a.s1",
        "new.s1",
    ]
    found = shared_daemon.get(f"/domains/{name}/snapshots/s1")["disks"]
    assert [disk["target"] for disk in found] == ["vda", "vdb"]


def test_many_at_once(pair: Pair) -> None:
    """Requests of one domain are carried out one after the other; all of them, and of two with one name only one."""
    with contextlib.ExitStack() as stack:
        words = ("snapshot-create-as", pair.name, "--disk-only")
        clients = [stack.enter_context(pair.daemon.spawn(*words, f"s{number}")) for number in range(6)]
        clients += [stack.enter_context(pair.daemon.spawn(*words, "same")) for _ in range(2)]
        ended = [(*client.communicate(timeout=qemu.PATIENCE), client.returncode) for client in clients]
    assert [status for _out, _err, status in ended[:6]] == [0] * 6
    refused = (b"\n", b"error: operation failed: domain moment same already exists\n", 1)
    assert sorted(ended[6:]) == [refused, (b"Domain snapshot same created\n", b"", 0)]
    assert len(pair.chain("vda")) == len(pair.chain("vdb")) == 8
    parents = {
        s["name"]: s["parent"] for s in pair.daemon.get(f"/domains/{pair.name}/snapshots")["snapshots"]
    }
    order, name = [], pair.daemon.get(f"/domains/{pair.name}/snapshots")["current"]
    while name:
        order.append(f"a.{name}")
        name = parents[name]
    assert pair.chain("vda") == [*order, "a.qcow2"]


def test_detaching(pair: Pair) -> None:
    """Refused while anything is open or listed; afterwards the machine is nobody's, and its monitor is free."""
    pair.create("s1")
    pair.daemon.ok("blockpull", pair.name, "vda", "--bandwidth", "65536", "--bytes")
    pair.daemon.ok("snapshot-delete", pair.name, "s1", "--metadata")
    pair.vm.guest_write("virtio0", 5, MIB, 64 * KIB)
    open_operations = pair.daemon.get(f"/domains/{pair.name}")["operations"]
    if open_operations:  # a small image may be pulled at once, whatever the speed
        assert "is not finished yet" in pair.daemon.refused("detach", pair.name)
        pair.daemon.ok("blockjob", pair.name, "vda", "--bandwidth", "0")
        pair.daemon.until(pair.name, lambda domain: not domain["operations"])
    pair.daemon.ok("detach", pair.name)
    assert pair.daemon.refused("domblklist", pair.name) == f"failed to get domain '{pair.name}'"
    with qemu.QMP(pair.vm.monitor_path) as ours:
        assert ours.execute("query-status")["status"] == "running"
    pair.daemon.ok("attach", pair.name, pair.vm.monitor_path)
    assert pair.chain() == ["a.s1"]
