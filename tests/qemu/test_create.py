"""snapshot-create-as on two disks: all of them at one instant, or none; and its options."""

import contextlib
import json
import os
import pwd
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB
from tests.qemu.pair import SIZE, Pair

pytestmark = requires.requires_qemu


@pytest.fixture
def pair(shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str) -> Pair:
    return Pair(shared_daemon, machine, short_dir, name)


class Mount(Protocol):
    def __call__(self, options: str) -> Path: ...


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a tmpfs with these options, or skip where that is not allowed; unmounted afterwards."""
    with contextlib.ExitStack() as mounted:

        def mount(options: str) -> Path:
            path = tmp_path / options.replace("=", "-").replace(",", "-")
            path.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "none", path],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                pytest.skip(f"cannot mount: {done.stderr.strip()}")
            mounted.callback(subprocess.check_call, ["umount", "-l", path])
            return path

        yield mount


# -- one instant


def test_all_disks_at_one_instant(pair: Pair) -> None:
    """One transaction with an action for each disk, and nothing else that changes the graph."""
    pair.write(1)
    assert pair.create("s1", "one") == "Domain snapshot s1 created\n"
    changes = pair.commands("transaction", "blockdev-snapshot", "blockdev-snapshot-sync", "blockdev-add")
    assert [command["execute"] for command in changes] == ["transaction"]
    actions = changes[0]["arguments"]["actions"]
    assert [action["data"]["snapshot-file"] for action in actions] == [
        str(pair.directory / "a.s1"),
        str(pair.directory / "b.s1"),
    ]
    pair.write(2)
    for target, base in pair.files.items():
        assert pair.chain(target) == [f"{base.stem}.s1", base.name]
        assert qemu.read_ok(base, 1, 64 * KIB, 64 * KIB)
        assert qemu.read_ok(base.with_suffix(".s1"), 2, 64 * KIB, 64 * KIB)
    found = pair.daemon.get(f"/domains/{pair.name}/snapshots/s1")
    assert found["description"] == "one"
    assert [(disk["target"], disk["overlay"], disk["image"]) for disk in found["disks"]] == [
        (target, str(base.with_suffix(".s1")), str(base)) for target, base in pair.files.items()
    ]


@pytest.fixture
def blockdev() -> Iterator[Daemon]:
    with running(settings='overlay = "blockdev"\n') as found:
        yield found


def test_overlays_opened_before_the_transaction(
    blockdev: Daemon, machine: StartMachine, short_dir: Path
) -> None:
    """`overlay = "blockdev"`: the overlays are opened first, and closed when a pull needs them no more."""
    pair = Pair(blockdev, machine, short_dir, "daisy")
    before = pair.picture()
    for number in (1, 2):
        pair.write(number, number * 64 * KIB)
        pair.create(f"s{number}")
    pair.write(3, 192 * KIB)
    for target in pair.files:
        assert blockdev.ok("blockpull", "daisy", target, "--base", pair.files[target], "--wait")
    after = pair.picture()
    assert [command["execute"] for command in pair.commands("transaction", "blockdev-add")] == [
        *["blockdev-add"] * 2,
        "transaction",
    ] * 2
    # one overlay with its storage for each disk, over what was there before
    assert len(after["nodes"]) == len(before["nodes"]) + 4
    pair.vm.quit()
    for base in pair.files.values():
        for pattern in (1, 2, 3):
            assert qemu.read_ok(base.with_suffix(".s2"), pattern, pattern * 64 * KIB, 64 * KIB)
            assert qemu.read_ok(base, 1 if pattern == 1 else 0, pattern * 64 * KIB, 64 * KIB)


# -- a disk that cannot: nothing changes


def unchanged(pair: Pair, before: dict[str, object]) -> None:
    assert pair.picture() == before
    assert pair.commands("transaction") == []
    pair.write(9)  # and the guest goes on, on the same images
    for base in pair.files.values():
        assert qemu.read_ok(base, 9, 64 * KIB, 64 * KIB)


def test_the_second_disks_directory_is_missing(pair: Pair) -> None:
    before = pair.picture()
    file = pair.directory / "no/such/b.s1"
    assert (
        pair.refused("s1", "--diskspec", f"vdb,file={file}")
        == f"failed to create image file '{file}': No such file or directory"
    )
    unchanged(pair, before)


def test_the_second_disks_file_exists(pair: Pair) -> None:
    file = pair.directory / "precious"
    file.write_text("keep me")
    before = pair.picture()
    assert pair.refused("s1", "--diskspec", f"vdb,file={file}") == (
        "unsupported configuration: external snapshot file for disk vdb already exists"
        f" and is not a block device: {file}"
    )
    assert file.read_text() == "keep me"
    unchanged(pair, before)


@pytest.mark.parametrize("target", ["vda", "vdb"])
def test_a_disk_is_full(pair: Pair, mount: Mount, target: str) -> None:
    """Found out while the overlays are made, before or after the other disk's."""
    full = mount("size=64k")
    before = pair.picture()
    file = full / "x.s1"
    said = pair.refused("s1", "--diskspec", f"{target},file={file}")
    assert said == f"failed to create image file '{file}': No space left on device"
    assert list(full.iterdir()) == []
    unchanged(pair, before)


def test_a_read_only_file_system(pair: Pair, mount: Mount) -> None:
    file = mount("ro") / "b.s1"
    before = pair.picture()
    assert (
        pair.refused("s1", "--diskspec", f"vdb,file={file}")
        == f"failed to create image file '{file}': Read-only file system"
    )
    unchanged(pair, before)


def test_a_directory_that_takes_no_files(pair: Pair, short_dir: Path) -> None:
    """Where even root may not create anything."""
    folder = short_dir / "sealed"
    folder.mkdir()
    if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("no chattr +i here")
    try:
        before = pair.picture()
        file = folder / "b.s1"
        assert (
            pair.refused("s1", "--diskspec", f"vdb,file={file}")
            == f"failed to create image file '{file}': Permission denied"
        )
        unchanged(pair, before)
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_a_file_name_that_is_too_long(pair: Pair) -> None:
    before = pair.picture()
    file = pair.directory / ("x" * 256)
    assert (
        pair.refused("s1", "--diskspec", f"vdb,file={file}")
        == f"failed to create image file '{file}': File name too long"
    )
    unchanged(pair, before)


def test_a_file_name_as_long_as_can_be(pair: Pair) -> None:
    file = pair.directory / ("x" * 255)
    pair.create("s1", "--diskspec", f"vda,file={file}")
    assert pair.chain("vda") == [file.name, "a.qcow2"]


def test_one_file_for_two_disks(pair: Pair) -> None:
    before = pair.picture()
    file = pair.directory / "both"
    said = pair.refused("s1", "--diskspec", f"vda,file={file}", "--diskspec", f"vdb,file={file}")
    assert said == f"unsupported configuration: disks vda and vdb would share the file '{file}'"
    unchanged(pair, before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a QEMU as somebody else")
def test_qemu_cannot_open_an_overlay(
    shared_daemon: Daemon, machine: StartMachine, short_dir: Path, name: str
) -> None:
    """What only QEMU can find out: the transaction itself fails, and both overlays go again."""
    nobody = pwd.getpwnam("nobody")
    short_dir.chmod(0o755)
    way = ("-run-with", "user=nobody") if qemu.version() >= (9, 1, 0) else ("-runas", "nobody")
    pair = Pair(shared_daemon, machine, short_dir, name, *way, owner=nobody.pw_uid)
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    before = pair.picture()
    said = pair.refused("s1", "--diskspec", f"vdb,file={closed}/b.s1")
    assert said == f"Could not open '{closed}/b.s1': Permission denied"
    assert pair.picture() == before
    assert len(pair.commands("transaction")) == 1
    pair.create("s1")
    assert (pair.chain("vda"), pair.chain("vdb")) == (["a.s1", "a.qcow2"], ["b.s1", "b.qcow2"])
    pair.write(3)
    assert (short_dir / "b.s1").stat().st_uid == nobody.pw_uid


# -- options


def test_a_disk_is_left_out(pair: Pair) -> None:
    pair.create("s1", "--diskspec", "vdb,snapshot=no")
    assert (pair.chain("vda"), pair.chain("vdb")) == (["a.s1", "a.qcow2"], ["b.qcow2"])
    assert [disk["target"] for disk in pair.daemon.get(f"/domains/{pair.name}/snapshots/s1")["disks"]] == [
        "vda"
    ]
    specs = [word for target in pair.files for word in ("--diskspec", f"{target},snapshot=no")]
    assert pair.refused("s2", *specs) == "unsupported configuration: nothing selected for snapshot"


def test_file_and_driver(pair: Pair, tmp_path: Path) -> None:
    """One disk's overlay is somewhere else, the other's has the usual name."""
    file = tmp_path / "over, there.qcow2"
    spec = f"vda,snapshot=external,driver=qcow2,file={str(file).replace(',', ',,')}"
    pair.create("s1", "--diskspec", spec)
    assert (pair.chain("vda"), pair.chain("vdb")) == ([file.name, "a.qcow2"], ["b.s1", "b.qcow2"])
    assert qemu.chain(file) == [file, pair.files["vda"]]
    before = pair.picture()
    assert (
        pair.refused("s2", "--diskspec", "vdb,driver=raw")
        == "unsupported configuration: external snapshot format for disk vdb is unsupported: raw"
    )
    assert pair.picture() == before


def test_default_names(pair: Pair) -> None:
    """The overlay is the image's name with its extension replaced; a snapshot without name is named by the time."""
    pair.create("named")
    assert (pair.chain("vda"), pair.chain("vdb")) == (["a.named", "a.qcow2"], ["b.named", "b.qcow2"])
    said = pair.create()
    found = re.fullmatch(r"Domain snapshot (\d{10}) created\n", said)
    assert found is not None
    assert pair.chain("vda")[0] == f"a.{found[1]}"
    assert pair.names() == [found[1], "named"]
    assert pair.daemon.get(f"/domains/{pair.name}/snapshots/{found[1]}")["creation_time"] == int(found[1])


def test_no_metadata(pair: Pair) -> None:
    assert pair.create("s1", "--no-metadata") == "Domain snapshot s1 created\n"
    assert pair.chain("vda") == ["a.s1", "a.qcow2"]
    assert pair.names() == []
    assert not (pair.daemon.root / "state/snapshot" / pair.name).exists()
    pair.create("s2")  # the next one stands on the overlay that nobody listed
    assert pair.daemon.get(f"/domains/{pair.name}/snapshots/s2")["disks"][0]["image"] == str(
        pair.directory / "a.s1"
    )
    assert pair.daemon.get(f"/domains/{pair.name}/snapshots/s2")["parent"] is None


def test_print_xml_changes_nothing(pair: Pair) -> None:
    before = pair.picture()
    assert pair.create("s1", 'a <b> & "c"', "--print-xml", "--diskspec", "vda,file=/x/y.qcow2") == (
        "<domainsnapshot>\n"
        "  <name>s1</name>\n"
        "  <description>a &lt;b&gt; &amp; &quot;c&quot;</description>\n"
        "  <disks>\n"
        "    <disk name='vda'>\n"
        "      <source file='/x/y.qcow2'/>\n"
        "    </disk>\n"
        "  </disks>\n"
        "</domainsnapshot>\n\n\n"
    )
    unchanged(pair, before)


def test_dry_run_changes_nothing(pair: Pair) -> None:
    """The plan is shown step by step; a request that would be refused is refused."""
    before = pair.picture()
    a, b = pair.files.values()
    plan = [line[4:] for line in pair.create("s1", "--dry-run").splitlines() if line]
    assert plan == [
        f"create overlay {a.with_suffix('.s1')} over {a} (qcow2)",
        f"create overlay {b.with_suffix('.s1')} over {b} (qcow2)",
        f"flush {a}, {b}",
        "QMP transaction",
        f"look: vda writes to {a.with_suffix('.s1')}, vdb writes to {b.with_suffix('.s1')}",
        (
            f"record: vda boots {a.with_suffix('.s1')}, vdb boots {b.with_suffix('.s1')},"
            " write metadata of snapshot s1; current is s1"
        ),
    ]
    assert (
        pair.refused("s1", "--dry-run", "--diskspec", "vdz")
        == "unsupported configuration: no disk named 'vdz'"
    )
    unchanged(pair, before)
    pair.create("s1")
    before = pair.picture()
    pulled = pair.daemon.ok("blockpull", pair.name, "vda", "--dry-run")
    assert "QMP block-stream" in pulled
    assert pair.picture() == before


# -- overlays that the user made


def test_reuse_external(pair: Pair) -> None:
    """A fitting overlay is used as it is: with its owner, its cluster size, and a backing file named relatively."""
    files = {}
    for target, base in pair.files.items():
        files[target] = file = base.with_suffix(".mine")
        qemu.image(file, SIZE, backing=base.name, options="cluster_size=4096")
        file.chmod(0o604)
    specs = [word for target, file in files.items() for word in ("--diskspec", f"{target},file={file}")]
    assert pair.create("s1", *specs, "--reuse-external") == "Domain snapshot s1 created\n"
    pair.write(5)
    for target, base in pair.files.items():
        assert pair.chain(target) == [f"{base.stem}.mine", base.name]
        assert qemu.info(files[target])["cluster-size"] == 4096
        assert files[target].stat().st_mode & 0o777 == 0o604
        assert qemu.read_ok(files[target], 5, 64 * KIB, 64 * KIB)
        assert qemu.read_ok(base, 0, 64 * KIB, 64 * KIB)
    pair.create("s2")
    for target in pair.files:
        pair.daemon.ok("blockpull", pair.name, target, "--wait")
    pair.vm.quit()
    for base in pair.files.values():
        assert qemu.read_ok(base.with_suffix(".s2"), 5, 64 * KIB, 64 * KIB)


BAD_OVERLAYS = {
    "backing": "cannot be the overlay of disk vdb: its backing file is '{other}', not '{base}'",
    "none": "cannot be the overlay of disk vdb: its backing file is 'none', not '{base}'",
    "size": "cannot be the overlay of disk vdb: it has 1048576 bytes, the disk has 16777216",
    "raw": "cannot be the overlay of disk vdb: it is no qcow2 image",
    "directory": "cannot be the overlay of disk vdb: it is no qcow2 image",
}


@pytest.mark.parametrize("case", [*BAD_OVERLAYS, "missing"])
def test_reuse_external_that_does_not_fit(pair: Pair, case: str) -> None:
    """libvirt takes them all but the missing one, and the guest loses its disk; here nothing happens."""
    base, other, file = pair.files["vdb"], pair.files["vda"], pair.directory / "mine"
    good = qemu.image(pair.directory / "good", SIZE, backing=other)
    makers: dict[str, Callable[[], object]] = {
        "backing": lambda: qemu.image(file, SIZE, backing=other),
        "none": lambda: qemu.image(file, SIZE),
        "size": lambda: qemu.image(file, SIZE // 16, backing=base),
        "raw": lambda: qemu.image(file, SIZE, "raw"),
        "directory": file.mkdir,
        "missing": lambda: None,
    }
    makers[case]()
    before = pair.picture()
    said = pair.refused(
        "s1", "--reuse-external", "--diskspec", f"vda,file={good}", "--diskspec", f"vdb,file={file}"
    )
    if case == "missing":
        assert said == f"missing existing file for disk vdb: {file}: No such file or directory"
    else:
        assert said == f"file '{file}' " + BAD_OVERLAYS[case].format(base=base, other=other)
    unchanged(pair, before)


def test_the_metadata_is_libvirts(pair: Pair) -> None:
    """snapshot-dumpxml, snapshot-current and the file in the state directory are one document."""
    pair.create("s1", "first")
    dumped = pair.daemon.ok("snapshot-dumpxml", pair.name, "s1")
    for part in ("<name>s1</name>", "<description>first</description>", "<state>disk-snapshot</state>"):
        assert part in dumped
    assert f"<source file='{pair.directory}/a.s1'/>" in dumped.replace('"', "'")
    assert pair.daemon.ok("snapshot-current", pair.name).rstrip("\n") == dumped.rstrip("\n")
    stored = pair.daemon.root / "state/snapshot" / pair.name / "s1.xml"
    assert "<active>1</active>" in stored.read_text()
    assert json.loads(pair.daemon.ok("snapshot-info", pair.name, "s1", "--output", "json"))["current"] is True
    assert os.listdir(stored.parent) == ["s1.xml"]
