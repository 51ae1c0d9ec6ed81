"""An operation was cut, QEMU was lost, and somebody started the machine again, by hand, on a layer of his choice.

Every cut by a crash of ours or of QEMU is in tests/crash; here others act on the machine while the journal is open and nobody
watches. What can be settled is, in one line of the log; what cannot is left as it is, until it can.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB, MIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu

MADE = "snapshot-create/transaction/before"
SWITCHED = "snapshot-create/transaction/after"
RECORDED = "snapshot-create/record/renamed-1"
PENDING = "block-pull/settle/after"
FINALIZED = "block-pull/finalize/after"
CREATE = ("snapshot-create-as", "daisy", "s2", "--disk-only")
PULL = ("blockpull", "daisy", "vda")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


class Cut:
    """A pair with the snapshot s1, a daemon that died at a point of an operation, and a QEMU that was killed after it."""

    def __init__(self, daemon: Daemon, machine: StartMachine, directory: Path) -> None:
        self.daemon = daemon
        self.pair = Pair(daemon, machine, directory, "daisy")
        self.directory = directory
        self.command = self.pair.vm.command
        self.pair.create("s1")
        self.pair.write(1)

    def at(self, point: str, *words: str, writes: int = 0) -> None:
        self.daemon.kill9()
        self.daemon.start(faults={"QMPSNAP_CRASH": point})
        self.daemon.ready("daisy")
        with self.daemon.spawn(*words):
            self.daemon.wait()
        if writes:
            self.pair.write(writes)
        self.pair.vm.kill9()
        (self.entry,) = (self.daemon.root / "state/journal/daisy").iterdir()

    def restarted(self, suffix: str) -> qemu.Qemu:
        """The machine started by hand on the layers of this suffix; the daemon comes back after it."""
        words = [w.replace("a.qcow2", f"a{suffix}").replace("b.qcow2", f"b{suffix}") for w in self.command]
        again = qemu.Qemu(self.pair.vm.directory, words)
        self.pair.vm = again  # type: ignore[assignment]  # it is written to and looked at, not started
        if not self.daemon.alive:
            self.daemon.start()
        self.daemon.ready("daisy")
        return again

    def overlay(self, suffix: str, below: str) -> None:
        """Layers that somebody else makes over those of another suffix."""
        for letter in "ab":
            qemu.image(self.file(letter, suffix), 16 * MIB, backing=self.file(letter, below))

    def file(self, letter: str, suffix: str) -> Path:
        return self.directory / f"{letter}{suffix}"

    def end(self) -> dict[str, Any]:
        """The operation as whoever waits for it is told."""
        found: dict[str, Any] = self.daemon.get(f"/operations/{self.entry.name}")
        return found

    def settled(self, how: str) -> None:
        """It has ended so, the journal is empty, and the log has it in one line for the decision and one for the end."""
        self.daemon.until("daisy", lambda domain: not domain["operations"])
        assert self.end()["state"] == how
        assert list(self.entry.parent.iterdir()) == []
        lines = [line for line in self.daemon.log.splitlines() if self.entry.name in line]
        assert len([line for line in lines if "event=Recovery " in line]) == 1
        assert len([line for line in lines if f'event="Operation {how}"' in line]) == 1

    def shut_off(self) -> list[str]:
        """The layers on record once the machine is off."""
        self.pair.vm.quit()
        self.daemon.until("daisy", lambda domain: domain["state"] == "shut off")
        return [Path(disk["source"]).name for disk in self.daemon.get("/domains/daisy/disks")["disks"]]


@pytest.fixture
def cut(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Iterator[Cut]:
    found = Cut(daemon, machine, short_dir)
    yield found
    found.pair.vm.close()


@pytest.mark.parametrize("point", [MADE, SWITCHED])
def test_on_the_layer_below_the_overlays(cut: Cut, point: str) -> None:
    """The overlays hold nothing: they are removed, and the same snapshot can be made again."""
    cut.at(point, *CREATE)
    cut.restarted(".s1")
    cut.settled("failed")
    assert cut.end()["error"]["code"] == "undone"
    assert not cut.file("a", ".s2").exists()
    cut.pair.create("s2")
    assert cut.pair.names() == ["s1", "s2"]


@pytest.mark.parametrize("elsewhere", [".s1", ".other"])
def test_written_overlays_and_another_layer(cut: Cut, elsewhere: str) -> None:
    """Neither way is safe: nothing is touched and nothing begun, and it says so. Started on the overlays, it is a snapshot."""
    cut.at(SWITCHED, *CREATE, writes=2)
    if elsewhere == ".other":
        cut.overlay(".other", ".s1")
    cut.restarted(elsewhere)
    end = cut.end()
    assert (end["state"], end["error"]["code"]) == ("recovering", "undecided")
    said = cut.daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only")
    assert said == (
        f"operation {cut.entry.name} (snapshot-create) on domain 'daisy' is not finished yet: snapshot-create on domain 'daisy'"
        f" can neither be finished nor undone by itself: QEMU uses 0 of 2 overlays, and {cut.directory}/a.s2,"
        f" {cut.directory}/b.s2 holds data"
    )
    assert cut.entry.exists()
    cut.pair.vm.close()
    cut.restarted(".s2")
    cut.daemon.until("daisy", lambda domain: not domain["operations"])
    assert cut.end()["state"] == "done"
    assert cut.pair.names() == ["s1", "s2"]
    assert cut.pair.vm.guest_read_ok("virtio0", 2, 64 * KIB, 64 * KIB)


def test_a_layer_of_somebody_elses_on_top(cut: Cut) -> None:
    """It stands on the overlays, so the snapshot is one; and it is what the next boot needs."""
    cut.at(SWITCHED, *CREATE, writes=2)
    cut.overlay(".other", ".s2")
    cut.restarted(".other")
    cut.settled("done")
    assert cut.pair.names() == ["s1", "s2"]
    cut.pair.write(3)
    assert cut.shut_off() == ["a.other", "b.other"]


def test_a_layer_that_nobody_knows(cut: Cut) -> None:
    """The overlays that were made go; what runs is recorded."""
    cut.overlay(".other", ".s1")
    cut.at(MADE, *CREATE)
    cut.restarted(".other")
    cut.settled("failed")
    assert cut.shut_off() == ["a.other", "b.other"]


def test_recorded_and_started_below(cut: Cut) -> None:
    """QEMU was seen on the overlays before: the snapshot is finished, the overlays stay what the next boot needs, and
    nothing is built on what runs now."""
    cut.at(RECORDED, *CREATE)
    cut.restarted(".s1")
    cut.settled("done")
    assert cut.pair.names() == ["s1", "s2"]
    assert "but its newest layer is" in cut.pair.refused("s3")
    assert cut.shut_off() == ["a.s2", "b.s2"]


@pytest.mark.parametrize(
    ("point", "suffix", "how"),
    [
        (PENDING, ".s1", "failed"),
        (FINALIZED, ".s1", "done"),
        (PENDING, ".qcow2", "failed"),
        (FINALIZED, ".other", "done"),
    ],
)
def test_a_pull(cut: Cut, point: str, suffix: str, how: str) -> None:
    """Judged by the chain that is there now; whatever it was, the layer reads as before."""
    before = qemu.content_digest(cut.file("a", ".s1"), "qcow2")
    cut.at(point, *PULL)
    if suffix == ".other":
        cut.overlay(".other", ".s1")
    cut.restarted(suffix)
    cut.settled(how)
    cut.pair.vm.kill9()
    assert qemu.content_digest(cut.file("a", ".s1"), "qcow2") == before
    assert len(qemu.chain(cut.file("a", ".s1"))) == (1 if how == "done" else 2)


def test_a_journal_of_a_newer_version(cut: Cut) -> None:
    """One clear line, and nothing is changed, of this domain; others are served. Read again by whoever knows it, it is settled."""
    cut.at(SWITCHED, *CREATE, writes=2)
    whole = cut.entry.read_bytes()
    cut.entry.write_bytes(whole.replace(b'"version": 1', b'"version": 2', 1))
    cut.restarted(".s2")
    said = cut.daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only")
    assert (
        f"journal entry {cut.entry} cannot be read: it has version 2, this qmpsnap knows 1; nothing is changed"
        in said
    )
    assert cut.daemon.ok("list", "--all", "--name") == "daisy\n\n"
    cut.entry.write_bytes(whole.replace(b'"version": 1, ', b"", 1))  # as the first daemons wrote it
    cut.daemon.until("daisy", lambda domain: domain["snapshots"] == 2)  # it is looked for every few seconds
    cut.settled("done")
    assert cut.pair.names() == ["s1", "s2"]


def test_a_layer_further_down_is_gone(cut: Cut) -> None:
    """What happened is told by the overlays alone; `check` says the rest."""
    cut.at(SWITCHED, *CREATE, writes=2)
    cut.file("a", ".qcow2").unlink()
    cut.daemon.start()
    cut.settled("done")
    codes = {one["code"] for one in cut.daemon.get("/domains/daisy/check")["findings"]}
    assert codes == {"missing"}
