"""The real guest is honest: a torn cut is seen as torn, a good one as good, a quiet one as quiet."""

import json
from pathlib import Path

from tests import requires
from tests.conftest import StartGuest
from tests.lab import qemu
from tests.lab.guest import Guest, Offline, Options, command, offline

pytestmark = requires.requires_guest


def snapshot(vm: Guest, *disks: int) -> None:
    """Put overlays on disks, in one transaction; the images below hold the cut."""
    actions = [
        {
            "type": "blockdev-snapshot-sync",
            "data": {
                "node-name": f"disk{disk}",
                "snapshot-node-name": f"overlay{disk}",
                "snapshot-file": str(vm.directory / f"overlay{disk}.qcow2"),
                "format": "qcow2",
            },
        }
        for disk in disks
    ]
    vm.qmp("transaction", actions=actions)


def cut(vm: Guest) -> list[Offline]:
    return [offline(vm.directory / f"disk{disk}.qcow2") for disk in (0, 1)]


def test_writer_and_agent(guest: StartGuest) -> None:
    """A resumed guest has a shell, a writer whose log is whole, and an agent."""
    vm = guest()
    assert vm.run("cat /run/dirs").split() == ["/d0", "/d1"]
    vm.writer_start()
    vm.writer_reached(20)
    assert vm.agent.execute("guest-fsfreeze-status") == "thawed"
    last = vm.writer_stop()
    assert last >= 20
    assert vm.writer_check() == [{"records": last, "last": last, "holes": 0, "bad": 0}] * 2


def test_resumed_guests_share_nothing(guest: StartGuest) -> None:
    one, two = guest(), guest(Options(name="daisy"))
    one.writer_start()
    one.writer_reached(5)
    assert two.sh("test -e /d0/log") == (1, "")
    assert two.qmp("query-name") == {"name": "daisy"}


def test_transaction_is_one_point_in_time(guest: StartGuest) -> None:
    """Both disks end at the same round or the first one ahead, between what was seen before and after."""
    vm = guest()
    vm.writer_start()
    before = vm.writer_reached(10)
    snapshot(vm, 0, 1)
    after = vm.writer_reached(vm.writer_last() + 2)
    one, two = cut(vm)
    assert one.records.last - two.records.last in {0, 1}
    assert before <= two.records.last <= one.records.last <= after
    for disk in one, two:
        assert disk.records.whole
        assert disk.sound
        assert disk.needs_recovery


def test_torn_cut_is_seen(guest: StartGuest) -> None:
    """Two snapshots, ten rounds apart: each disk alone is good, together they are no point in time."""
    vm = guest()
    vm.writer_start()
    vm.writer_reached(5)
    snapshot(vm, 0)
    vm.writer_reached(vm.writer_last() + 10)
    snapshot(vm, 1)
    one, two = cut(vm)
    assert one.records.whole
    assert two.records.whole
    assert two.records.last - one.records.last >= 9


def test_quiesced_cut_is_quiet(guest: StartGuest) -> None:
    """Between freeze and thaw the file systems are as unmounted: nothing to recover."""
    vm = guest()
    vm.writer_start()
    vm.writer_reached(5)
    assert vm.agent.execute("guest-fsfreeze-freeze") == 2
    snapshot(vm, 0, 1)
    assert vm.agent.execute("guest-fsfreeze-thaw") == 2
    one, two = cut(vm)
    assert not one.needs_recovery
    assert not two.needs_recovery
    assert one.records.whole
    assert one.records.last - two.records.last in {0, 1}


def test_acknowledged_rounds_survive_kill9(guest: StartGuest) -> None:
    vm = guest()
    vm.writer_start()
    acknowledged = vm.writer_reached(20)
    vm.kill9()
    for disk in cut(vm):
        assert disk.records.whole
        assert disk.records.last >= acknowledged


def test_cold_boot_of_given_disks(guest: StartGuest, short_dir: Path) -> None:
    """A guest boots on overlays of a cut, and its writer goes on from there."""
    vm = guest()
    vm.writer_start()
    last = vm.writer_stop()
    vm.run("sync")
    vm.quit()
    disks = [
        qemu.image(short_dir / f"again{disk}.qcow2", backing=vm.directory / f"disk{disk}.qcow2")
        for disk in (0, 1)
    ]
    again = guest(disks=disks)
    assert f"last=S{last:012d}" in " ".join(line.replace(" D0", "") for line in again.console)
    again.writer_start()
    again.writer_reached(last + 5)
    assert {line["holes"] for line in again.writer_check()} == {0}
    assert offline(vm.directory / "disk0.qcow2").records.last == last


def test_command_line_is_plain_qemu(short_dir: Path) -> None:
    """The command is a list for a starter to take: program first, disks and sockets by their names."""
    line = command(short_dir, Options(name="daisy", extra=("-device", "virtio-rng-pci")))
    assert line[0] == qemu.qemu_binary()
    assert line[-2:] == ["-device", "virtio-rng-pci"]
    assert f"unix:{short_dir}/monitor.sock,server=on,wait=off" in line
    assert (short_dir / "disk1.qcow2").exists()
    json.dumps(line)
