"""Snapshots as libvirt's XML: what we write, what we read of libvirt's own, and what we refuse."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from qmpsnap import errors
from qmpsnap.model import domain_xml, snapshot, snapshot_xml

XML = Path(__file__).parent.parent / "xml"
VERSIONS = ["9.0.0", "11.3.0"]
DIR = "/export/vmimgs"

DOMAIN = domain_xml.RecordedDomain(
    "daisy",
    "c820233a-4109-4a00-9040-fa52ae7dcec7",
    machine="pc-q35-7.2",
    monitor="/m",
    disks=(
        domain_xml.RecordedDisk(
            "vda", "virtio", "/i/a", "qcow2", qdev="/machine/peripheral/x/virtio-backend"
        ),
        domain_xml.RecordedDisk("sda", "sata", "", "", "cdrom"),
    ),
)
SNAPSHOT = snapshot.Snapshot(
    "s2",
    1795446929,
    description="before the upgrade",
    parent="s1",
    disks=(snapshot.SnapshotDisk("vda", "/i/a.s2", "qcow2", "/i/a", "qcow2"), snapshot.SnapshotDisk("vdb")),
    current=True,
    domain=domain_xml.build(DOMAIN),
)
FILE = """\
<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  qmpsnap snapshot-create-as, snapshot-current, snapshot-delete
or other application using the qmpsnap API.
-->

<domainsnapshot>
  <name>s2</name>
  <description>before the upgrade</description>
  <state>disk-snapshot</state>
  <parent>
    <name>s1</name>
  </parent>
  <creationTime>1795446929</creationTime>
  <memory snapshot='no'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/i/a.s2'/>
    </disk>
    <disk name='vdb' snapshot='no'/>
  </disks>
  <domain type='qemu'>
    <name>daisy</name>
    <uuid>c820233a-4109-4a00-9040-fa52ae7dcec7</uuid>
    <metadata>
      <qmpsnap:domain xmlns:qmpsnap='https://qmpsnap.invalid/xmlns/domain/1'>
        <qmpsnap:monitor path='/m'/>
        <qmpsnap:disk target='vda' qdev='/machine/peripheral/x/virtio-backend'/>
      </qmpsnap:domain>
    </metadata>
    <memory unit='KiB'>131072</memory>
    <currentMemory unit='KiB'>131072</currentMemory>
    <vcpu>1</vcpu>
    <os>
      <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    </os>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2'/>
        <source file='/i/a'/>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='cdrom'>
        <target dev='sda' bus='sata'/>
      </disk>
    </devices>
  </domain>
  <active>1</active>
</domainsnapshot>
"""


def sample(name: str) -> str:
    return (XML / f"{name}.xml").read_text()


def read(name: str) -> snapshot.Snapshot:
    return snapshot_xml.parse(sample(name), name)


def after_comment(document: str) -> str:
    return document.partition("-->\n\n")[2]


def external(target: str, overlay: str, image: str) -> snapshot.SnapshotDisk:
    return snapshot.SnapshotDisk(target, f"{DIR}/{overlay}", "qcow2", f"{DIR}/{image}", "qcow2")


# what we write


def test_the_file() -> None:
    """The order of elements, the indentation and the quotes are libvirt's; a disk that was left out says so."""
    assert snapshot_xml.build(SNAPSHOT) == FILE


def test_the_dump_is_the_file_without_comment_and_marker() -> None:
    assert snapshot_xml.dump(SNAPSHOT) == after_comment(FILE).replace("  <active>1</active>\n", "")


def test_what_is_not_there_is_not_written() -> None:
    """A root has no parent, and what has no description has no element for it."""
    built = snapshot_xml.build(snapshot.Snapshot("s", 1))

    assert after_comment(built).split() == [
        *("<domainsnapshot>", "<name>s</name>", "<state>disk-snapshot</state>"),
        *(
            "<creationTime>1</creationTime>",
            "<memory",
            "snapshot='no'/>",
            "<active>0</active>",
            "</domainsnapshot>",
        ),
    ]


def test_the_file_reads_back() -> None:
    """All but the indentation of <domain>, and that is as deep as it will stay."""
    found = snapshot_xml.parse(FILE, "f")

    assert attrs.evolve(found, domain=SNAPSHOT.domain) == SNAPSHOT
    assert domain_xml.parse(found.domain, "f") == DOMAIN
    assert snapshot_xml.build(found) == FILE


# what libvirt wrote


@pytest.mark.parametrize(
    "name",
    sorted(
        str(path.relative_to(XML).with_suffix(""))
        for path in XML.glob("[0-9]*/0[145]-*.xml")
        if "-etc-" not in path.name
    ),
)
def test_libvirts_file_survives(name: str) -> None:
    """Read and written again, a file of libvirt is the same byte for byte: memory, cookies, new overlays after a revert, all."""
    document = sample(name)
    if name.endswith("dumpxml"):
        assert snapshot_xml.dump(read(name)) == document.rstrip("\n") + "\n"
    else:
        assert after_comment(snapshot_xml.build(read(name))) == after_comment(document)


@pytest.mark.parametrize("version", VERSIONS)
def test_libvirts_chain(version: str) -> None:
    """The tree of the article: parents, the current one, overlays, and the images that hold each state."""
    tree = snapshot.Tree.of(read(f"{version}/01-blog-snap{n}-daisy") for n in (3, 1, 2))

    images = ["daisy.qcow2", *(f"snap{n}-daisy.qcow2" for n in (1, 2, 3))]
    assert [(s.name, s.parent, s.state, s.location, s.description) for s in tree.ordered()] == [
        (
            f"snap{n}-daisy",
            f"snap{n - 1}-daisy" if n > 1 else "",
            "disk-snapshot",
            "external",
            f"snap{n} description",
        )
        for n in (1, 2, 3)
    ]
    assert [s.disks for s in tree.ordered()] == [
        (external("vda", images[n], images[n - 1]),) for n in (1, 2, 3)
    ]
    assert tree.current is tree.get("snap3-daisy")
    assert tree.family() == {"snap1-daisy": (1, 2), "snap2-daisy": (1, 1), "snap3-daisy": (0, 0)}


@pytest.mark.parametrize("version", VERSIONS)
def test_libvirts_other_kinds(version: str) -> None:
    """Memory in a file or inside the image, an offline snapshot, a disk left out: each is told from the others."""
    two, partial, mem, internal, offline = (
        read(f"{version}/05-{name}")
        for name in ("two-disks", "partial-vdb-no", "external-memory", "internal", "offline")
    )

    assert two.disks == (
        external("vda", "two-a.qcow2", "daisy.qcow2"),
        external("vdb", "two-b.qcow2", "daisy-b.qcow2"),
    )
    assert partial.disks == (external("vda", "p-a.qcow2", "two-a.qcow2"), snapshot.SnapshotDisk("vdb"))
    assert (mem.state, mem.memory, mem.memory_file, mem.location) == (
        "running",
        "external",
        f"{DIR}/mem.save",
        "external",
    )
    assert (internal.state, internal.memory, internal.location) == ("running", "internal", "internal")
    assert [(d.target, d.external, d.overlay, d.image) for d in internal.disks] == [
        ("vda", False, "", ""),
        ("vdb", False, "", ""),
    ]
    assert (offline.state, offline.memory, offline.parent) == ("shutoff", "no", "int")


def test_the_branch_of_a_revert() -> None:
    """What libvirt 11.3 adds after a revert is carried, and the branch starts on its new overlay."""
    first, branch = read("11.3.0/04-after-revert-snap1-daisy"), read("11.3.0/04-branch-b1")

    assert first.current
    assert [text.split(">")[0] for text in first.carried] == ["<revertDisks"]
    assert (branch.parent, branch.disks) == (
        "snap1-daisy",
        (external("vda", "branch-b1.qcow2", "daisy.1795453156"),),
    )


@pytest.mark.parametrize(
    "name", ["dropin-minimal-ok", "redefine-full-q1", "redefine-full-q2", "redefine-minimal-q2"]
)
def test_what_libvirt_takes_by_hand(name: str) -> None:
    """The smallest file that libvirt takes is enough for us, and settles to one form."""
    found = read(f"interop/{name}")

    assert found.disks[0].overlay == f"{DIR}/{found.name}.qcow2"
    assert found.disks[0].image.startswith(DIR)
    built = snapshot_xml.build(found)
    assert snapshot_xml.build(snapshot_xml.parse(built, "f")) == built


def test_the_legacy_form_is_read() -> None:
    """A file with no more than a UUID in <domain>: we know the overlay, and not what is below it."""
    (disk,) = read("interop/dropin-legacy").disks

    assert (disk.overlay, disk.image) == (f"{DIR}/leg.qcow2", "")


# what is not said


@pytest.mark.parametrize(
    ("state", "memory", "expected"),
    [
        ("disk-snapshot", "", ("no", "")),
        ("shutoff", "", ("no", "")),
        ("running", "", ("internal", "")),
        ("running", "<memory/>", ("internal", "")),
        ("running", "<memory file='/m'/>", ("external", "/m")),
        ("running", "<memory snapshot='no'/>", ("no", "")),
    ],
)
def test_memory_by_libvirts_rules(state: str, memory: str, expected: tuple[str, str]) -> None:
    """virDomainSnapshotDefParse: a file means external; else the state says whether there was memory to save."""
    found = snapshot_xml.parse(document(state=f"<state>{state}</state>", disks=memory), "f")

    assert (found.memory, found.memory_file) == expected


@pytest.mark.parametrize(
    ("disk", "overlay"),
    [
        (
            "<disk name='vda' snapshot='external' type='block'><driver type='qcow2'/><source dev='/dev/b'/></disk>",
            "/dev/b",
        ),
        (
            "<disk name='vda' snapshot='external' type='network'><source protocol='rbd' name='p/v'/></disk>",
            "p/v",
        ),
        ("<disk name='vda'><source file='/i/a.s'/></disk>", "/i/a.s"),
        ("<disk name='vda'/>", ""),
        ("<disk name='vda' snapshot='manual'/>", ""),
        ("<disk name='vda' snapshot='internal'><source file='/i/a'/></disk>", ""),
    ],
)
def test_a_disk_that_we_would_not_write_is_carried(disk: str, overlay: str) -> None:
    """We know its overlay where it has one, and write it as it came: here a rewrite by us would have made it another disk."""
    found = snapshot_xml.parse(document(disks=f"<disks>{disk}</disks>"), "f")

    assert found.disks[0].overlay == overlay
    assert found.disks[0].external == bool(overlay)
    flat = "".join(line.strip() for line in snapshot_xml.build(found).splitlines())
    assert f"<disks>{disk}</disks>" in flat


def test_namespaces_of_others_survive() -> None:
    """What virt-manager and people put into a domain has the same names afterwards, and its usual prefixes."""
    osinfo = (
        "<libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>"
        "<libosinfo:os id='http://debian.org/debian/12'/></libosinfo:libosinfo>"
    )
    other = "<x:note xmlns:x='urn:x' x:by='me' xml:lang='de'>Grüße</x:note>"
    domain = f"<domain type='qemu'><name>d</name><metadata>{osinfo}{other}</metadata></domain>"
    found = snapshot_xml.parse(document(domain=domain), "f")

    flat = "".join(line.strip() for line in snapshot_xml.build(found).splitlines())
    assert osinfo in flat
    assert flat.count("<ns1:note xmlns:ns1='urn:x' ns1:by='me' xml:lang='de'>Grüße</ns1:note>") == 1


# what is refused


def document(
    *,
    name: str = "<name>s</name>",
    state: str = "<state>disk-snapshot</state>",
    created: str = "<creationTime>1</creationTime>",
    disks: str = "",
    domain: str = "",
) -> str:
    return f"<domainsnapshot>{name}{state}{created}{disks}{domain}</domainsnapshot>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (document(name=""), "name can't be empty"),
        (document(name="<name>a/b</name>"), "name can't contain '/'"),
        (document(name="<name>.hidden</name>"), "name can't start with '.'"),
        (document(name="<name>a\nb</name>"), "name can't contain control characters"),
        (document(name=f"<name>{'x' * 248}</name>"), "name can't be longer than 247 bytes"),
        (document(state=""), "missing state from existing snapshot"),
        (document(created=""), "missing creationTime from existing snapshot"),
        (document(created="<creationTime>soon</creationTime>"), "missing creationTime from existing snapshot"),
        (document(created=f"<creationTime>{'9' * 5000}</creationTime>"), "missing creationTime from existing snapshot"),
        ("<domain/>", "expecting root element of 'domainsnapshot', not 'domain'"),
        (document()[:-1], "unclosed token"),
        ("", "no element found"),
    ],
)  # fmt: skip
def test_refused(text: str, reason: str) -> None:
    """One line names the file and what is wrong with it."""
    with pytest.raises(errors.BadXml) as caught:
        snapshot_xml.parse(text, "/s/f.xml")

    assert str(caught.value).startswith("XML error: /s/f.xml: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
