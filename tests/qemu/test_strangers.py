"""Machines that belong to somebody else: libvirtd's are refused by name, whichever of their monitors is given."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import MIB
from tests.qemu.pair import TRACE, Pair

pytestmark = requires.requires_qemu


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running(settings="greeting_timeout = 0.2\n") as found:
        yield found


def libvirts(directory: Path, name: str) -> list[str]:
    """What libvirtd gives to each QEMU of its own, besides hardware."""
    key = directory / "domain-1-x" / "master-key.aes"
    key.parent.mkdir(exist_ok=True)
    key.write_bytes(bytes(32))
    secret = f'{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{key}"}}'
    return ["-name", f"guest={name},debug-threads=on", "-object", secret]


def drive(directory: Path) -> list[str]:
    return ["-drive", f"file={qemu.image(directory / 'a.qcow2', MIB)},format=qcow2,if=virtio"]


def refusal(path: Path, name: str) -> str:
    return f"the machine at {path} is libvirtd's domain '{name}': use virsh for it, or start it without libvirtd (qemu-launch)"


def commands(vm: qemu.Qemu) -> int:
    """How many QMP commands QEMU has been given."""
    return vm.stderr.count("handle_qmp_command")


def test_attaching_a_machine_of_libvirts(daemon: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """Refused by its name there, nothing is recorded, and nothing was said to it."""
    vm = machine([*drive(short_dir), *libvirts(short_dir, "web,,1"), *TRACE])
    before = commands(vm)
    assert daemon.refused("attach", "daisy", vm.monitor_path) == refusal(vm.monitor_path, "web,1")
    assert commands(vm) == before
    assert daemon.ok("list", "--all", "--name") == "\n"
    assert list((daemon.root / "state/domain").iterdir()) == []
    with qemu.QMP(vm.monitor_path) as ours:
        assert ours.execute("query-status")["status"] == "running"


@pytest.mark.parametrize("restart", [False, True], ids=["", "daemon-restarted"])
def test_a_domain_that_libvirt_has_started(
    daemon: Daemon, machine: StartMachine, short_dir: Path, restart: bool
) -> None:
    """Shown with the reason, never spoken to, also while an operation waits for it; ours again when it is started without."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    pair.create("s1")
    pair.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    words = [w.replace("a.qcow2", "a.s1").replace("b.qcow2", "b.s1") for w in pair.vm.command]
    with qemu.Qemu(pair.vm.directory, [*words, *libvirts(short_dir, "web")]) as theirs:
        found = daemon.until("daisy", lambda domain: domain["monitor"]["state"] == "foreign")
        if restart:
            daemon.restart()
            found = daemon.until("daisy", lambda domain: domain["monitor"]["state"] == "foreign")
        said = commands(theirs)
        reason = refusal(theirs.monitor_path, "web")
        assert (found["state"], found["monitor"]["detail"]) == ("no state", reason)
        for words_ in (("snapshot-create-as", "daisy", "s2", "--disk-only"), ("blockpull", "daisy", "vda")):
            said_no = daemon.refused(*words_)
            assert said_no == f"domain 'daisy': the monitor {theirs.monitor_path} is foreign: {reason}"
        assert commands(theirs) == said
        with qemu.QMP(theirs.monitor_path) as owner:  # nobody stands in the way of its owner
            assert owner.execute("query-status")["status"] == "running"
        theirs.quit()
    with qemu.Qemu(pair.vm.directory, words):
        daemon.ready("daisy")
        pair.create("s2")
        assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]


def test_an_operation_that_is_open_waits(daemon: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """While libvirt's QEMU has the images, nothing of the journal is finished or taken back."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    daemon.kill9()
    daemon.start(faults={"QMPSNAP_CRASH": "snapshot-create/sync/before"})
    daemon.ready("daisy")
    with daemon.spawn("snapshot-create-as", "daisy", "s1", "--disk-only"):
        daemon.wait()
    pair.vm.quit()
    with qemu.Qemu(pair.vm.directory, [*pair.vm.command, *libvirts(short_dir, "web")]) as theirs:
        daemon.start()
        daemon.until("daisy", lambda domain: domain["monitor"]["state"] == "foreign")
        (entry,) = (daemon.root / "state/journal/daisy").iterdir()
        assert (short_dir / "a.s1").exists()
        assert daemon.get(f"/operations/{entry.name}")["state"] == "recovering"
        theirs.quit()
    said = daemon.refused("wait", entry.name)
    assert said.startswith("snapshot-create was interrupted and is undone: QEMU is gone")
    assert not (short_dir / "a.s1").exists()


def test_a_monitor_that_is_taken_is_not_a_machine_that_is_off(
    daemon: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """That QEMU was off is forgotten as soon as somebody listens, joined or not."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    pair.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    os.kill(daemon.pid, signal.SIGSTOP)  # so that another is there first
    with qemu.Qemu(pair.vm.directory, pair.vm.command) as again, qemu.QMP(again.monitor_path):
        os.kill(daemon.pid, signal.SIGCONT)
        found = daemon.until("daisy", lambda domain: domain["monitor"]["state"] == "taken")
        assert found["state"] == "no state"
