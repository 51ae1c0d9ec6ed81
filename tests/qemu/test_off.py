"""A machine that is off, and one that was started again on the wrong layer."""

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

OFF = "Requested operation is not valid: domain is not running"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


@pytest.fixture
def pair(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Pair:
    """Two snapshots of both disks, the guest's writes after each, and a machine that is off."""
    found = Pair(daemon, machine, short_dir, "daisy")
    for number in (1, 2):
        found.create(f"s{number}")
        found.write(number)
    found.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    return found


def started(pair: Pair, suffix: str) -> qemu.Qemu:
    """The machine started again by hand, with the layers of this suffix."""
    words = [
        word.replace("a.qcow2", f"a{suffix}").replace("b.qcow2", f"b{suffix}") for word in pair.vm.command
    ]
    return qemu.Qemu(pair.vm.directory, words)


def sources(daemon: Daemon) -> list[str]:
    return [Path(disk["source"]).name for disk in daemon.get("/domains/daisy/disks")["disks"]]


@pytest.mark.parametrize("restart", [False, True], ids=["", "daemon-restarted"])
def test_what_works_when_it_is_off(pair: Pair, daemon: Daemon, restart: bool) -> None:
    if restart:
        daemon.restart()
        daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert daemon.ok("list", "--all").splitlines()[2] == " -    daisy   shut off"
    assert [line.split() for line in daemon.ok("domblklist", "daisy").splitlines()[2:4]] == [
        ["vda", str(pair.directory / "a.s2")],
        ["vdb", str(pair.directory / "b.s2")],
    ]
    assert daemon.ok("snapshot-list", "daisy", "--tree") == "s1\n  |\n  +- s2\n    \n\n"
    assert daemon.ok("domstate", "daisy") == "shut off\n\n"

    for words in (
        ("snapshot-create-as", "daisy", "s3", "--disk-only"),
        ("blockpull", "daisy", "vda"),
        ("blockjob", "daisy", "vda", "--info"),
        ("blockjob", "daisy", "vda", "--abort"),
    ):
        assert daemon.refused(*words) == OFF
    assert sorted(path.name for path in pair.directory.glob("*.s*")) == ["a.s1", "a.s2", "b.s1", "b.s2"]

    assert daemon.ok("snapshot-current", "daisy", "--name") == "s2\n"
    assert daemon.ok("snapshot-current", "daisy", "s1") == "Snapshot s1 set as current\n"
    assert daemon.ok("snapshot-info", "daisy", "--current").splitlines()[0] == "Name:           s1"
    assert daemon.ok("snapshot-delete", "daisy", "s1", "--metadata") == "Domain snapshot s1 deleted\n\n"
    assert daemon.ok("snapshot-list", "daisy", "--tree") == "s2\n\n\n"
    assert daemon.get("/domains/daisy/snapshots")["current"] is None
    assert daemon.ok("snapshot-delete", "daisy", "s2", "--metadata")
    assert pair.names() == []
    for base in pair.files.values():  # and no image has changed
        assert qemu.chain(base.with_suffix(".s2")) == [base.with_suffix(s) for s in (".s2", ".s1", ".qcow2")]
        assert qemu.read_ok(base.with_suffix(".s2"), 2, 64 * KIB, 64 * KIB)


def drifted(pair: Pair, active: str) -> str:
    return (
        f"disk 'vda' runs on '{pair.directory}/a{active}', but its newest layer is '{pair.directory}/a.s2': shut the"
        " machine down and start it with qemu-launch; or, to give that layer up, delete the snapshots' metadata,"
        " detach 'daisy' and attach it"
    )


@pytest.mark.parametrize("suffix", [".qcow2", ".s1"])
def test_started_on_the_wrong_layer(pair: Pair, daemon: Daemon, suffix: str) -> None:
    """Nothing is built on it, and what the next boot shall use stays on record, over restarts of both."""
    with started(pair, suffix) as wrong:
        daemon.ready("daisy")
        assert sources(daemon) == [f"a{suffix}", f"b{suffix}"]  # what runs is shown
        assert daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only") == drifted(pair, suffix)
        assert daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only", "--dry-run") == drifted(
            pair, suffix
        )
        if suffix == ".s1":
            assert daemon.refused("blockpull", "daisy", "vda") == drifted(pair, suffix)
        daemon.restart()
        daemon.ready("daisy")
        assert daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only") == drifted(pair, suffix)
        wrong.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert sources(daemon) == ["a.s2", "b.s2"]
    assert pair.names() == ["s1", "s2"]

    with started(pair, ".s2") as right:
        daemon.ready("daisy")
        assert right.guest_read_ok("virtio0", 2, 64 * KIB, 64 * KIB)
        daemon.ok("snapshot-create-as", "daisy", "s3", "--disk-only")
        assert sources(daemon) == ["a.s3", "b.s3"]


def test_giving_the_newest_layer_up(pair: Pair, daemon: Daemon) -> None:
    """The way out that the refusal names works."""
    with started(pair, ".s1") as vm:
        daemon.ready("daisy")
        for name in ("s2", "s1"):
            daemon.ok("snapshot-delete", "daisy", name, "--metadata")
        daemon.ok("detach", "daisy")
        daemon.ok("attach", "daisy", vm.monitor_path)
        daemon.ok("snapshot-create-as", "daisy", "s3", "--disk-only")
        assert sources(daemon) == ["a.s3", "b.s3"]
        assert qemu.chain(pair.directory / "a.s3")[1] == pair.directory / "a.s1"


def test_a_chain_that_somebody_else_made_longer(
    daemon: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """A layer that came on top by another hand is the active one now: the next snapshot stands on it."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    pair.create("s1")
    node = pair.vm.backend("virtio0")["inserted"]["node-name"]
    file = str(short_dir / "theirs.qcow2")
    pair.vm.qmp("blockdev-snapshot-sync", node_name=node, snapshot_file=file, snapshot_node_name="theirs")
    pair.write(1)
    assert pair.chain() == ["theirs.qcow2", "a.s1", "a.qcow2"]
    pair.create("s2")
    assert pair.chain() == ["theirs.s2", "theirs.qcow2", "a.s1", "a.qcow2"]
    found = daemon.get("/domains/daisy/snapshots/s2")["disks"]
    assert [disk["image"] for disk in found] == [file, str(short_dir / "b.s1")]
    pair.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert sources(daemon) == ["theirs.s2", "b.s2"]


def test_started_with_a_disk_less(pair: Pair, daemon: Daemon, machine: StartMachine) -> None:
    """A disk that is left out of one start, a rescue say, keeps its newest layer on record, and its name."""
    second = pair.directory / "b.s2"
    lone = machine(["-drive", f"file={second},format=qcow2,if=virtio"], directory=pair.vm.directory)
    daemon.ready("daisy")
    assert [(disk["target"], disk["source"]) for disk in daemon.get("/domains/daisy/disks")["disks"]] == [
        ("vdb", str(second))  # told by its image: on the bus it is the first now
    ]
    assert daemon.ok("snapshot-create-as", "daisy", "s3", "--disk-only", "--no-metadata")
    lone.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")

    assert sources(daemon) == ["a.s2", "b.s3"]


def test_started_on_a_layer_that_was_committed(pair: Pair, daemon: Daemon) -> None:
    """A former layer on top of the recorded one is no new one: since the commit the other has gone on without it."""
    with started(pair, ".s2") as vm:
        daemon.ready("daisy")
        vm.qmp("block-commit", job_id="theirs", device=vm.backend("virtio0")["inserted"]["node-name"])
        vm.event("BLOCK_JOB_READY")
        vm.qmp("job-complete", id="theirs")
        vm.event("BLOCK_JOB_COMPLETED")
        record = daemon.root / "state/domain/daisy.xml"
        daemon.until(
            "daisy", lambda _domain: f"<source file='{pair.directory}/a.qcow2'/>" in record.read_text()
        )
        vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    with started(pair, ".s2"):
        daemon.ready("daisy")
        assert "its newest layer is" in daemon.refused("snapshot-create-as", "daisy", "s3", "--disk-only")
        assert f"<source file='{pair.directory}/a.qcow2'/>" in record.read_text()
