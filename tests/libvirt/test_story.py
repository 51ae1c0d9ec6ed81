"""A machine that libvirt has never seen: libvirt takes over its snapshots, goes on with them, and we read what it made."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from qmpsnap.model import domain_xml, snapshot, snapshot_xml
from tests import requires
from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon
from tests.lab.images import KIB
from tests.libvirt.libvirtd import Libvirtd
from tests.qemu.pair import Pair

pytestmark = [requires.requires_libvirt, requires.requires_qemu]

SNAPSHOTS = ["snap1-daisy", "snap 2 \"für\" <die> & 'Katz'", "snap3"]


@pytest.fixture
def pair(daemon: Daemon, machine: StartMachine, short_dir: Path) -> Pair:
    """Two disks, three snapshots, and the number of each written after it."""
    pair = Pair(daemon, machine, short_dir, "daisy")
    for n, name in enumerate(SNAPSHOTS, 1):
        files = [f"{target},file={short_dir}/{target}.{n}" for target in ("vda", "vdb")]
        pair.create(name, f"{name}: before\nthe\tupgrade", "--diskspec", files[0], "--diskspec", files[1])
        pair.write(n)
    return pair


def test_libvirt_shows_what_we_show(pair: Pair, libvirt: Libvirtd) -> None:
    """Byte for byte, from the files alone."""
    libvirt.adopt(pair.daemon.root / "state")

    for words in (
        ["snapshot-list", "daisy"],
        ["snapshot-list", "daisy", "--tree"],
        ["snapshot-list", "daisy", "--parent"],
        ["snapshot-list", "daisy", "--name"],
        ["snapshot-list", "daisy", "--roots"],
        ["snapshot-list", "daisy", "--leaves"],
        ["snapshot-list", "daisy", "--external", "--disk-only", "--metadata"],
        ["snapshot-list", "daisy", "--from", SNAPSHOTS[0], "--descendants"],
        ["snapshot-current", "daisy", "--name"],
        ["snapshot-parent", "daisy", "--current"],
        *(["snapshot-info", "daisy", name] for name in SNAPSHOTS),
        ["domblklist", "daisy", "--details"],
    ):
        assert libvirt.ok(*words) == pair.daemon.ok(*words), words
    for name in SNAPSHOTS:
        ours, theirs = (
            ET.fromstring(say("snapshot-dumpxml", "daisy", name)) for say in (pair.daemon.ok, libvirt.ok)
        )
        for element in ours:
            found = theirs.find(element.tag)
            assert found is not None
            if element.tag != "domain":  # there libvirt adds the hardware that every machine has
                assert ET.canonicalize(ET.tostring(found)) == ET.canonicalize(ET.tostring(element))
    assert libvirt.complaints == []


def test_libvirt_goes_on(pair: Pair, libvirt: Libvirtd, short_dir: Path) -> None:
    """The machine is switched off and becomes libvirt's: it runs on the newest layers, and the tree grows and shrinks there."""
    pair.vm.quit()
    libvirt.adopt(pair.daemon.root / "state")

    libvirt.ok("start", "daisy", "--paused")
    files = [f"{target},file={short_dir}/{target}.4" for target in ("vda", "vdb")]
    create = [
        "snapshot-create-as",
        "daisy",
        "snap4",
        "--disk-only",
        "--diskspec",
        files[0],
        "--diskspec",
        files[1],
    ]
    libvirt.ok(*create)
    libvirt.ok("snapshot-delete", "daisy", SNAPSHOTS[1], "--metadata")
    libvirt.ok("destroy", "daisy")

    read = [snapshot_xml.parse(text, file) for file, text in libvirt.written("daisy").items()]
    tree = snapshot.Tree.of(read)
    assert [(s.name, s.parent, s.current) for s in tree.ordered()] == [
        ("snap1-daisy", "", False),
        ("snap3", "snap1-daisy", False),
        ("snap4", "snap3", True),
    ]
    for disk in tree.get("snap4").disks:
        assert (disk.overlay, disk.image) == (f"{short_dir}/{disk.target}.4", f"{short_dir}/{disk.target}.3")
        assert qemu.read_ok(disk.overlay, 3, 64 * KIB, 64 * KIB)
    for name in ("snap1-daisy", "snap3", "snap4"):
        ours = domain_xml.parse(tree.get(name).domain, name)
        assert ours.monitor == str(pair.vm.monitor_path)
        assert all(disk.qdev for disk in ours.disks)
    assert libvirt.complaints == []
