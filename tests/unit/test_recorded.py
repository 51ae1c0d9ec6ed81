"""What is recorded of a domain: active layers, former ones, and the way back from the file."""

from __future__ import annotations

from pathlib import Path

from qmpsnap.model import domain_xml
from qmpsnap.own import seeing

DISK = domain_xml.RecordedDisk("vda", "virtio", "/i/base", "raw", qdev="/machine/peripheral/x/virtio-backend")
DOMAIN = domain_xml.RecordedDomain(
    "daisy", "c820233a-4109-4a00-9040-fa52ae7dcec7", monitor="/m", disks=(DISK,)
)


def test_former_layers_stay_known() -> None:
    """Each former active layer is remembered once, the newest last: an old command line may still name it."""
    disk = DISK.on("/i/s1", "qcow2").on("/i/s2", "qcow2").on("/i/s1", "qcow2").on("/i/s1", "qcow2")

    assert (disk.file, disk.format) == ("/i/s1", "qcow2")
    assert disk.was == ("/i/base", "/i/s2")


def test_the_first_and_the_newest_stay() -> None:
    """The record does not grow with the depth of the chain."""
    disk = DISK
    for n in range(100):
        disk = disk.on(f"/i/s{n}", "qcow2")

    assert disk.was[:2] == ("/i/base", f"/i/s{99 - domain_xml.FORMER}")
    assert disk.was[-1] == "/i/s98"
    assert len(disk.was) == 1 + domain_xml.FORMER


def test_the_file_reads_back() -> None:
    """A domain with an attached monitor, several layers and odd names survives its file."""
    domain = DOMAIN.on({"vda": ("/i/a <&\"'> b,c", "qcow2")})

    assert domain_xml.parse(domain_xml.build(domain), "f") == domain


def test_only_named_targets_move() -> None:
    """A disk that was left out of a snapshot keeps its layer."""
    assert DOMAIN.on({"vdb": ("/x", "qcow2")}) == DOMAIN


A = domain_xml.RecordedDisk("vda", "virtio", "/i/a.s1", "qcow2", qdev="anon/0", was=("/i/golden",))
B = domain_xml.RecordedDisk("vdb", "virtio", "/i/b.s1", "qcow2", qdev="anon/1", was=("/i/golden",))


def test_a_disk_is_told_by_its_image_first() -> None:
    """Places on the bus move when a disk is left out or changes its place; images do not."""
    lone = [("anon/0", ["/i/b.s1", "/i/golden"])]
    swapped = [("anon/0", ["/i/b.s2", "/i/b.s1", "/i/golden"]), ("anon/1", ["/i/a.s1", "/i/golden"])]

    assert domain_xml.identify([A, B], lone) == {"anon/0": "vdb"}
    assert domain_xml.identify([A, B], swapped) == {"anon/0": "vdb", "anon/1": "vda"}


def test_then_by_a_former_layer_that_it_runs_on_then_by_its_place() -> None:
    """An old command line names a former layer; an image that nobody knows is the disk of its place, once."""
    assert domain_xml.identify([A, B], [("new", ["/i/golden"])]) == {"new": "vda"}
    assert domain_xml.identify([A, B], [("anon/1", ["/i/strange"])]) == {"anon/1": "vdb"}
    assert domain_xml.identify([A], [("x", ["/i/a.s1"]), ("anon/0", ["/i/strange"])]) == {"x": "vda"}
    assert domain_xml.identify([A, B], [("x", ["/i/c", "/i/golden"]), ("anon/0", [])]) == {"anon/0": "vda"}


def test_a_layer_that_cannot_be_read_has_no_fingerprint(tmp_path: Path) -> None:
    """The base of a golden image's owner, say: those that can be read have theirs."""
    layer = tmp_path / "layer"
    layer.write_bytes(b"x")
    # A file that not even root can flush.
    found = seeing.frozen(["/proc/self/mem", str(layer), str(tmp_path / "gone")])
    assert [one.file for one in found] == [str(layer)]
