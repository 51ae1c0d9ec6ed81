"""Targets of disks, and chains in a view."""

from __future__ import annotations

from qmpsnap.model import chain


def test_targets_follow_bus_and_order() -> None:
    """Each bus counts for itself, in the order of the machine, as libvirt names them."""
    devices = [("p0", "virtio"), ("sd5", "scsi"), ("p1", "virtio"), ("ih", "ide"), ("s0", "sata")]

    found = chain.targets({}, devices)

    assert found == {"p0": "vda", "sd5": "sda", "p1": "vdb", "ih": "hda", "s0": "sdb"}


def test_an_id_that_is_a_target_is_one() -> None:
    """A device called vdc is vdc; others take what is free."""
    devices = [("/machine/peripheral/vdc/virtio-backend", "virtio"), ("x", "virtio"), ("vda", "ide")]

    assert chain.targets({}, devices) == {
        "/machine/peripheral/vdc/virtio-backend": "vdc",
        "x": "vda",
        "vda": "hda",
    }


def test_recorded_targets_stay() -> None:
    """A disk plugged in before the others does not take their names."""
    assert chain.targets({"old": "vda"}, [("new", "virtio"), ("old", "virtio")]) == {
        "old": "vda",
        "new": "vdb",
    }


def test_names_of_disks_that_are_not_there_are_kept_for_them() -> None:
    """A new disk does not become the one that was left out."""
    assert chain.targets({}, [("new", "virtio")], ["vda", "vdb"]) == {"new": "vdc"}


def test_more_than_26() -> None:
    """After vdz comes vdaa."""
    found = chain.targets({}, [(f"d{n}", "virtio") for n in range(28)])

    assert [found[f"d{n}"] for n in (25, 26, 27)] == ["vdz", "vdaa", "vdab"]


def test_a_job_belongs_to_the_disk_whose_layer_it_holds() -> None:
    """A job on a middle layer is the disk's job."""
    layers = (chain.Layer("top", "qcow2", "/t", 1), chain.Layer("mid", "qcow2", "/m", 1))
    disk = chain.Disk("vda", "virtio", "disk", "q", layers)
    other = chain.Disk("vdb", "virtio", "disk", "r", (chain.Layer("o", "raw", "/o", 1),))
    job = chain.Job("j", "stream", "running", nodes=frozenset({"mid"}))
    view = chain.View("d", "running", False, (disk, other), (job,))

    assert view.job_of(disk) == job
    assert view.job_of(other) is None
    assert view.by_image("/m") == (disk, 1)
    assert view.by_image("/x") is None
