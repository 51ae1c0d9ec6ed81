"""libvirtd reads the files that we write, rewrites them, and we read what it made of them: by value, no machine runs."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from qmpsnap import paths
from qmpsnap.model import domain_xml, names, snapshot, snapshot_xml
from qmpsnap.talk import store
from tests import requires
from tests.libvirt.libvirtd import Libvirtd

pytestmark = requires.requires_libvirt

XML = Path(__file__).parent.parent / "xml"
UUID = "15cdafcd-599b-45c6-b57f-fd2d06155301"
# libvirt writes a file anew through `<name>.xml.new`: 248 to 251 bytes it can read, and not rewrite.
LONGEST = 255 - len(".xml.new")
NAMES = [
    *("plain", "with space", " before", "behind ", "ünïcödé", "日本語 😀", "cafe\u0301", "a&b<c>d", "q'u\"ote", "]]>"),
    *("-dash", "--help", "$(x)`y`;*", "100%20", "nbsp\xa0x", "rtl\u202eabc", "x" * LONGEST, "\ufdd0", "<!--"),
]  # fmt: skip
DESCRIPTION = " first\n\tsecond \n\n\x85\u2028<b>&amp; 'q' \"r\" ]]> <!-- ü -->\nlast "
DIR = '/i/it\'s [50%] "grün" & <all>'


def domain(name: str = "daisy", **values: Any) -> domain_xml.RecordedDomain:
    """A domain with a disk; its paths and ids have every character that XML minds."""
    disk = domain_xml.RecordedDisk(
        "vda", "virtio", f"{DIR}/top", "qcow2", qdev='/machine/it\'s "x"\ty\nz/<&>', was=(f"{DIR}/0",)
    )
    found = domain_xml.RecordedDomain(
        name, UUID, machine="q35", monitor='/run/it\'s "m" & <n>', agent="/run/ü", disks=(disk,)
    )
    return attrs.evolve(found, **values)


def chain(
    of: domain_xml.RecordedDomain, wanted: Iterable[str], current: str = ""
) -> dict[str, snapshot.Snapshot]:
    """Snapshots of all disks, each the child of the one before it; the last is current unless another is."""
    wanted, found, parent = list(wanted), {}, ""
    for n, name in enumerate(wanted):
        images = {d.target: (f"{DIR}/{d.target}.{n}", "qcow2") for d in of.disks if d.file}
        found[name] = snapshot.Snapshot(
            name,
            1700000000 + n,
            description=DESCRIPTION,
            parent=parent,
            disks=tuple(
                snapshot.SnapshotDisk(target, f"{DIR}/{target}.{n + 1}", "qcow2", file, form)
                for target, (file, form) in images.items()
            ),
            current=name == (current or wanted[-1]),
            domain=domain_xml.build(of.on(images)),
        )
        parent = name
    return found


def record(
    short_dir: Path, of: domain_xml.RecordedDomain, snapshots: Mapping[str, snapshot.Snapshot]
) -> Path:
    """Our state directory with them."""
    home = store.Store(paths.Paths(f"{short_dir}/state", f"{short_dir}/run", f"{short_dir}/config"))
    home.prepare()
    home.record(of.name, of, snapshots)
    return short_dir / "state"


def read(files: Mapping[str, bytes]) -> snapshot.Tree:
    return snapshot.Tree.of(snapshot_xml.parse(content, file) for file, content in files.items())


def without_domain(value: snapshot.Snapshot) -> snapshot.Snapshot:
    """All but the text of <domain>, to which libvirt adds the hardware that every machine has."""
    return attrs.evolve(value, domain="", inactive="")


def recorded(value: snapshot.Snapshot) -> domain_xml.RecordedDomain:
    """The domain inside, but for what libvirt settles: the emulator's path and the machine type's version."""
    found = domain_xml.parse(value.domain, value.name)
    return attrs.evolve(found, emulator="", machine="q35")


# it reads ours


def test_every_name_is_loaded(libvirt: Libvirtd, short_dir: Path) -> None:
    """Whatever a snapshot may be called here, libvirt finds its file, its parent and its text."""
    ours = chain(domain(), NAMES)
    libvirt.adopt(record(short_dir, domain(), ours))

    listed = libvirt.lines("snapshot-list", "daisy", "--name")
    assert sorted(listed) == sorted(NAMES)
    assert listed == sorted(NAMES, key=names.sort_key)
    assert libvirt.lines("snapshot-current", "daisy", "--name") == [NAMES[-1]]
    tree = libvirt.lines("snapshot-list", "daisy", "--tree")
    assert [line.partition("+- ")[2] or line for line in tree[::2]][: len(NAMES)] == NAMES
    for name, value in ours.items():
        found = snapshot_xml.parse(dump(libvirt, name), name)
        assert without_domain(found) == attrs.evolve(without_domain(value), current=False)
        assert recorded(found) == domain_xml.parse(value.domain, name)
    assert libvirt.complaints == []


def dump(libvirt: Libvirtd, name: str) -> str:
    return libvirt.ok("snapshot-dumpxml", "--domain", "daisy", "--snapshotname", name)


BUSES = {
    "q35": [
        *(
            ("scsi", "sda", "disk"),
            ("sata", "sdb", "disk"),
            ("usb", "sdc", "disk"),
            ("virtio", "vdb", "disk"),
        ),
        *(("sata", "sdd", "cdrom"), ("scsi", "sde", "cdrom")),
    ],
    "pc": [("ide", "hda", "disk"), ("ide", "hdb", "cdrom"), ("fdc", "fda", "floppy")],
}


def test_every_bus_is_loaded(libvirt: Libvirtd, short_dir: Path) -> None:
    """Every kind of disk that we record is one to libvirt, and so is a block device, and an empty drive."""
    machines = {}
    for n, (machine, disks) in enumerate(BUSES.items()):
        extra = [
            domain_xml.RecordedDisk(
                target,
                bus,
                "" if device == "cdrom" else f"/dev/vg/{target}",
                "" if device == "cdrom" else "raw",
                device,
                f"/machine/{target}",
            )
            for bus, target, device in disks
        ]
        of = domain(machine, uuid=f"{UUID[:-1]}{n}", machine=machine)
        machines[machine] = of = attrs.evolve(of, disks=(*of.disks, *extra))
        state = record(short_dir, of, chain(of, ["s1", "s2"]))
    libvirt.adopt(state)

    for name, of in machines.items():
        assert libvirt.lines("snapshot-list", name, "--tree")[:3] == ["s1", "  |", "  +- s2"]
        found = domain_xml.parse(
            snapshot_xml.parse(libvirt.ok("snapshot-dumpxml", name, "s1"), "s1").domain, "s1"
        )
        shown, ours = (sorted((d.target, d.bus, d.device, d.qdev) for d in one.disks) for one in (found, of))
        assert shown == ours
    assert libvirt.complaints == []


def test_what_libvirt_cannot_take(libvirt: Libvirtd, short_dir: Path) -> None:
    """libvirt has no emulated NVMe disks: it says so of that snapshot, and the others are there."""
    ours = chain(domain(), ["s1", "s2"])
    nvme = attrs.evolve(domain(), disks=(domain_xml.RecordedDisk("nvmea", "nvme", "/i/a", "qcow2"),))
    ours["s2"] = attrs.evolve(ours["s2"], domain=domain_xml.build(nvme))
    libvirt.adopt(record(short_dir, domain(), ours))

    assert libvirt.lines("snapshot-list", "daisy", "--name") == ["s1"]
    assert "Invalid value for attribute 'bus' in element 'target': 'nvme'" in "".join(libvirt.complaints)


def test_redefine(libvirt: Libvirtd, short_dir: Path) -> None:
    """Without a restart: each file is taken by --redefine, and passes libvirt's own schema."""
    of = domain()
    of = of.on({"vda": ("/i/plain.top", "qcow2")})  # the schema has no spaces in paths
    plain = {
        name: attrs.evolve(
            value,
            disks=(snapshot.SnapshotDisk("vda", f"/i/plain.{n + 1}", "qcow2", f"/i/plain.{n}", "qcow2"),),
            domain=domain_xml.build(of.on({"vda": (f"/i/plain.{n}", "qcow2")})),
        )
        for n, (name, value) in enumerate(chain(of, NAMES).items())
    }
    state = record(short_dir, of, plain)
    libvirt.start()
    libvirt.ok("define", state / "domain/daisy.xml")
    for name in NAMES:
        current = ["--current"] if plain[name].current else []
        file = state / f"snapshot/daisy/{name}.xml"
        libvirt.ok("snapshot-create", "daisy", file, "--redefine", "--validate", *current)

    found = read(libvirt.written("daisy"))
    assert {n: without_domain(s) for n, s in found.snapshots.items()} == {
        n: without_domain(s) for n, s in plain.items()
    }
    assert libvirt.complaints == []


# it rewrites ours


def test_deleted_in_the_middle(libvirt: Libvirtd, short_dir: Path) -> None:
    """libvirt lives, gives the child to the grandparent, and keeps what is ours in both."""
    ours = chain(domain(), ["s1", "s 2", "ß'3", "s4"])
    libvirt.adopt(record(short_dir, domain(), ours))

    libvirt.ok("snapshot-delete", "daisy", "s 2", "--metadata")

    files = libvirt.written("daisy")
    assert sorted(files) == ["s1.xml", "s4.xml", "ß'3.xml"]
    assert b"virsh snapshot-edit" in files["ß'3.xml"], "libvirt has not written this file"
    found = read(files)
    assert [(s.name, s.parent, s.current) for s in found.ordered()] == [
        ("s1", "", False),
        ("s4", "ß'3", True),
        ("ß'3", "s1", False),
    ]
    for value in found.snapshots.values():
        before = ours[value.name]
        assert value.description == before.description
        assert [(d.target, d.overlay) for d in value.disks] == [(d.target, d.overlay) for d in before.disks]
        then, now = domain_xml.parse(before.domain, "f"), recorded(value)
        if libvirt.version < (10,) and value.name == "ß'3":
            # This one takes --metadata for a merge, and has written that the state is now where it would have merged it.
            assert now.disks[0].file == ours["s 2"].disks[0].image
            now = attrs.evolve(now, disks=then.disks)
        assert now == then


def test_deleted_one_by_one(libvirt: Libvirtd, short_dir: Path) -> None:
    """In any order, until the directory is gone; the daemon that libvirt's legacy form crashes (facts 6.4) is well."""
    libvirt.adopt(record(short_dir, domain(), chain(domain(), [*"abcde"])))

    for name in "caebd":
        libvirt.ok("snapshot-delete", "daisy", name, "--metadata")
        tree = snapshot.Tree({})
        if (libvirt.snapshots / "daisy").exists():
            tree = read(libvirt.written("daisy"))
        left = sorted(tree.snapshots)
        assert [tree.get(n).parent for n in left] == ["", *left][: len(left)]
        assert (tree.current.name if tree.current else "") == (max(left) if left else "")
    assert list((libvirt.snapshots / "daisy").iterdir()) == []
    assert libvirt.complaints == []


def test_another_current(libvirt: Libvirtd, short_dir: Path) -> None:
    """The marker moves in both files, and what libvirt left can be taken back into our directory."""
    ours = chain(domain(), ["s1", "s2"])
    state = record(short_dir, domain(), ours)
    libvirt.adopt(state)

    libvirt.ok("snapshot-current", "daisy", "s1")

    found = read(libvirt.written("daisy"))
    assert [s.current for s in found.ordered()] == [True, False]
    shutil.rmtree(state / "snapshot/daisy")
    shutil.copytree(libvirt.snapshots / "daisy", state / "snapshot/daisy")
    tree, bad = store.Store(paths.Paths(str(state), "", "")).snapshots("daisy")
    assert bad == []
    assert {n: without_domain(s) for n, s in tree.snapshots.items()} == {
        n: attrs.evolve(without_domain(s), current=n == "s1") for n, s in ours.items()
    }


# we rewrite its own


GROUPS = ["9.0.0/01-blog-snap", "9.0.0/05-", "11.3.0/01-blog-snap", "11.3.0/05-", "11.3.0/04-"]


def samples(group: str) -> dict[str, str]:
    """Snapshots of one tree as libvirt wrote them, by name; of a machine type that both QEMUs have."""
    files = [
        path.read_text().replace("pc-i440fx-10.0", "pc-i440fx-7.2")
        for path in sorted(XML.glob(f"{group}*.xml"))
        if not any(word in path.name for word in ("dumpxml", "-etc-", "after-delete"))
    ]
    return {snapshot_xml.parse(text, group).name: text for text in files}


def test_what_we_rewrote_is_the_same_to_libvirt(libvirt: Libvirtd, short_dir: Path) -> None:
    """Snapshots of libvirt of every kind, read by us and written again: it shows the same of each."""
    for n, group in enumerate(GROUPS):
        for whose in ("theirs", "ours"):
            of = domain(f"{whose}{n}", uuid=str(uuid.uuid4()))
            record(short_dir, of, {})
            folder = short_dir / f"state/snapshot/{of.name}"
            folder.mkdir()
            for name, text in samples(group).items():
                ours = snapshot_xml.build(snapshot_xml.parse(text, name))
                (folder / f"{name}.xml").write_text(ours if whose == "ours" else text)
    libvirt.adopt(short_dir / "state")

    for n, group in enumerate(GROUPS):
        listed = libvirt.lines("snapshot-list", f"theirs{n}", "--name")
        assert listed == sorted(samples(group), key=names.sort_key)
        for name, verb in itertools.product(listed, ("snapshot-info", "snapshot-dumpxml")):
            theirs, ours = (libvirt.ok(verb, f"{whose}{n}", name) for whose in ("theirs", "ours"))
            assert ours.replace(f"ours{n}", f"theirs{n}") == theirs, (group, name, verb)
