"""`qmpsnap check` finds what nobody else does, says what to do, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB
from tests.qemu.pair import Pair

pytestmark = requires.requires_qemu

CLEAN = "daisy: nothing is wrong (2 disks, 2 snapshots, 6 images)\n\n"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


@pytest.fixture
def pair(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Pair:
    """Two snapshots of both disks, the guest's writes after each."""
    found = Pair(daemon, machine, short_dir, "daisy")
    for number in (1, 2):
        found.create(f"s{number}")
        found.write(number)
    return found


def problems(daemon: Daemon) -> list[tuple[str, str]]:
    """Code and place of all that is wrong, as the API tells it."""
    answer = daemon.get("/domains/daisy/check?full=true")
    return [(one["code"], one["where"]) for one in answer["findings"] if one["severity"] != "notice"]


def off(pair: Pair, daemon: Daemon) -> None:
    pair.vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")


def active_node(pair: Pair) -> str:
    return str(pair.vm.backend("virtio0")["inserted"]["node-name"])


def test_nothing_is_wrong(pair: Pair, daemon: Daemon) -> None:
    """Running, off, and after a restart of the daemon; writes of the guest to its active layers are right."""
    assert daemon.ok("check", "daisy") == CLEAN
    pair.write(3)
    assert problems(daemon) == []
    off(pair, daemon)
    daemon.restart()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert daemon.ok("check") == CLEAN


def test_a_pull_leaves_nothing_wrong(pair: Pair, daemon: Daemon) -> None:
    """Also one into a layer that holds a snapshot's state: its bytes are others afterwards, what it shows is not."""
    middle = pair.directory / "a.s1"
    before = middle.stat().st_mtime_ns
    daemon.ok("blockpull", "daisy", middle, "--wait")
    assert middle.stat().st_mtime_ns != before
    assert problems(daemon) == []
    daemon.ok("blockpull", "daisy", "vda", "--wait")
    daemon.restart()
    daemon.ready("daisy")
    assert problems(daemon) == []


def test_while_a_pull_runs(pair: Pair, daemon: Daemon) -> None:
    """What it writes to is no damage; and when it is aborted, neither."""
    middle = pair.directory / "a.s1"
    daemon.ok("blockpull", "daisy", middle, "--bandwidth", "65536", "--bytes")
    findings = daemon.get("/domains/daisy/check")["findings"]
    assert [(one["severity"], one["code"]) for one in findings] == [("notice", "open")]
    daemon.ok("blockjob", "daisy", "vda", "--abort")
    assert problems(daemon) == []


def test_an_image_below_that_somebody_has_written_to(pair: Pair, daemon: Daemon) -> None:
    """Silent corruption: `qemu-img check` finds nothing, the fingerprint does. A person may take it for right."""
    off(pair, daemon)
    base = pair.files["vda"]
    qemu.write_pattern(base, "qcow2", 0xEE, 128 * KIB, 64 * KIB)
    qemu.check(pair.directory / "a.s2")

    assert problems(daemon) == [
        ("changed", "disk vda"),
        ("changed", "snapshot s1, vda"),
        ("changed", "snapshot s2, vda"),
    ]
    result = daemon.cli("check", "daisy", "--output", "json")
    assert result.status == 3
    first = json.loads(result.stdout)["domains"][0]["findings"][0]
    assert first["problem"] == f"it reads through '{base}', which somebody has written to since"

    assert "take what is there" not in daemon.ok("check", "daisy", "--accept", "--dry-run")
    assert problems(daemon)
    assert daemon.ok("check", "daisy", "--accept") == f"accepted: {base}\n\n"
    daemon.restart()
    assert daemon.ok("check", "daisy") == CLEAN
    assert daemon.ok("check", "daisy", "--accept") == "nothing to accept\n\n"


def test_a_golden_image_below_everything(daemon: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """No snapshot holds its state in it; its fingerprint is taken when it is first seen."""
    golden = qemu.image(short_dir / "golden.qcow2", 1024 * KIB)
    own = qemu.image(short_dir / "own.qcow2", 1024 * KIB, backing=golden)
    vm = machine(["-drive", f"file={own},format=qcow2,if=virtio"], directory=short_dir / "m")
    daemon.ok("attach", "daisy", vm.monitor_path)
    daemon.ok("snapshot-create-as", "daisy", "s1", "--disk-only")
    assert problems(daemon) == []
    vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    qemu.write_pattern(golden, "qcow2", 0xEE, 0, 64 * KIB)

    assert problems(daemon) == [("changed", "disk vda"), ("changed", "snapshot s1, vda")]


def test_started_on_another_layer(pair: Pair, daemon: Daemon) -> None:
    """What runs can be taken for right; from then on it is what boots."""
    off(pair, daemon)
    words = [word.replace("b.qcow2", "b.s2") for word in pair.vm.command]
    with qemu.Qemu(pair.vm.directory, words) as vm:
        daemon.ready("daisy")
        assert ("drifted", "disk vda") in problems(daemon)
        result = daemon.cli("check", "daisy", "--quick")
        assert (
            f"disk vda: runs on '{pair.files['vda']}', but its newest layer is '{pair.directory}/a.s2'"
            in result.stdout
        )
        assert daemon.ok("check", "daisy", "--accept").startswith("accepted: vda\n")
        daemon.ok("snapshot-create-as", "daisy", "s3", "--disk-only")
        vm.quit()
    daemon.until("daisy", lambda domain: domain["state"] == "shut off")
    assert Path(daemon.disk("daisy")["source"]).name == "a.s3"
    assert ("drifted", "disk vda") not in problems(daemon)


@pytest.mark.parametrize("gone", ["a.qcow2", "a.s1", "a.s2"])
def test_a_layer_is_gone(pair: Pair, daemon: Daemon, gone: str) -> None:
    off(pair, daemon)
    (pair.directory / gone).unlink()
    found = problems(daemon)

    assert ("missing", "disk vda") in found
    assert all("vda" in where for code, where in found if code in {"missing", "overlay-missing"})
    assert not [where for _code, where in found if "vdb" in where]


def test_headers_in_a_circle(pair: Pair, daemon: Daemon) -> None:
    off(pair, daemon)
    pair.files["vda"].unlink()
    qemu.image(pair.files["vda"], 1024 * KIB, backing=pair.directory / "a.s2")
    assert ("circle", "disk vda") in problems(daemon)


def test_a_header_that_names_another_image_than_qemu_reads(pair: Pair, daemon: Daemon) -> None:
    """Somebody has changed it behind QEMU's back: the next boot would read something else."""
    overlay = pair.directory / "a.s2"
    content = overlay.read_bytes().replace(b"/a.s1", b"/b.s1", 1)
    with overlay.open("r+b") as file:
        file.write(content[:4096])
    assert ("header", "disk vda") in problems(daemon)


def test_a_broken_image(pair: Pair, daemon: Daemon) -> None:
    """`qemu-img check` is asked of what nobody has open."""
    off(pair, daemon)
    with (pair.directory / "a.s2").open("r+b") as file:
        file.seek(3 * 65536)
        file.write(b"\xff" * 8)  # the table of tables
    assert [where for code, where in problems(daemon) if code == "corrupt"] == [str(pair.directory / "a.s2")]


def test_a_stranger_reads_through_what_the_guest_writes(pair: Pair, daemon: Daemon) -> None:
    """A linked clone of the active layer changes with every write."""
    clone = qemu.image(pair.directory / "clone.qcow2", 16 << 20, backing=pair.directory / "a.s2")
    (one,) = daemon.get("/domains/daisy/check")["findings"]
    assert (one["code"], one["where"]) == ("shared", "disk vda")
    assert f"the image '{clone}' has it as its backing file" in one["problem"]


def test_a_commit_by_hand_is_followed(pair: Pair, daemon: Daemon) -> None:
    """Before our eyes the machine left its layer for the one below: that one boots, and whose state is lost is said."""
    pair.vm.qmp("block-commit", job_id="theirs", device=active_node(pair), base=f"{pair.directory}/a.s1")
    pair.vm.event("BLOCK_JOB_READY")
    pair.vm.qmp("job-complete", id="theirs")
    pair.vm.event("BLOCK_JOB_COMPLETED")

    def recorded(_domain: dict[str, Any]) -> bool:
        record = (daemon.root / "state/domain/daisy.xml").read_text()
        return f"<source file='{pair.directory}/a.s1'/>" in record

    daemon.until("daisy", recorded)
    assert problems(daemon)[:1] == [("shared", "disk vda")]
    assert ("drifted", "disk vda") not in problems(daemon)
    pair.create("s3")
    off(pair, daemon)
    assert pair.chain() == ["a.s3", "a.s1", "a.qcow2"]


def test_a_stream_by_hand_is_followed(pair: Pair, daemon: Daemon) -> None:
    """The layers that left the chain hold their snapshots' states as before."""
    pair.vm.qmp("block-stream", job_id="theirs", device=active_node(pair))
    pair.vm.event("BLOCK_JOB_COMPLETED")
    assert problems(daemon) == []
    assert pair.chain() == ["a.s2"]


def test_a_forgotten_snapshot_leaves_its_fingerprint(pair: Pair, daemon: Daemon) -> None:
    """Others go on reading through the image that held its state."""
    daemon.ok("snapshot-delete", "daisy", "s1", "--metadata")
    off(pair, daemon)
    qemu.write_pattern(pair.files["vda"], "qcow2", 0xEE, 128 * KIB, 64 * KIB)
    assert problems(daemon) == [("changed", "disk vda"), ("changed", "snapshot s2, vda")]


def test_an_active_image_that_somebody_has_removed(pair: Pair, daemon: Daemon) -> None:
    """QEMU goes on with it; what boots is not forgotten, and missing."""
    (pair.directory / "a.s2").unlink()
    assert ("missing", "disk vda") in problems(daemon)
    assert "is no file of this host" in pair.refused("s3")
    off(pair, daemon)
    daemon.restart()
    assert f"boots '{pair.directory}/a.s2', which is missing" in daemon.cli("check", "daisy").stdout


def test_files_of_ours_that_cannot_be_read(pair: Pair, daemon: Daemon) -> None:
    file = daemon.root / "state/snapshot/daisy/s1.xml"
    file.write_text("<domainsnapshot>")
    daemon.restart()
    daemon.ready("daisy")
    found = daemon.get("/domains/daisy/check")["findings"]
    assert next((one["severity"], one["code"]) for one in found) == ("error", "damaged")
    assert str(file) in found[0]["problem"]


def test_a_domain_that_nobody_knows(daemon: Daemon) -> None:
    assert daemon.refused("check", "rose") == "failed to get domain 'rose'"
    assert daemon.ok("check") == "\n"
