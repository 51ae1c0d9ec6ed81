"""Migrations on shared files, which QEMU lets us change chains in: refused before, seen after, and never called a success.

The destination is started before the daemon acts, so that it goes on with the layers of that moment (facts/lab.md 16).
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu

UNDER_WAY = "a migration is under way"
COMMITTED = "snapshot-create/transaction/after"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


class Migration:
    """A source that the daemon has joined, and a destination that waits for it on the same files."""

    def __init__(
        self, daemon: Daemon, machine: StartMachine, short_dir: Path, snapshots: tuple[str, ...] = ()
    ) -> None:
        self.daemon = daemon
        self.pair = Pair(daemon, machine, short_dir, "daisy")
        for name in snapshots:
            self.pair.create(name)
        self.source = self.pair.vm
        self.uri = f"unix:{short_dir}/migrate.sock"
        words = [word.replace(str(self.source.directory), f"{short_dir}/d") for word in self.source.command]
        for name in snapshots:
            words = [w.replace("a.qcow2", f"a.{name}").replace("b.qcow2", f"b.{name}") for w in words]
        Path(short_dir, "d").mkdir()
        Path(short_dir, "d/idle.bin").write_bytes(Path(self.source.directory, "idle.bin").read_bytes())
        self.destination = qemu.Qemu(short_dir / "d", [*words, "-incoming", self.uri])

    def begin(self) -> None:
        """The migration runs, and waits before it hands over."""
        wanted = [{"capability": name, "state": True} for name in ("events", "pause-before-switchover")]
        self.source.qmp("migrate-set-capabilities", capabilities=wanted)
        self.source.qmp("migrate", uri=self.uri)
        self.source.event("MIGRATION", status="pre-switchover")

    def cancel(self) -> None:
        self.source.qmp("migrate_cancel")
        self.source.event("MIGRATION", status="cancelled")
        self.daemon.until("daisy", lambda domain: domain["state"] == "running")

    def complete(self) -> None:
        self.source.qmp("migrate-continue", state="pre-switchover")
        self.source.event("MIGRATION", status="completed")

    def hang_at(self, point: str) -> None:
        """Start the daemon anew, to stop at the point."""
        self.daemon.kill9()
        self.daemon.start(faults={"QMPSNAP_CRASH": f"{point}:hang"})
        self.daemon.ready("daisy")

    def hung(self, client: subprocess.Popen[bytes]) -> None:
        """Returns when it has stopped there, on behalf of that client."""
        deadline = time.monotonic() + qemu.PATIENCE
        while os.waitid(os.P_PID, self.daemon.pid, os.WSTOPPED | os.WNOHANG) is None:
            assert client.poll() is None, client.communicate()
            assert time.monotonic() < deadline, self.daemon.log[-3000:]
            time.sleep(0.005)  # two processes, of which one ends

    def go_on(self) -> None:
        os.kill(self.daemon.pid, signal.SIGCONT)

    def create(self, *during: str) -> bytes:
        """A snapshot in which a migration begins right after QEMU has switched (and ends as ``during`` says); what the client
        was told, which must be a failure."""
        self.hang_at(COMMITTED)
        with self.daemon.spawn("snapshot-create-as", "daisy", "s1", "--disk-only") as client:
            self.hung(client)
            self.begin()
            for act in during:
                getattr(self, act)()
            self.go_on()
            _out, said = client.communicate(timeout=qemu.PATIENCE)
            assert client.returncode == 1
        return said

    def sources(self) -> list[str]:
        return [Path(disk["source"]).name for disk in self.daemon.get("/domains/daisy/disks")["disks"]]

    def journal(self) -> list[Path]:
        return list((self.daemon.root / "state/journal/daisy").glob("*"))


@pytest.fixture
def migration(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Iterator[Migration]:
    found = Migration(daemon, machine, short_dir)
    yield found
    found.destination.close()


def told(directory: Path, why: str) -> str:
    ours, theirs = (f"{directory}/a{s}, {directory}/b{s}" for s in (".s1", ".qcow2"))
    return (
        f"domain 'daisy': {why} since before the snapshot was complete, and none is recorded: this QEMU writes to {ours},"
        f" a destination that was started earlier will write to {theirs} below it; cancel the migration (migrate_cancel),"
        f" and start the destination anew on {ours}"
    )


def test_it_begins_in_the_middle_of_a_create(migration: Migration, short_dir: Path) -> None:
    """One clear error; the layers in use are on record, no snapshot is listed, nothing is open. Once it is cancelled, work goes
    on from there and nothing is lost."""
    assert migration.create() == f"error: {told(short_dir, UNDER_WAY)}\n".encode()
    assert (migration.pair.names(), migration.journal()) == ([], [])
    refusal = (
        "Requested operation is not valid: domain 'daisy' cannot be snapshotted now: a migration is under way"
    )
    assert migration.pair.refused("s2") == refusal

    migration.cancel()
    migration.pair.write(1)
    migration.pair.create("s2")
    assert migration.pair.chain() == ["a.s2", "a.s1", "a.qcow2"]
    migration.source.quit()
    migration.daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert migration.sources() == ["a.s2", "b.s2"]
    assert qemu.read_ok(short_dir / "a.s1", 1, 64 * KIB, 64 * KIB)


def test_it_ends_in_the_middle_of_a_create(migration: Migration, short_dir: Path) -> None:
    """What the error says is so: the destination writes to the layer below, and the overlay stays on record for the source."""
    assert migration.create("complete") == f"error: {told(short_dir, 'its status is postmigrate')}\n".encode()
    assert (migration.pair.names(), migration.journal()) == ([], [])
    migration.destination.guest_write("virtio0", 9, 0, 64 * KIB)
    migration.destination.guest_flush("virtio0")
    migration.source.quit()
    migration.daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert migration.sources() == ["a.s1", "b.s1"]
    migration.destination.quit()
    assert qemu.read_ok(short_dir / "a.qcow2", 9, 0, 64 * KIB)


def test_the_daemon_dies_and_a_migration_begins(migration: Migration, short_dir: Path) -> None:
    """Recovery sees the same and says the same: who waits by the operation's id is told, and no snapshot is listed."""
    migration.hang_at(COMMITTED)
    with migration.daemon.spawn("snapshot-create-as", "daisy", "s1", "--disk-only") as client:
        migration.hung(client)
        migration.begin()
        migration.daemon.kill9()
    (entry,) = migration.journal()
    migration.daemon.start()
    migration.daemon.ready("daisy")
    said = migration.daemon.refused("wait", entry.name)
    assert said == told(short_dir, UNDER_WAY)
    assert (migration.pair.names(), migration.journal()) == ([], [])
    assert migration.sources() == ["a.s1", "b.s1"]


def test_a_pull_is_not_begun(migration: Migration) -> None:
    migration.pair.create("s1")
    migration.begin()
    refusal = (
        "Requested operation is not valid: domain 'daisy' cannot be pulled now: a migration is under way"
    )
    assert migration.daemon.refused("blockpull", "daisy", "vda") == refusal
    assert migration.source.qmp("query-jobs") == []
    migration.complete()
    refusal = (
        "Requested operation is not valid: domain 'daisy' cannot be pulled now: its status is postmigrate"
    )
    assert migration.daemon.refused("blockpull", "daisy", "vda") == refusal


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_a_pull_is_not_finalized(daemon: Daemon, machine: StartMachine, short_dir: Path, end: str) -> None:
    """It is held back at its end, and given up: QEMU would rewrite a header that the destination has read."""
    migration = Migration(daemon, machine, short_dir, ("s1",))
    with migration.destination:
        migration.hang_at("block-pull/settle/before")
        with daemon.spawn("blockpull", "daisy", "vda", "--wait") as client:
            migration.hung(client)
            migration.begin()
            if end == "complete":
                migration.complete()
            migration.go_on()
            _out, said = client.communicate(timeout=qemu.PATIENCE)
        why = UNDER_WAY if end == "cancel" else "its status is postmigrate"
        refusal = f"Requested operation is not valid: domain 'daisy' cannot be pulled now: {why}"
        assert (client.returncode, said.decode().splitlines()[-1]) == (1, f"error: {refusal}")
        assert migration.source.qmp("query-jobs") == []
        assert qemu.chain(short_dir / "a.s1") == [short_dir / "a.s1", short_dir / "a.qcow2"]
        assert migration.journal() == []
        if end == "cancel":
            migration.cancel()
            assert daemon.ok("blockpull", "daisy", "vda", "--wait") == "\nPull complete\n"
        else:
            assert migration.destination.guest_read_ok("virtio0", ord("a"), 0, 64 * KIB)
