"""No operation hurts another: whoever needs an image is named, and nothing is done."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB, tool
from tests.qemu.pair import SIZE, Pair

pytestmark = requires.requires_qemu


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as found:
        yield found


@pytest.fixture
def pair(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Pair:
    return Pair(daemon, machine, short_dir, "daisy")


def test_an_overlay_that_a_clone_reads_is_not_written_to(pair: Pair) -> None:
    """--reuse-external with an image that somebody has made a linked clone of: the guest's writes would spoil the clone."""
    mine = qemu.image(pair.directory / "mine", SIZE, backing=pair.files["vda"])
    clone = qemu.image(pair.directory / "clone", SIZE, backing=mine)
    before = pair.picture()
    text = pair.refused(
        "s1", "--reuse-external", "--diskspec", f"vda,file={mine}", "--diskspec", "vdb,snapshot=no"
    )
    assert text == (
        f"'{mine}' cannot be written to: the image '{clone}' has it as its backing file; use a new overlay"
    )
    assert pair.picture() == before

    clone.unlink()
    pair.create("s1", "--reuse-external", "--diskspec", f"vda,file={mine}", "--diskspec", "vdb,snapshot=no")


def test_an_overlay_does_not_take_the_name_of_what_is_lost(pair: Pair, daemon: Daemon) -> None:
    """An empty image of that name would pass for the state of the snapshot."""
    pair.create("s1")
    pair.create("s2")
    daemon.ok("blockpull", "daisy", "vda", "--wait")
    lost = pair.directory / "a.s1"
    lost.unlink()
    text = pair.refused("s3", "--diskspec", f"vda,file={lost}")
    assert text.startswith(
        f"'{lost}' cannot be created: it holds the state of snapshot 's2' of domain 'daisy'"
    )
    assert not lost.exists()


def test_an_overlay_that_somebody_has_begun_to_need_stays(pair: Pair, daemon: Daemon) -> None:
    """The operation is taken back, and its overlay would go: but a clone of it has been made meanwhile."""
    daemon.kill9()
    daemon.start(faults={"QMPSNAP_CRASH": "snapshot-create/transaction/before"})
    daemon.ready("daisy")
    daemon.cli("snapshot-create-as", "daisy", "s1", "--disk-only")
    assert not daemon.alive
    overlay = pair.directory / "a.s1"
    clone = qemu.image(pair.directory / "clone", SIZE, backing=overlay)
    daemon.start()
    daemon.until("daisy", lambda domain: domain["monitor"]["state"] == "ready" and not domain["operations"])

    assert pair.names() == []
    assert overlay.exists()
    assert not (pair.directory / "b.s1").exists()
    assert qemu.read_ok(clone, ord("a"), 0, 64 * KIB)
    assert "Overlay kept" in daemon.log


def test_a_layer_that_another_domain_reads_through_is_not_pulled_into(
    pair: Pair, daemon: Daemon, machine: StartMachine
) -> None:
    """It would read as before, but by its fingerprint pass for damaged; the domain may even be off."""
    pair.create("s1")
    middle = pair.directory / "a.s1"
    pair.create("s2")
    other = qemu.image(pair.directory / "other", SIZE, backing=middle)
    words = ["-blockdev", f"driver=file,node-name=f,filename={other},read-only=on"]
    words += [
        "-blockdev",
        f"driver=qcow2,node-name=n,file=f,read-only=on,backing.driver=qcow2,backing.file.driver=file,backing.file.filename={middle}",
    ]
    vm = machine([*words, "-device", "virtio-blk-pci,drive=n,id=vda"], directory=pair.directory / "n")
    daemon.ok("attach", "rose", vm.monitor_path)
    vm.quit()
    daemon.until("rose", lambda domain: domain["state"] == "shut off")
    assert daemon.refused("blockpull", "daisy", middle) == (
        f"'{middle}' cannot be pulled into: it is below '{other}', and disk vda of domain 'rose' boots that; pull into a"
        " layer above it"
    )
    daemon.ok("blockpull", "daisy", "vda", "--wait")


def test_an_overlay_that_holds_data_is_not_taken(pair: Pair) -> None:
    """The guest's disk would change under it."""
    mine = qemu.image(pair.directory / "mine", SIZE)
    qemu.write_pattern(mine, "qcow2", 0xEE, 0, 64 * KIB)
    words = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(pair.files["vda"]), str(mine)]
    subprocess.run([tool("qemu-img"), *words], check=True)
    before = pair.picture()
    spec = ("--reuse-external", "--diskspec", f"vda,file={mine}", "--diskspec", "vdb,snapshot=no")
    assert "it holds data already" in pair.refused("s1", *spec)
    assert pair.picture() == before
