"""The session that began it all, with virsh replaced by qmpsnap, and what is in the images afterwards.

A QEMU that was started by hand, three external disk-only snapshots, a look at the chain, and a partial pull. Texts and
layout are those of virsh 9.0.0 (facts/libvirt.md 1.2).
"""

import datetime as dt
import re
from pathlib import Path

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, StartDaemon
from tests.lab.images import KIB, MIB

pytestmark = requires.requires_qemu

SIZE = 64 * MIB

# virsh ends a root's children with an empty line of their indent, and the whole with one more.
TREE = "snap1-daisy\n  |\n  +- snap2-daisy\n      |\n      +- snap3-daisy\n        \n\n"

LIST = """\
 Id   Name    State
-----------------------
 1    daisy   running

"""


class Contents:
    """What the guest wrote between two snapshots, and a digest of the whole disk at each of them."""

    def __init__(self, vm: qemu.Machine, disk: str) -> None:
        self.vm = vm
        self.disk = disk
        self.digests: list[str] = []

    def write(self, pattern: int) -> None:
        """An area that nobody else writes, one that every epoch writes, and one half of which the next one keeps."""
        for offset in (pattern * MIB, 0, (pattern - 1) * 32 * KIB + 32 * MIB):
            self.vm.guest_write(self.disk, pattern, offset, 64 * KIB)

    def mark(self, path: Path, format: str = "qcow2") -> None:  # noqa: A002 - QEMU's word
        self.vm.guest_flush(self.disk)
        self.digests.append(qemu.content_digest(path, format))


def expect_epochs(path: Path, last: int, format: str = "qcow2") -> None:  # noqa: A002 - QEMU's word
    """The image reads as after epoch ``last``: byte by byte where somebody has written, zeroes behind."""
    for pattern in range(1, 8):
        wanted = pattern if pattern <= last else 0
        assert qemu.read_ok(path, wanted, pattern * MIB, 64 * KIB, format=format), (path, pattern)
        half, wanted = 32 * MIB + (pattern - 1) * 32 * KIB, last if pattern == last + 1 else wanted
        assert qemu.read_ok(path, wanted, half, 32 * KIB, format=format), (path, pattern)
    assert qemu.read_ok(path, last, 0, 64 * KIB, format=format)


def without_times(text: str) -> str:
    """The table with its times, which must be now, in UTC, replaced by a word of the same width."""
    for found in re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000", text):
        then = dt.datetime.strptime(found, "%Y-%m-%d %H:%M:%S %z")
        age = dt.datetime.now(tz=dt.UTC) - then
        assert -dt.timedelta(seconds=1) <= age < dt.timedelta(minutes=5)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000", "(now, in the time of UTC) de)"[:25], text)


def attach(daemon: Daemon, vm: qemu.Machine, name: str) -> None:
    assert daemon.ok("attach", name, vm.monitor_path) == f"Domain '{name}' attached\n\n"


def test_three_snapshots_and_a_pull(
    emulator: str, daemons: StartDaemon, machine: StartMachine, short_dir: Path
) -> None:
    daemon = daemons(env={"QMPSNAP_QEMU_IMG": qemu.tool("qemu-img", emulator)})
    images = short_dir
    files = [qemu.image(images / "daisy.qcow2", SIZE)]
    vm = machine(["-drive", f"file={files[0]},format=qcow2,if=virtio"], name="daisy", binary=emulator)
    contents = Contents(vm, "virtio0")
    attach(daemon, vm, "daisy")

    assert daemon.ok("list") == LIST
    assert daemon.ok("domblklist", "daisy", "--details") == (
        " Type   Device   Target   Source\n"
        f"{'-' * (28 + len(str(files[0])))}\n"
        f" file   disk     vda      {files[0]}\n\n"
    )

    for number in (1, 2, 3):
        contents.write(number)
        contents.mark(files[-1])
        file = images / f"snap{number}-daisy.qcow2"
        said = daemon.ok(
            *("snapshot-create-as", "--domain", "daisy", f"snap{number}-daisy", f"snap{number} description"),
            *("--diskspec", f"vda,file={file}", "--disk-only", "--atomic"),
        )
        assert said == f"Domain snapshot snap{number}-daisy created\n"
        files.append(file)
    contents.write(4)
    contents.mark(files[-1])

    assert daemon.ok("domblklist", "daisy").splitlines()[2] == f" vda      {files[3]}"
    for file, below in zip(files[1:], files, strict=False):
        header = qemu.info(file)
        assert header["format"] == "qcow2"
        assert header["virtual-size"] == SIZE
        assert header["backing-filename"] == header["full-backing-filename"] == str(below)
        assert header["backing-filename-format"] == "qcow2"
    assert qemu.chain(files[3]) == files[::-1]
    assert daemon.ok("snapshot-list", "daisy", "--tree") == TREE
    assert without_times(daemon.ok("snapshot-list", "daisy", "--parent")) == (
        " Name          Creation Time               State           Parent\n"
        "------------------------------------------------------------------------\n"
        " snap1-daisy   (now, in the time of UTC)   disk-snapshot   \n"
        " snap2-daisy   (now, in the time of UTC)   disk-snapshot   snap1-daisy\n"
        " snap3-daisy   (now, in the time of UTC)   disk-snapshot   snap2-daisy\n\n"
    )
    assert daemon.ok("snapshot-info", "daisy", "snap2-daisy") == (
        "Name:           snap2-daisy\n"
        "Domain:         daisy\n"
        "Current:        no\n"
        "State:          disk-snapshot\n"
        "Location:       external\n"
        "Parent:         snap1-daisy\n"
        "Children:       1\n"
        "Descendants:    1\n"
        "Metadata:       yes\n\n"
    )
    assert daemon.ok("snapshot-current", "daisy", "--name") == "snap3-daisy\n"
    assert daemon.ok("snapshot-parent", "daisy", "snap3-daisy") == "snap2-daisy\n"

    expect_states(files, contents)
    pulled = daemon.cli(
        *("blockpull", "--domain", "daisy", "--path", files[3], "--base", files[1], "--wait", "--verbose")
    )
    assert (pulled.status, pulled.stdout) == (0, "\nPull complete\n")
    assert re.fullmatch(r"(\rBlock Pull: \[ {1,2}\d{1,2} %\])*\rBlock Pull: \[100 %\]", pulled.stderr)

    chain = [files[3], files[1], files[0]]
    assert qemu.chain(files[3]) == chain
    assert [layer["file"] for layer in daemon.disk("daisy")["chain"]] == [str(file) for file in chain]
    assert daemon.ok("snapshot-list", "daisy", "--tree") == TREE
    width = len(str(files[1]))
    assert daemon.ok("snapshot-list", "daisy", "--tree", "--chain") == (
        f"{TREE[:-1]}"
        f"vda: {files[0]} <- {files[1]} <- {files[3]} (active)\n"
        "\n"
        f" Name          Disk   {'Image':<{width}}   In chain   Revert\n"
        f"{'-' * (44 + width)}\n"
        f" snap1-daisy   vda    {files[0]!s:<{width}}   yes        yes\n"
        f" snap2-daisy   vda    {files[1]!s:<{width}}   yes        yes\n"
        f" snap3-daisy   vda    {files[2]!s:<{width}}   no         yes\n"
        "\n"
    )
    expect_states(files, contents)

    contents.write(5)
    contents.mark(files[3])
    vm.quit()
    expect_epochs(files[3], 5)
    assert qemu.content_digest(files[3]) == contents.digests[4]
    for file in files:
        qemu.check(file)


def expect_states(files: list[Path], contents: Contents) -> None:
    """Each snapshot's image, and the active layer, reads as the guest saw it then, over the whole disk."""
    for number, file in enumerate(files, start=1):
        expect_epochs(file, number)
        assert qemu.content_digest(file) == contents.digests[number - 1], file
    assert contents.vm.guest_read_ok(contents.disk, 4, 0, 64 * KIB)


def test_a_raw_image_on_an_ide_disk(
    emulator: str, daemons: StartDaemon, machine: StartMachine, short_dir: Path
) -> None:
    """The second half: a guest that was installed on a raw image gets qcow2 overlays over it."""
    daemon = daemons(env={"QMPSNAP_QEMU_IMG": qemu.tool("qemu-img", emulator)})
    base = qemu.image(short_dir / "f17btrfs2.img", SIZE, "raw")
    drive = f"file={base},format=raw,index=0,media=disk"
    vm = machine(["-drive", drive], machine_type="pc", name="f17btrfs2", binary=emulator)
    contents = Contents(vm, "ide0-hd0")
    attach(daemon, vm, "f17btrfs2")
    assert daemon.ok("domblklist", "f17btrfs2").splitlines()[2] == f" hda      {base}"

    contents.write(1)
    contents.mark(base, "raw")
    snap1, snap2 = short_dir / "snap1-f17btrfs2.qcow2", short_dir / "snap2-f17btrfs2.qcow2"
    for file in (snap1, snap2):
        said = daemon.ok(
            *("snapshot-create-as", "f17btrfs2", file.stem, "--disk-only", "--atomic"),
            *("--diskspec", f"hda,file={file}"),
        )
        assert said == f"Domain snapshot {file.stem} created\n"
        contents.write(len(contents.digests) + 1)
        contents.mark(file)

    assert daemon.ok("snapshot-list", "f17btrfs2", "--name") == "snap1-f17btrfs2\nsnap2-f17btrfs2\n\n"
    header = qemu.info(snap1)
    assert (header["format"], header["virtual-size"]) == ("qcow2", SIZE)
    assert (header["backing-filename"], header["backing-filename-format"]) == (str(base), "raw")
    assert qemu.info(snap2)["backing-filename-format"] == "qcow2"
    expect_epochs(base, 1, "raw")
    expect_epochs(snap1, 2)
    expect_epochs(snap2, 3)

    assert daemon.ok("blockpull", "f17btrfs2", snap2, "--base", base, "--wait") == "\nPull complete\n"
    assert qemu.chain(snap2) == [snap2, base]
    assert qemu.info(snap2)["backing-filename-format"] == "raw"
    vm.quit()
    for file, form, digest in zip(
        (base, snap1, snap2), ("raw", "qcow2", "qcow2"), contents.digests, strict=True
    ):
        assert qemu.content_digest(file, form) == digest


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pull_of_everything(
    depth: int, shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    """Without a base the active layer needs nobody, and the guest sees the same disk."""
    files = [qemu.image(short_dir / "a.qcow2", SIZE)]
    vm = machine(["-drive", f"file={files[0]},format=qcow2,if=virtio"])
    contents = Contents(vm, "virtio0")
    attach(shared_daemon, vm, name)
    for number in range(1, depth + 1):
        contents.write(number)
        files.append(short_dir / f"a.s{number}")
        shared_daemon.ok("snapshot-create-as", name, f"s{number}", "--disk-only")
    contents.write(depth + 1)
    contents.mark(files[-1])
    assert shared_daemon.ok("blockpull", name, "vda", "--wait") == "\nPull complete\n"
    assert qemu.chain(files[-1]) == [files[-1]]
    vm.kill9()  # what was said to be complete is on disk
    for file in files[:-1]:
        file.unlink()
    assert qemu.content_digest(files[-1]) == contents.digests[-1]
    qemu.check(files[-1])
