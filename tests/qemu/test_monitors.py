"""Monitors in every state, and the daemon's own comings and goings: what is shown, and that QEMU is left alone."""

import contextlib
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB, MIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu

SETTINGS = "greeting_timeout = 0.2\n"


@pytest.fixture
def impatient() -> Iterator[Daemon]:
    """A daemon that soon says what is wrong with a monitor."""
    with running(settings=SETTINGS) as daemon:
        yield daemon


def one_disk(machine: StartMachine, directory: Path) -> qemu.Machine:
    image = qemu.image(directory / "a.qcow2", 16 * MIB)
    return machine(["-drive", f"file={image},format=qcow2,if=virtio"], directory=directory / "m")


def monitor_state(daemon: Daemon, name: str = "daisy") -> str:
    return str(daemon.get(f"/domains/{name}")["monitor"]["state"])


def row(daemon: Daemon, *words: str) -> str:
    """The first domain of `list`, its cells joined."""
    return " | ".join(daemon.ok("list", *words).splitlines()[2].split(maxsplit=2))


# -- the monitor


def test_taken_by_another_client(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """It is said whose fault it is; joined as soon as the other leaves."""
    vm = one_disk(machine, short_dir)
    with qemu.QMP(vm.monitor_path):
        impatient.ok("attach", "daisy", vm.monitor_path)
        assert row(impatient) == "- | daisy | no state (taken)"
        advice = "give qmpsnap one of its own (-qmp unix:PATH,server=on,wait=off)"
        assert impatient.refused("snapshot-create-as", "daisy", "s1", "--disk-only") == (
            f"domain 'daisy': the monitor {vm.monitor_path} is taken: another client holds the monitor; {advice}"
        )
        assert impatient.ok("domstate", "daisy", "--reason") == "no state (taken)\n\n"
    impatient.ready("daisy")
    assert row(impatient) == "1 | daisy | running"
    impatient.ok("snapshot-create-as", "daisy", "s1", "--disk-only")


def test_hung_before_we_came(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    vm = one_disk(machine, short_dir)
    vm.process.send_signal(signal.SIGSTOP)
    impatient.ok("attach", "daisy", vm.monitor_path)
    assert row(impatient) == "- | daisy | no state (hung)"
    refusal = impatient.refused("blockpull", "daisy", "vda")
    assert refusal == f"domain 'daisy': the monitor {vm.monitor_path} is hung: it accepts and does not answer"
    vm.process.send_signal(signal.SIGCONT)
    impatient.ready("daisy")
    impatient.ok("snapshot-create-as", "daisy", "s1", "--disk-only")


def test_hung_in_the_middle(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """A QEMU that stops answering is shown as hung; what was asked of it is answered when it goes on."""
    vm = one_disk(machine, short_dir)
    impatient.ok("attach", "daisy", vm.monitor_path)
    vm.process.send_signal(signal.SIGSTOP)
    with impatient.spawn("snapshot-create-as", "daisy", "s1", "--disk-only") as process:
        deadline = time.monotonic() + qemu.PATIENCE
        while monitor_state(impatient) != "hung":  # no event tells that time has passed
            assert time.monotonic() < deadline
            select.select([], [], [], 0.1)
        assert row(impatient) == "1 | daisy | no state (hung)"
        assert process.poll() is None
        vm.process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=qemu.PATIENCE) == (b"Domain snapshot s1 created\n", b"")
    assert row(impatient) == "1 | daisy | running"


def test_a_domain_that_hangs_does_not_hold_up_others(
    impatient: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    for name in ("daisy", "rose"):
        (short_dir / name).mkdir()
        vm = one_disk(machine, short_dir / name)
        impatient.ok("attach", name, vm.monitor_path)
        if name == "daisy":
            vm.process.send_signal(signal.SIGSTOP)
    with impatient.spawn("domblklist", "daisy") as process:
        for number in range(3):
            impatient.ok("snapshot-create-as", "rose", f"s{number}", "--disk-only")
        assert "daisy" in impatient.ok("list", "--all")
        assert process.poll() is None


def test_gone_and_back(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """A machine that was killed is shut off; started again on its active layer it is the same domain, disks and all."""
    pair = Pair(impatient, machine, short_dir, "daisy")
    vm = pair.vm
    pair.create("s1")
    pair.write(1)
    before = impatient.get("/domains/daisy")
    vm.kill9()
    found = impatient.until("daisy", lambda domain: domain["state"] == "shut off")
    assert (found["id"], found["pid"], found["uuid"]) == (None, None, before["uuid"])
    assert impatient.ok("list") == " Id   Name   State\n--------------------\n\n"
    assert (
        impatient.ok("list", "--all")
        == " Id   Name    State\n------------------------\n -    daisy   shut off\n\n"
    )

    swapped = [word.replace("a.qcow2", "a.s1").replace("b.qcow2", "b.s1") for word in vm.command]
    with qemu.Qemu(vm.directory, swapped) as again:
        found = impatient.ready("daisy")
        assert (found["state"], found["pid"], found["uuid"]) == ("running", again.pid, before["uuid"])
        assert pair.chain("vda") == ["a.s1", "a.qcow2"]
        assert pair.chain("vdb") == ["b.s1", "b.qcow2"]
        pair.create("s2")
        assert again.guest_read_ok("virtio1", 1, 64 * KIB, 64 * KIB)
        again.quit()
        impatient.until("daisy", lambda domain: domain["state"] == "shut off")


def test_targets_stay_when_the_order_changes(
    impatient: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """A disk that another one was put in front of is still `vdb`, as its snapshots call it."""
    files = {name: qemu.image(short_dir / f"{name}.qcow2", MIB) for name in ("a", "b", "new")}

    def args(*names: str) -> list[str]:
        words = []
        for name in names:
            words += ["-drive", f"file={files[name]},format=qcow2,if=none,id=d{name}"]
            words += ["-device", f"virtio-blk-pci,id={name}disk,drive=d{name}"]
        return words

    with machine(args("a", "b"), directory=short_dir / "m") as vm:
        impatient.ok("attach", "daisy", vm.monitor_path)
        assert impatient.disk("daisy", "vdb")["source"] == str(files["b"])
    impatient.until("daisy", lambda domain: domain["state"] == "shut off")
    with machine(args("new", "b", "a"), directory=short_dir / "m"):
        impatient.ready("daisy")
        disks = impatient.get("/domains/daisy/disks")["disks"]
        assert {disk["target"]: disk["source"] for disk in disks} == {
            "vda": str(files["a"]),
            "vdb": str(files["b"]),
            "vdc": str(files["new"]),
        }


def test_a_socket_of_another_kind(impatient: Daemon, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(short_dir / "d.sock"))
        impatient.ok("attach", "daisy", short_dir / "d.sock")
        assert row(impatient) == "- | daisy | no state (denied)"
        refusal = impatient.refused("snapshot-create-as", "daisy", "s1", "--disk-only")
        assert refusal.endswith("Protocol wrong type for socket")
    assert impatient.ok("detach", "daisy") == "Domain 'daisy' detached\n\n"
    assert impatient.ok("list", "--all", "--name") == "\n"


@contextlib.contextmanager
def slowly(target: Path, path: Path) -> Iterator[None]:
    """A socket at ``path`` that passes everything on to ``target`` and back, a few bytes at a time."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def relay() -> None:
            with contextlib.suppress(OSError):
                ours, _address = listener.accept()
                with ours, socket.socket(socket.AF_UNIX) as theirs:
                    theirs.connect(str(target))
                    to = {ours: theirs, theirs: ours}
                    while True:
                        for ready in select.select(list(to), [], [])[0]:
                            data = ready.recv(7)
                            if not data:
                                return
                            to[ready].sendall(data)

        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def test_a_slow_monitor(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    vm = one_disk(machine, short_dir)
    path = short_dir / "slow.sock"
    with slowly(vm.monitor_path, path):
        impatient.ok("attach", "daisy", path)
        impatient.ready("daisy")
        impatient.ok("snapshot-create-as", "daisy", "s1", "--disk-only")
        assert impatient.ok("blockpull", "daisy", "vda", "--wait") == "\nPull complete\n"
        assert [layer["file"] for layer in impatient.disk("daisy")["chain"]] == [str(short_dir / "a.s1")]
        impatient.ok("snapshot-delete", "daisy", "s1", "--metadata")
        impatient.ok("detach", "daisy")


# -- the daemon


def test_stopping_leaves_qemu_alone(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """SIGTERM ends the daemon with status 0, whatever it waits for; its machines run on, and it joins them again."""
    pair = Pair(impatient, machine, short_dir, "daisy")
    (short_dir / "h").mkdir()
    hung = one_disk(machine, short_dir / "h")
    impatient.ok("attach", "hung", hung.monitor_path)
    hung.process.send_signal(signal.SIGSTOP)
    pair.create("s1")
    with impatient.spawn("domblklist", "hung") as waiting, impatient.spawn("wait", "nosuch") as other:
        other.wait(qemu.PATIENCE)
        assert impatient.process is not None
        impatient.process.send_signal(signal.SIGTERM)
        assert impatient.process.wait(20) == 0
        waiting.communicate(timeout=qemu.PATIENCE)
        assert waiting.returncode == 1
    assert pair.vm.alive
    assert hung.alive
    pair.write(1)
    hung.process.send_signal(signal.SIGCONT)
    impatient.start()
    for name in ("daisy", "hung"):
        assert impatient.ready(name)["state"] == "running"
    pair.create("s2")
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]


def test_a_client_that_follows_does_not_hold_up_the_end(impatient: Daemon) -> None:
    """An open stream of events, and a connection that says nothing, are no reason to stay."""
    with socket.socket(socket.AF_UNIX) as follower, socket.socket(socket.AF_UNIX) as silent:
        follower.connect(str(impatient.socket))
        follower.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert follower.recv(64).startswith(b"HTTP/1.1 200")
        silent.connect(str(impatient.socket))
        silent.sendall(b"GET /v1/")
        assert impatient.process is not None
        impatient.process.send_signal(signal.SIGTERM)
        assert impatient.process.wait(20) == 0


def test_two_daemons_on_one_state_directory(
    impatient: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """The second one refuses and touches nothing; the first one serves on."""
    vm = one_disk(machine, short_dir)
    impatient.ok("attach", "daisy", vm.monitor_path)
    done = subprocess.run(
        [impatient.command()[0] + "d"],
        env=impatient.env,
        capture_output=True,
        text=True,
        timeout=qemu.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: another qmpsnapd uses {impatient.root}/state; stop it,"
        " or give this one another state directory (QMPSNAP_ROOT)\n"
    )
    impatient.ok("snapshot-create-as", "daisy", "s1", "--disk-only")
    impatient.kill9()
    impatient.start()  # a lock that a dead daemon held is free
    impatient.ready("daisy")


def test_many_restarts(impatient: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """Ids, snapshots and disks are the same each time, and no client of ours is left on the monitor."""
    pair = Pair(impatient, machine, short_dir, "daisy")
    for number in range(4):
        pair.create(f"s{number}")
        impatient.kill9()
        impatient.start()
        impatient.ready("daisy")
    assert pair.names() == [f"s{number}" for number in range(4)]
    assert pair.chain() == ["a.s3", "a.s2", "a.s1", "a.s0", "a.qcow2"]
    impatient.stop()
    with qemu.QMP(pair.vm.monitor_path) as ours:
        assert ours.execute("query-jobs") == []
