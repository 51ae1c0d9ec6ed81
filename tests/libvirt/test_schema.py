"""Our files against libvirt's own schema of snapshots, without a daemon."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from lxml import etree

from qmpsnap.model import domain_xml, snapshot, snapshot_xml
from tests import requires

pytestmark = requires.requires_libvirt

XML = Path(__file__).parent.parent / "xml"
SCHEMAS = Path("usr/share/libvirt/schemas")
UUID = "15cdafcd-599b-45c6-b57f-fd2d06155301"


@pytest.fixture(scope="module", params=["host", "tree"])
def root(request: pytest.FixtureRequest) -> Path:
    return requires.libvirt_tree() if request.param == "tree" else Path("/")


@pytest.fixture(scope="module")
def snapshots(root: Path) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(root / SCHEMAS / "domainsnapshot.rng")))


@pytest.fixture(scope="module")
def domains(root: Path) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(root / SCHEMAS / "domain.rng")))


def valid(schema: etree.RelaxNG, document: str) -> None:
    schema.assertValid(etree.fromstring(document.encode()))


def domain(*extra: domain_xml.RecordedDisk) -> domain_xml.RecordedDomain:
    disk = domain_xml.RecordedDisk(
        "vda", "virtio", '/i/it\'s."top"', "qcow2", qdev='/machine/it\'s "x"\t<&>', was=("/ü",)
    )
    return domain_xml.RecordedDomain(
        "daisy <&>",
        UUID,
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu",
        monitor="/m ü",
        agent="/a",
        disks=(disk, *extra),
    )


VALUE = snapshot.Snapshot(
    "ü <&> 'x' \"y\"",
    1795446929,
    description=" a\n\tb ]]> ",
    parent="<p>",
    disks=(snapshot.SnapshotDisk("vda", "/i/a.s2", "qcow2", "/i/a", "qcow2"), snapshot.SnapshotDisk("vdb")),
    current=True,
    domain=domain_xml.build(domain()),
)


@pytest.mark.parametrize(
    "value",
    [
        VALUE,
        attrs.evolve(VALUE, current=False, parent="", description=""),
        attrs.evolve(VALUE, disks=()),
        attrs.evolve(VALUE, state="running", memory="external", memory_file="/m.save"),
        attrs.evolve(VALUE, state="running", memory="internal"),
        attrs.evolve(
            VALUE,
            state="shutoff",
            disks=(snapshot.SnapshotDisk("sda", "/i/a.s", "qcow2", "/dev/vg/lv", "raw"),),
        ),
    ],
    ids=["full", "bare", "no-disks", "memory-file", "memory-inside", "offline"],
)
def test_a_snapshot_is_valid(snapshots: etree.RelaxNG, value: snapshot.Snapshot) -> None:
    """The file on disk and what snapshot-dumpxml shows."""
    valid(snapshots, snapshot_xml.build(value))
    valid(snapshots, snapshot_xml.dump(value))


@pytest.mark.parametrize(
    ("bus", "target", "device", "file"),
    [
        ("scsi", "sda", "disk", "/i/b"),
        ("sata", "sda", "cdrom", ""),
        ("usb", "sdaa", "disk", "/dev/vg/lv"),
        ("ide", "hda", "disk", "/i/b"),
        ("fdc", "fda", "floppy", "/i/b"),
    ],
)
def test_a_domain_is_valid(domains: etree.RelaxNG, bus: str, target: str, device: str, file: str) -> None:
    """Every kind of disk, with a file, a block device or an empty drive."""
    extra = domain_xml.RecordedDisk(target, bus, file, "raw" if file else "", device, "q")

    valid(domains, domain_xml.build(domain(extra)))
    valid(domains, domain_xml.build(domain_xml.RecordedDomain("d", UUID)))


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(XML.glob("*/*.xml")) if "-etc-" not in file.name],
    ids=lambda file: file.stem,
)
def test_what_we_rewrote_is_valid(snapshots: etree.RelaxNG, file: Path) -> None:
    """A snapshot of libvirt is as valid after we have read and written it as it was before."""
    theirs = file.read_text()
    ours = snapshot_xml.build(snapshot_xml.parse(theirs, file.name))

    if snapshots.validate(etree.fromstring(theirs.encode())):
        valid(snapshots, ours)
    else:  # the one without a UUID, and what this libvirt does not know yet
        assert file.stem in {"dropin-legacy", "04-after-revert-snap1-daisy"}
