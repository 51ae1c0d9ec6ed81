"""The state directory damaged, full, read-only, of another host: one clear line each, nothing guessed, others served."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import MIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu

CREATE = ("snapshot-create-as", "daisy", "s2", "--disk-only")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


def files(daemon: Daemon) -> dict[str, bytes]:
    """All that is recorded."""
    state = daemon.root / "state"
    return {str(p.relative_to(state)): p.read_bytes() for p in state.rglob("*") if p.is_file()}


def defined(daemon: Daemon, name: str, monitor: Path) -> None:
    """A machine that somebody else starts, by a line in its definition."""
    file = daemon.root / "config/domain" / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'monitor = "{monitor}"\n')


def damaged(daemon: Daemon, reason: str) -> str:
    file = daemon.root / "state/domain/daisy.xml"
    return (
        f"the record of domain 'daisy' cannot be read: {file}: {reason}; it names the newest layers, so nothing is changed or"
        f" started without it: put a good copy there, or look at the disks and move it away (mv {file} {file}.damaged)"
    )


def reason_of(daemon: Daemon, *words: str) -> str:
    """Why the client was refused; virsh puts a line of its own before it for some verbs."""
    done = daemon.cli(*words)
    assert done.status == 1, (words, done)
    return done.stderr.splitlines()[-1].removeprefix("error: ")


# -- half-written files


@pytest.fixture
def pair(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Pair:
    """`daisy`, joined by its definition, with the snapshot s1."""
    found = Pair(daemon, machine, short_dir, "daisy")
    defined(daemon, "daisy", found.vm.monitor_path)
    found.create("s1")
    return found


@pytest.mark.parametrize("half", ["empty", "cut"])
def test_a_damaged_record(
    pair: Pair, daemon: Daemon, machine: StartMachine, short_dir: Path, half: str
) -> None:
    """The machine is joined to be looked at: what it runs on is not written over what was recorded, nothing is changed, and
    nothing started. With the record put right, all is as before."""
    record = daemon.root / "state/domain/daisy.xml"
    whole = record.read_bytes()
    daemon.stop()
    record.write_bytes(b"" if half == "empty" else whole[: len(whole) // 2])
    (short_dir / "r").mkdir()
    other = machine(["-drive", f"file={qemu.image(short_dir / 'r.qcow2', MIB)},format=qcow2,if=virtio"])
    daemon.start()
    daemon.ready("daisy")
    daemon.ok("attach", "rose", other.monitor_path)
    before = {n: c for n, c in files(daemon).items() if "rose" not in n}

    assert pair.chain() == ["a.s1", "a.qcow2"]
    reason = "no element found: line 1, column 0" if half == "empty" else "unclosed token: line 13, column 4"
    for words in (
        CREATE,
        ("blockpull", "daisy", "vda"),
        ("snapshot-delete", "daisy", "s1", "--metadata"),
        ("snapshot-current", "daisy", "s1"),
        ("detach", "daisy"),
    ):
        assert reason_of(daemon, *words) == damaged(daemon, reason)
    launch = subprocess.run(
        [Path(daemon.command()[0]).parent / "qemu-launch", "--name", "daisy", "--", *pair.vm.command],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=qemu.PATIENCE,
        check=False,
    )
    assert launch.returncode == 1
    assert launch.stderr == f"error: {damaged(daemon, reason)}\n"
    daemon.ok("snapshot-create-as", "rose", "s1", "--disk-only")  # others are served
    assert {n: c for n, c in files(daemon).items() if "rose" not in n} == before

    record.write_bytes(whole)
    pair.create("s2")
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]
    pair.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert [Path(d["source"]).name for d in daemon.get("/domains/daisy/disks")["disks"]] == ["a.s2", "b.s2"]


def test_a_damaged_record_is_moved_away(pair: Pair, daemon: Daemon) -> None:
    """The way out that the refusal names works: what runs is what is recorded."""
    record = daemon.root / "state/domain/daisy.xml"
    daemon.stop()
    record.write_bytes(b"")
    daemon.start()
    daemon.ready("daisy")
    assert daemon.refused(*CREATE).startswith("the record of domain 'daisy' cannot be read")
    record.rename(record.with_suffix(".xml.damaged"))
    pair.create("s2")
    daemon.restart()
    daemon.ready("daisy")
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]
    assert record.with_suffix(".xml.damaged").read_bytes() == b""


def test_a_damaged_record_of_an_attached_machine(
    daemon: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """Its monitor is not known without it; attached anew it would lose its newest layers, so it is not."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    record = daemon.root / "state/domain/daisy.xml"
    whole = record.read_bytes()
    daemon.stop()
    record.write_bytes(whole[:-1].replace(b"</domain>", b""))
    before = files(daemon)
    daemon.start()
    assert daemon.ok("list", "--all", "--name") == "\n"
    refusal = daemon.refused("attach", "daisy", pair.vm.monitor_path)
    assert refusal.startswith(f"the record of domain 'daisy' cannot be read: {record}: no element found: ")
    assert f'error="{refusal}"' in daemon.log
    assert files(daemon) == before
    record.write_bytes(whole)
    daemon.restart()
    daemon.ready("daisy")


def test_a_damaged_record_and_an_open_operation(pair: Pair, daemon: Daemon) -> None:
    """Recovery does not write over it either, and goes on when it is put right."""
    record = daemon.root / "state/domain/daisy.xml"
    daemon.kill9()
    daemon.start(faults={"QMPSNAP_CRASH": "snapshot-create/transaction/after"})
    daemon.ready("daisy")
    with daemon.spawn(*CREATE):
        daemon.wait()
    whole = record.read_bytes()
    record.write_bytes(whole[:-20])
    (entry,) = (daemon.root / "state/journal/daisy").iterdir()
    daemon.start()
    daemon.ready("daisy")
    assert daemon.get(f"/operations/{entry.name}")["error"]["code"] == "record-damaged"
    assert record.read_bytes() == whole[:-20]
    record.write_bytes(whole)
    daemon.until("daisy", lambda domain: not domain["operations"])  # it is tried again every few seconds
    assert daemon.ok("wait", entry.name) == f"Operation {entry.name} done\n"
    assert pair.names() == ["s1", "s2"]


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_a_damaged_snapshot(pair: Pair, daemon: Daemon, name: str) -> None:
    """It may be the current one, and has its name: no other is made, and its file stays; without it work goes on."""
    file = daemon.root / "state/snapshot/daisy/s1.xml"
    whole = file.read_bytes()
    daemon.stop()
    file.write_bytes(whole[: len(whole) // 2])
    daemon.start()
    daemon.ready("daisy")
    assert pair.names() == []
    said = pair.refused(name)
    assert said.startswith(f"a snapshot of domain 'daisy' cannot be read: XML error: {file}: ")
    assert file.read_bytes() == whole[: len(whole) // 2]
    file.write_bytes(whole)
    pair.create("s2")
    assert daemon.ok("snapshot-list", "daisy", "--tree") == "s1\n  |\n  +- s2\n    \n\n"


def test_what_was_on_its_way(daemon: Daemon) -> None:
    """Half-written files that never got their name are gone at the next start."""
    daemon.stop()
    for name in ("tmpabc", "tmpdef"):
        (daemon.root / "state/tmp" / name).write_bytes(b"<domain")
    daemon.start()
    assert list((daemon.root / "state/tmp").iterdir()) == []


# -- no room, no writing


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small file system at ``folder``; skips where that takes root and we are not."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(short_dir: Path) -> Iterator[Daemon]:
    """A daemon whose state directory is a file system of 1 MiB."""
    root = short_dir / "q"
    with mounted(root / "state", "1m"), Daemon(root) as found:
        yield found


def unwritable(daemon: Daemon, how: str) -> str:
    """Make the state directory so; the reason that the kernel gives."""
    if how == "read-only":
        remount(daemon, "ro")
        return "Read-only file system"
    filler = daemon.root / "state/filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return "No space left on device"


def writable(daemon: Daemon, how: str) -> None:
    if how == "read-only":
        remount(daemon, "rw")
    else:
        (daemon.root / "state/filler").unlink()


def remount(daemon: Daemon, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(daemon.root / "state")], check=True)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_nothing_is_begun(small: Daemon, machine: StartMachine, short_dir: Path, how: str) -> None:
    """Refused before QEMU is touched, with one line; a machine that comes back meanwhile is shown; then all is well again."""
    pair = Pair(small, machine, short_dir, "daisy")
    pair.create("s1")
    reason = unwritable(small, how)
    before = pair.picture()
    refusal = f"cannot write to '{small.root}/state/journal': {reason}"
    assert pair.refused("s2") == refusal
    assert small.refused("blockpull", "daisy", "vda") == refusal
    assert reason_of(small, "snapshot-delete", "daisy", "s1", "--metadata") == refusal
    assert pair.picture() == before
    assert pair.commands("transaction", "block-stream") == pair.commands("transaction")[:1]

    pair.vm.quit()
    words = [w.replace("a.qcow2", "a.s1").replace("b.qcow2", "b.s1") for w in pair.vm.command]
    words[words.index("-m") + 1] = "48"  # something to record
    with qemu.Qemu(pair.vm.directory, words):
        small.ready("daisy")
        assert pair.chain() == ["a.s1", "a.qcow2"]
        assert pair.refused("s2") == refusal
        writable(small, how)
        pair.create("s2")
        assert pair.names() == ["s1", "s2"]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_what_runs_goes_on(small: Daemon, machine: StartMachine, short_dir: Path, how: str) -> None:
    """A pull comes to its end in QEMU, and is told to be done when that can be written down."""
    pair = Pair(small, machine, short_dir, "daisy")
    pair.write(1)
    pair.create("s1")
    small.ok("blockpull", "daisy", "vda", "--bandwidth", "65536", "--bytes")
    (entry,) = (small.root / "state/journal/daisy").iterdir()
    unwritable(small, how)
    small.ok("blockjob", "daisy", "vda", "--bandwidth", "0")
    pair.vm.event("JOB_STATUS_CHANGE", status="null")
    assert qemu.chain(short_dir / "a.s1") == [short_dir / "a.s1"]
    if how == "read-only":  # to take a name away needs no room
        small.until("daisy", lambda _domain: small.get(f"/operations/{entry.name}")["error"] is not None)
        assert small.get(f"/operations/{entry.name}")["error"]["code"] == "incomplete"
        assert entry.exists()
    writable(small, how)
    assert small.ok("wait", entry.name) == f"Operation {entry.name} done\n"
    assert not entry.exists()
    assert pair.chain() == ["a.s1"]


# -- whose it is


def start(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is to refuse."""
    return subprocess.run(
        [*daemon.program, *words],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=qemu.PATIENCE,
        check=False,
    )


def test_a_state_directory_of_another_host(daemon: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """Refused, for that host may run on it; taken over once, when told so."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    pair.create("s1")
    host = daemon.root / "state/host"
    ours = host.read_bytes()
    assert Path("/etc/machine-id").read_bytes().strip() not in ours
    daemon.stop()
    host.write_text("0123456789abcdef0123456789abcdef\n")
    before = files(daemon)
    done = start(daemon)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: the state directory {daemon.root}/state belongs to another host ({host} says which): if it is shared with"
        " that host, give this one its own; if it was moved or restored from a backup, start once with: qmpsnapd --take-over\n"
    )
    assert files(daemon) == before

    program = daemon.program
    daemon.program = [*program, "--take-over"]
    daemon.start()
    daemon.ready("daisy")
    assert host.read_bytes() == ours
    daemon.program = program
    daemon.restart()
    daemon.ready("daisy")
    pair.create("s2")


def test_an_older_state_directory_says_no_host(daemon: Daemon) -> None:
    """It is ours from now on."""
    host = daemon.root / "state/host"
    ours = host.read_bytes()
    daemon.stop()
    host.unlink()
    daemon.start()
    assert host.read_bytes() == ours


def test_a_daemon_that_starts_on_a_read_only_one(
    small: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """It serves what it may: all is shown, nothing begun."""
    pair = Pair(small, machine, short_dir, "daisy")
    pair.create("s1")
    small.stop()
    (small.root / "state/tmp/tmpabc").write_bytes(b"<domain")
    unwritable(small, "read-only")
    small.start()
    small.ready("daisy")
    assert (pair.names(), pair.chain()) == (["s1"], ["a.s1", "a.qcow2"])
    assert pair.refused("s2") == f"cannot write to '{small.root}/state/journal': Read-only file system"
