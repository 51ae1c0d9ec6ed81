"""A domain as libvirt's XML: what is written for each kind of disk, and what a damaged file is told apart by."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpsnap import errors
from qmpsnap.model import domain_xml, snapshot_xml

XML = Path(__file__).parent.parent / "xml"
UUID = "c820233a-4109-4a00-9040-fa52ae7dcec7"
DOMAIN = domain_xml.RecordedDomain(
    "daisy",
    UUID,
    memory_kib=2097152,
    vcpus=4,
    machine="pc-q35-7.2",
    emulator="/usr/bin/qemu-system-x86_64",
    monitor="/run/it's.sock",
    agent="/run/agent.sock",
    disks=(
        domain_xml.RecordedDisk("vda", "virtio", "/i/b", "qcow2", qdev="/machine/x", was=("/i/a",)),
        domain_xml.RecordedDisk("sda", "scsi", "/dev/vg/lv", "raw"),
        domain_xml.RecordedDisk("sdb", "sata", "", "", "cdrom", qdev="cd0"),
    ),
)
FILE = """\
<domain type='qemu'>
  <name>daisy</name>
  <uuid>c820233a-4109-4a00-9040-fa52ae7dcec7</uuid>
  <metadata>
    <qmpsnap:domain xmlns:qmpsnap='https://qmpsnap.invalid/xmlns/domain/1'>
      <qmpsnap:monitor path='/run/it&apos;s.sock'/>
      <qmpsnap:agent path='/run/agent.sock'/>
      <qmpsnap:disk target='vda' qdev='/machine/x'>
        <qmpsnap:was file='/i/a'/>
      </qmpsnap:disk>
      <qmpsnap:disk target='sdb' qdev='cd0'/>
    </qmpsnap:domain>
  </metadata>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/i/b'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/lv'/>
      <target dev='sda' bus='scsi'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdb' bus='sata'/>
    </disk>
  </devices>
</domain>
"""


def test_the_file() -> None:
    """A block device is one by its path, an empty drive has no source, and what is ours alone stands in <metadata>."""
    assert domain_xml.build(DOMAIN) == FILE


def test_the_file_reads_back() -> None:
    assert domain_xml.parse(FILE, "f") == DOMAIN


def test_nothing_of_ours_no_metadata() -> None:
    """A domain that has no monitor of its own and no device to find again is libvirt's words only."""
    built = domain_xml.build(domain_xml.RecordedDomain("d", UUID))

    assert "<metadata" not in built
    assert domain_xml.parse(built, "f") == domain_xml.RecordedDomain("d", UUID)


@pytest.mark.parametrize("version", ["9.0.0", "11.3.0"])
def test_libvirts_domain_is_read(version: str) -> None:
    """A definition that libvirt keeps, and the one in its snapshot, name the disk and its layer."""
    kept = domain_xml.parse((XML / version / "01-etc-after-3-snaps.xml").read_bytes(), "f")
    taken = snapshot_xml.parse((XML / version / "01-blog-snap3-daisy.xml").read_bytes(), "f")

    then = domain_xml.parse(taken.domain, "f")
    for found, file in ((kept, "snap3-daisy"), (then, "snap2-daisy")):
        assert (found.name, found.memory_kib, found.vcpus, found.arch) == ("daisy", 131072, 1, "x86_64")
        assert found.machine.startswith("pc-i440fx-")
        assert found.disks == (
            domain_xml.RecordedDisk("vda", "virtio", f"/export/vmimgs/{file}.qcow2", "qcow2"),
        )


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("domain type='qemu'", "network type='qemu'", "expecting root element of 'domain', not 'network'"),
        ("<name>daisy</name>", "", "name, uuid or os/type is missing"),
        (f"<uuid>{UUID}</uuid>", "<uuid/>", "name, uuid or os/type is missing"),
        ("<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>", "", "name, uuid or os/type is missing"),
        (">2097152</memory>", ">2 GiB</memory>", "memory is no number: '2 GiB'"),
        (">4</vcpu>", ">" + "9" * 5000 + "</vcpu>", "vcpu is no number: '" + "9" * 32 + "'"),
        (">4</vcpu>", ">٤</vcpu>", "vcpu is no number: '٤'"),
    ],
)
def test_refused(before: str, after: str, reason: str) -> None:
    """One line names the file and what is wrong with it."""
    text = FILE.replace(before, after).replace(
        "</domain>", f"</{after.split()[0]}>" if "net" in after else "</domain>"
    )

    with pytest.raises(errors.BadXml) as caught:
        domain_xml.parse(text, "/s/f.xml")

    assert str(caught.value) == f"XML error: /s/f.xml: {reason}"
