"""Pulls that take their time: shown, limited, aborted, interrupted, and alive whatever becomes of the daemon."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, StartDaemon
from tests.lab.images import KIB, MIB
from tests.qemu.pair import GUESTS, Pair

pytestmark = requires.requires_qemu

# A pull at this speed takes longer than any test: it copies 512 KiB and then rests for 8 s.
SLOW = ("--bandwidth", "65536", "--bytes")
BUSY = "Operation not supported: disk 'vda' already in active block job"


@pytest.fixture
def pair(shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str) -> Pair:
    return filled(Pair(shared_daemon, machine, short_dir, name))


def filled(pair: Pair) -> Pair:
    """Two snapshots; 4 MiB in the base and in the overlay between."""
    for number in (1, 2):
        for guest in GUESTS.values():
            pair.vm.guest_write(guest, number, number * 4 * MIB, 4 * MIB)
        pair.create(f"s{number}")
    pair.write(3)
    return pair


def expect_contents(pair: Pair, layer: str = "s2") -> None:
    """After QEMU's end the guest's disks read as the guest wrote them, and so does the state at s2."""
    pair.vm.quit()
    for base in pair.files.values():
        top = base.with_suffix(f".{layer}")
        qemu.check(top)
        assert qemu.read_ok(top, 3, 64 * KIB, 64 * KIB)
        for number in (1, 2):
            assert qemu.read_ok(top, number, number * 4 * MIB, 4 * MIB)
            assert qemu.read_ok(base.with_suffix(".s1"), number, number * 4 * MIB, 4 * MIB)
        assert qemu.read_ok(base.with_suffix(".s1"), 0, 64 * KIB, 64 * KIB)


def start(pair: Pair, disk: str = "vda", *words: str | Path) -> str:
    """A slow pull that is under way; returns its operation's id."""
    assert pair.daemon.ok("blockpull", pair.name, disk, *SLOW, *words) == "Block Pull started\n"
    return str(running(pair, disk)["operation"])


def running(pair: Pair, disk: str = "vda") -> dict[str, Any]:
    """The job of a disk, once it runs: the answer to its request may come before it does."""
    found: list[dict[str, Any]] = []

    def there(_domain: dict[str, Any]) -> bool:
        found[:] = [
            job for job in pair.daemon.get(f"/domains/{pair.name}/jobs")["jobs"] if job["disk"] == disk
        ]
        return bool(found)

    pair.daemon.until(pair.name, there)
    return found[0]


def unlimited(pair: Pair, disk: str = "vda") -> None:
    pair.daemon.ok("blockjob", pair.name, disk, "--bandwidth", "0")


# -- shown and limited


def test_a_job_is_shown_and_limited(pair: Pair) -> None:
    daemon = pair.daemon
    operation = start(pair)
    job = running(pair)
    assert (job["type"], job["bandwidth"], job["ready"]) == ("stream", 65536, False)
    shown = daemon.cli("blockjob", pair.name, "vda")
    assert shown.status == 0
    assert re.fullmatch(r"\rBlock Pull: \[ {1,2}\d{1,2} %\]", shown.stderr)
    assert shown.stdout == "    Bandwidth limit: 65536 bytes/s (64.000 KiB/s)\n\n"
    for disk, words, speed in (("vda", ["--bytes"], 65536), (str(pair.directory / "a.s2"), [], 0)):
        raw = daemon.ok("blockjob", pair.name, disk, "--raw", *words)
        assert re.fullmatch(rf" type=Block Pull\n bandwidth={speed}\n cur=\d+\n end=16777216\n\n", raw)
    assert daemon.ok("blockjob", pair.name, "vdb") == "No current block job for vdb\n"
    assert daemon.disk(pair.name)["job"]["id"] == job["id"]

    assert daemon.ok("blockjob", pair.name, "vda", "--bandwidth", "2") == "\n"
    assert running(pair)["bandwidth"] == 2 * MIB
    assert pair.vm.qmp("query-block-jobs")[0]["speed"] == 2 * MIB
    unlimited(pair)
    assert daemon.ok("wait", operation) == f"Operation {operation} done\n"
    assert daemon.ok("blockjob", pair.name, "vda") == "No current block job for vda\n"
    assert pair.chain() == ["a.s2"]
    assert daemon.get(f"/operations/{operation}")["result"] == {"disk": "vda"}
    expect_contents(pair)


def test_what_a_disk_with_a_job_refuses(pair: Pair) -> None:
    """No second pull and no snapshot of it; the other disk is free for both."""
    operation = start(pair)
    before = pair.picture()
    assert pair.daemon.refused("blockpull", pair.name, "vda") == BUSY
    assert pair.refused("s3") == BUSY
    assert pair.refused("s3", "--diskspec", "vdb,snapshot=no") == BUSY
    assert pair.picture() == before
    pair.create("s3", "--diskspec", "vda,snapshot=no")
    assert pair.chain("vdb") == ["b.s3", "b.s2", "b.s1", "b.qcow2"]
    assert pair.daemon.ok("blockpull", pair.name, "vdb", "--wait") == "\nPull complete\n"
    unlimited(pair)
    pair.daemon.ok("wait", operation)
    pair.create("s4")
    assert (pair.chain("vda"), pair.chain("vdb")) == (["a.s4", "a.s2"], ["b.s4", "b.s3"])


# -- aborted


def expect_nothing_pulled(pair: Pair) -> None:
    """The chain is as before; a second pull works and what the guest wrote is there."""
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]
    assert pair.vm.qmp("query-jobs") == []
    assert list((pair.daemon.root / "state/journal" / pair.name).glob("*")) == []
    assert pair.daemon.ok("blockpull", pair.name, "vda", "--wait") == "\nPull complete\n"
    assert pair.chain() == ["a.s2"]
    expect_contents(pair)


def end_of(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=qemu.PATIENCE)
    return process.returncode, stdout.decode(), stderr.decode()


def aborted(process: "subprocess.Popen[bytes]") -> None:
    assert end_of(process) == (1, "\nPull aborted\n", "")


def test_abort(pair: Pair) -> None:
    """`blockjob --abort` ends the job, and the client that waits for the pull says so."""
    with pair.daemon.spawn("blockpull", pair.name, "vda", *SLOW, "--wait") as process:
        running(pair)
        assert pair.daemon.ok("blockjob", pair.name, "vda", "--abort") == "\n"
        assert pair.daemon.ok("blockjob", pair.name, "vda") == "No current block job for vda\n"
        aborted(process)
    expect_nothing_pulled(pair)


def test_abort_without_waiting(pair: Pair) -> None:
    operation = start(pair)
    assert pair.daemon.ok("blockjob", pair.name, "vda", "--abort", "--async") == "\n"
    assert pair.daemon.refused("wait", operation) == "block job of disk vda was aborted"
    expect_nothing_pulled(pair)


def test_interrupt(pair: Pair) -> None:
    """Ctrl-C ends the pull, not only the client, as in virsh."""
    with pair.daemon.spawn("blockpull", pair.name, "vda", *SLOW, "--wait") as process:
        running(pair)
        process.send_signal(signal.SIGINT)
        aborted(process)
    expect_nothing_pulled(pair)


def test_kill_of_the_client(pair: Pair) -> None:
    """A client that is killed leaves its pull running."""
    with pair.daemon.spawn("blockpull", pair.name, "vda", *SLOW, "--wait") as process:
        operation = running(pair)["operation"]
        process.kill()
    unlimited(pair)
    pair.daemon.ok("wait", operation)
    assert pair.chain() == ["a.s2"]


@pytest.mark.parametrize("words", [(), ("--wait", "--async")], ids=["wait", "async"])
def test_timeout(pair: Pair, words: tuple[str, ...]) -> None:
    done = pair.daemon.cli("blockpull", pair.name, "vda", *SLOW, "--timeout", "1", *words)
    assert done == (1, "\nPull aborted\n", "")
    pair.daemon.until(pair.name, lambda domain: not domain["operations"])
    expect_nothing_pulled(pair)


def test_a_job_of_somebody_else(pair: Pair) -> None:
    """It is shown, limited and aborted like ours, and it is not ours to finish."""
    daemon = pair.daemon
    node = pair.vm.backend("virtio0")["inserted"]["node-name"]
    pair.vm.qmp("block-stream", job_id="theirs", device=node, speed=65536)
    assert running(pair)["id"] == "theirs"
    assert running(pair)["operation"] is None
    assert daemon.cli("blockjob", pair.name, "vda").stderr.startswith("\rBlock Pull: [")
    assert pair.daemon.refused("blockpull", pair.name, "vda") == BUSY
    assert pair.refused("s3") == BUSY
    assert daemon.ok("blockjob", pair.name, "vda", "--bandwidth", "1") == "\n"
    assert pair.vm.qmp("query-block-jobs")[0]["speed"] == MIB
    assert daemon.ok("blockjob", pair.name, "vda", "--abort") == "\n"
    pair.vm.event("BLOCK_JOB_CANCELLED", device="theirs")
    expect_nothing_pulled(pair)


def test_a_commit_of_somebody_else(pair: Pair) -> None:
    """A job that is no pull has its own name; aborting it at READY leaves the active layer where it is."""
    node = pair.vm.backend("virtio0")["inserted"]["node-name"]
    pair.vm.qmp("block-commit", job_id="theirs", device=node)
    pair.vm.event("BLOCK_JOB_READY")
    shown = pair.daemon.cli("blockjob", pair.name, "vda")
    assert (shown.status, shown.stderr) == (0, "\rActive Block Commit: [100 %]")
    assert pair.daemon.ok("blockjob", pair.name, "vda", "--abort") == "\n"
    pair.vm.event("BLOCK_JOB_CANCELLED", device="theirs")
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]


# -- side by side


def test_two_disks_at_once(pair: Pair) -> None:
    operations = [start(pair, disk) for disk in pair.files]
    jobs = pair.daemon.get(f"/domains/{pair.name}/jobs")["jobs"]
    assert [job["disk"] for job in jobs] == ["vda", "vdb"]
    assert pair.daemon.get(f"/domains/{pair.name}")["operations"] == operations
    for disk, operation in zip(pair.files, operations, strict=True):
        unlimited(pair, disk)
        pair.daemon.ok("wait", operation)
    assert (pair.chain("vda"), pair.chain("vdb")) == (["a.s2"], ["b.s2"])
    expect_contents(pair)


def test_two_domains_at_once(pair: Pair, machine: StartMachine, tmp_path: Path) -> None:
    """Each has a job on its `vda`, and neither knows of the other's."""
    directory = pair.directory / "other"
    directory.mkdir()
    other = filled(Pair(pair.daemon, machine, directory, f"{pair.name}-other"))
    first, second = start(pair), start(other)
    other.daemon.ok("blockjob", other.name, "vda", "--abort")
    assert running(pair)["operation"] == first
    unlimited(pair)
    pair.daemon.ok("wait", first)
    assert pair.daemon.refused("wait", second) == "block job of disk vda was aborted"
    assert (pair.chain(), other.chain()) == (["a.s2"], ["a.s2", "a.s1", "a.qcow2"])


def test_a_pull_in_the_middle(pair: Pair) -> None:
    """An inner layer takes in what is below it; the layers above stay."""
    pair.create("s3")
    said = pair.daemon.ok("blockpull", pair.name, pair.directory / "a.s2", "--base", "vda[3]", "--wait")
    assert said == "\nPull complete\n"
    assert pair.chain() == ["a.s3", "a.s2", "a.qcow2"]
    assert pair.daemon.ok("blockpull", pair.name, "vda[1]", "--wait") == "\nPull complete\n"
    assert pair.chain() == ["a.s3", "a.s2"]
    assert pair.daemon.ok("blockpull", pair.name, "vda", "--base", "vda[1]", "--wait") == "\nPull complete\n"
    assert pair.chain() == ["a.s3", "a.s2"]  # there was nothing between
    expect_contents(pair, "s3")


# -- the daemon goes and comes


def kill(daemon: Daemon) -> None:
    daemon.kill9()


def stop(daemon: Daemon) -> None:
    assert daemon.stop() == 0


ENDS = pytest.mark.parametrize("end", [kill, stop])
Way = Callable[[Daemon], None]


@ENDS
def test_a_pull_survives_the_daemon(daemon: Daemon, machine: StartMachine, short_dir: Path, end: Way) -> None:
    """QEMU goes on with it, the next daemon follows it, and whoever waited hears its end."""
    pair = filled(Pair(daemon, machine, short_dir, "daisy"))
    with daemon.spawn("blockpull", "daisy", "vda", *SLOW, "--wait", "--verbose") as puller:
        operation = running(pair)["operation"]
        with daemon.spawn("wait", operation, "--verbose") as waiter:
            assert waiter.stderr is not None
            assert waiter.stderr.read(20) == b"\rBlock Pull: [  0 %]"  # it has begun to wait
            end(daemon)
            assert pair.vm.qmp("query-jobs")[0]["status"] == "running"
            daemon.start()
            daemon.ready("daisy")
            assert running(pair)["operation"] == operation
            assert daemon.refused("blockpull", "daisy", "vda") == BUSY
            pair.create("s3", "--diskspec", "vda,snapshot=no")
            unlimited(pair)
            waited, pulled = end_of(waiter), end_of(puller)
    assert waited[:2] == (0, f"\nOperation {operation} done\n")
    assert pulled[:2] == (0, "\nPull complete\n")
    assert waited[2].endswith("\rBlock Pull: [100 %]")
    assert pulled[2].endswith("\rBlock Pull: [100 %]")
    assert pair.chain() == ["a.s2"]
    pair.vm.kill9()
    assert qemu.read_ok(short_dir / "a.s2", 1, 4 * MIB, 4 * MIB)


@ENDS
def test_a_pull_ends_without_the_daemon(
    daemon: Daemon, machine: StartMachine, short_dir: Path, end: Way
) -> None:
    """Its result waits in QEMU, and is made durable and real when a daemon is there again."""
    pair = filled(Pair(daemon, machine, short_dir, "daisy"))
    operation = start(pair)
    job = running(pair)["id"]
    end(daemon)
    pair.vm.qmp("block-job-set-speed", device=job, speed=0)
    pair.vm.event("BLOCK_JOB_PENDING", id=job)
    assert qemu.chain(short_dir / "a.s2") == [short_dir / name for name in ("a.s2", "a.s1", "a.qcow2")]
    daemon.start()
    assert daemon.ok("wait", operation) == f"Operation {operation} done\n"
    assert daemon.get(f"/operations/{operation}")["state"] == "done"
    assert pair.chain() == ["a.s2"]
    expect_contents(pair)


def test_an_aborted_pull_without_the_daemon(daemon: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """Somebody cancelled it while we were away: it is undone, and whoever waits is told."""
    pair = filled(Pair(daemon, machine, short_dir, "daisy"))
    operation = start(pair)
    daemon.kill9()
    pair.vm.qmp("job-cancel", id=f"qs-{operation}")
    pair.vm.event("BLOCK_JOB_CANCELLED")
    daemon.start()
    assert (
        daemon.refused("wait", operation)
        == "block-pull was interrupted and is undone: the job has ended, and the chain is as it was"
    )
    expect_nothing_pulled(pair)


def test_qemu_ends_in_the_middle(pair: Pair) -> None:
    """The client that waits is told, and the image still names all that it needs."""
    with pair.daemon.spawn("blockpull", pair.name, "vda", *SLOW, "--wait") as process:
        running(pair)
        pair.vm.kill9()
        ended = end_of(process)
    reason = "QEMU is gone: the header names its old backing file again"
    assert ended == (1, "\nPull failed\n", f"error: block-pull was interrupted and is undone: {reason}\n")
    top = pair.directory / "a.s2"
    assert qemu.chain(top) == [top, pair.directory / "a.s1", pair.directory / "a.qcow2"]
    assert qemu.read_ok(top, 1, 4 * MIB, 4 * MIB)


def test_a_proof_that_fails_takes_the_pull_back(
    daemons: StartDaemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    """Before its commit point a pull that cannot go on is cancelled: no job is left, and the chain is as it was."""
    broken = short_dir / "qemu-img"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = map ] && { echo "qemu-img: no map today" >&2; exit 1; }\nexec qemu-img "$@"\n'
    )
    broken.chmod(0o755)
    daemon = daemons(env={"QMPSNAP_QEMU_IMG": str(broken)})
    pair = filled(Pair(daemon, machine, short_dir, name))

    assert "no map today" in daemon.refused("blockpull", name, "vda", "--wait")
    assert pair.chain() == ["a.s2", "a.s1", "a.qcow2"]
    assert pair.vm.qmp("query-jobs") == []
    assert daemon.get(f"/domains/{name}")["operations"] == []
    expect_contents(pair)
