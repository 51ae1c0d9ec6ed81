"""Random snapshots, domains, trees and garbage: what is written reads back, and what is hostile is only ever refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qmpsnap import errors
from qmpsnap.model import domain_xml, names, snapshot, snapshot_xml, xmltree

#: Everything that XML 1.0 can hold (2.2), the awkward ones more often than chance has them.
CHARACTERS = st.one_of(
    st.sampled_from("\t\n\r <>&'\"=/;]-!?#x \x7f\x85\xa0\u2028\u200b\ufdd0\ufffd\U0010ffff"),
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"),
)
TEXTS = st.text(CHARACTERS, max_size=30)
WORDS = st.text(CHARACTERS, min_size=1, max_size=10)
PATHS = TEXTS.map("/i/{}".format)


def _possible(name: str) -> bool:
    try:
        names.check(name, "snapshot")
    except errors.BadName:
        return False
    return True


NAMES = st.one_of(WORDS, st.text(min_size=1, max_size=60)).filter(_possible)
TARGETS = st.integers(0, 9).map(lambda n: f"vd{'abcdefghij'[n]}")

DISKS = st.builds(
    domain_xml.RecordedDisk,
    target=TARGETS,
    bus=st.sampled_from(["virtio", "scsi", "sata"]),
    file=st.one_of(st.just(""), PATHS, TEXTS.map("/dev/{}".format)),
    format=st.sampled_from(["", "raw", "qcow2"]),
    device=st.sampled_from(["disk", "cdrom", "floppy"]),
    qdev=TEXTS,
    was=st.lists(PATHS, max_size=3).map(tuple),
)
DOMAINS = st.builds(
    domain_xml.RecordedDomain,
    name=NAMES,
    uuid=st.uuids().map(str),
    memory_kib=st.integers(0, 2**40),
    vcpus=st.integers(1, 999),
    machine=TEXTS,
    emulator=TEXTS,
    monitor=TEXTS,
    agent=TEXTS,
    disks=st.lists(DISKS, max_size=4, unique_by=lambda disk: disk.target).map(tuple),
)


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[snapshot.Snapshot, domain_xml.RecordedDomain]:
    """A snapshot of a domain; its disks are the domain's."""
    domain = draw(DOMAINS)
    disks = []
    for disk in domain.disks:
        overlay = draw(st.one_of(st.just(""), PATHS))
        state = (overlay, draw(st.sampled_from(["qcow2", "raw"])), disk.file, disk.format) if overlay else ()
        disks.append(snapshot.SnapshotDisk(disk.target, *state))
    memory = draw(st.sampled_from(["no", "internal", "external"]))
    value = snapshot.Snapshot(
        name=draw(NAMES),
        creation_time=draw(st.integers(0, 10**16 - 1)),
        state=draw(st.sampled_from(["disk-snapshot", "running", "paused", "shutoff"])),
        description=draw(TEXTS),
        parent=draw(st.one_of(st.just(""), NAMES)),
        disks=tuple(disks),
        current=draw(st.booleans()),
        memory=memory,
        memory_file=draw(PATHS) if memory == "external" else "",
        domain=domain_xml.build(domain),
        inactive=draw(st.sampled_from(["", "<inactiveDomain type='qemu'/>"])),
    )
    return value, domain


@given(snapshots())
def test_a_snapshot_reads_back(pair: tuple[snapshot.Snapshot, domain_xml.RecordedDomain]) -> None:
    """Every text that XML can hold comes back as it was; a file that was read once does not change any more."""
    value, domain = pair

    built = snapshot_xml.build(value)
    found = snapshot_xml.parse(built.encode(), "f")

    plain = attrs.evolve(found, domain=value.domain, inactive=value.inactive)
    assert plain == value
    assert domain_xml.parse(found.domain, "f") == domain
    assert snapshot_xml.build(found) == built
    assert snapshot_xml.parse(snapshot_xml.dump(value), "f") == attrs.evolve(found, current=False)


@given(DOMAINS)
def test_a_domain_reads_back(domain: domain_xml.RecordedDomain) -> None:
    assert domain_xml.parse(domain_xml.build(domain).encode(), "f") == domain


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> ET.Element:
    """An element of somebody else: any attributes, namespaces, and texts in its leaves."""
    spaces = st.sampled_from(["", "", "{urn:a}", "{urn:b}", f"{{{xmltree.NAMESPACE}}}"])
    tags = st.sampled_from(["a", "b-c", "ü", "disk"])
    element = ET.Element(draw(spaces) + draw(tags))
    keys = st.one_of(
        st.tuples(spaces, tags).map("".join), st.just("{http://www.w3.org/XML/1998/namespace}lang")
    )
    for key, value in draw(st.dictionaries(keys, TEXTS, max_size=3)).items():
        element.set(key, value)
    children = draw(st.lists(elements(depth - 1), max_size=3)) if depth else []
    element.extend(children)
    if not children:
        element.text = draw(TEXTS)
    return element


def _exact(element: ET.Element) -> object:
    text = (element.text or "") if not len(element) else ""
    return element.tag, sorted(element.attrib.items()), text, [_exact(child) for child in element]


@given(elements())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_element_reads_back(element: ET.Element) -> None:
    """Written in our layout, carried from one document to another: always the same element."""
    before = _exact(element)

    again = xmltree.parse(xmltree.carried(element), "f")
    assert _exact(again) == before
    document = xmltree.write(again)

    assert _exact(xmltree.parse(document, "f")) == before
    # Every attribute stands in single quotes, and no raw quote of that kind is inside one.
    for tag in re.findall(r"<[^!?/][^<>]*>", document):
        assert re.fullmatch(r"<[^\s/>]+( [^\s=]+='[^'<]*')*/?>", tag), tag


# what is hostile

SEED = snapshot_xml.build(
    snapshot.Snapshot(
        "s2",
        1,
        description="d",
        parent="s1",
        disks=(snapshot.SnapshotDisk("vda", "/o", "qcow2", "/i", "raw"), snapshot.SnapshotDisk("vdb")),
        domain=domain_xml.build(
            domain_xml.RecordedDomain(
                "d", "u", disks=(domain_xml.RecordedDisk("vda", "virtio", "/i", "raw", qdev="q"),)
            )
        ),
    )
).encode()
#: What libvirt itself wrote.
SAMPLES = [
    SEED,
    *(path.read_bytes() for path in sorted((Path(__file__).parent.parent / "xml").glob("*/*.xml"))),
]
GARBAGE = [
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"&#0;", b"&#xd800;", b"<![CDATA[", b"]]>", b"<?p?>", b"<!--", b"-->"),
    *(b"<?xml version='1.1'?>", b"<?xml version='1.0' encoding='x'?>", b"xmlns:xml='u'", b"xmlns='u'", b" a='1' a='2'"),
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbf\xbe", b"<a>" * 300, b"9" * 5000, b"<domain>", b"</domain>", b"'", b'"', b"<"),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file, ours or libvirt's, cut, doubled, swapped and sprinkled with what should not be there."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        data[start:end] = draw(
            st.one_of(st.sampled_from(GARBAGE), st.binary(max_size=8), st.just(bytes(data[:end])))
        )
    return bytes(data)


def _refusal(parse: Callable[[bytes, str], object], data: bytes) -> str:
    """What is said of the file, or nothing when it is accepted; anything but `Corrupt` fails the test."""
    try:
        parse(data, "/f")
    except errors.Corrupt as error:
        return str(error)
    return ""


@given(damaged())
@settings(max_examples=400)
def test_a_damaged_file_is_refused_or_means_something(data: bytes) -> None:
    """Nothing but `Corrupt` comes out of a bad file, in one line; whatever is accepted could have been ours."""
    for parse in (snapshot_xml.parse, domain_xml.parse):
        said = _refusal(parse, data)
        assert not said or said.startswith("XML error: /f: ")
        assert "\n" not in said
    if not _refusal(snapshot_xml.parse, data):
        built = snapshot_xml.build(snapshot_xml.parse(data, "/f"))
        assert snapshot_xml.build(snapshot_xml.parse(built, "/g")) == built
    if not _refusal(domain_xml.parse, data):
        found = domain_xml.parse(data, "/f")
        assert domain_xml.parse(domain_xml.build(found), "/g") == found


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
@example("<domainsnapshot>" * 2)
def test_garbage_is_refused(data: str | bytes) -> None:
    with pytest.raises(errors.Corrupt):
        snapshot_xml.parse(data, "/f")
    with pytest.raises(errors.Corrupt):
        domain_xml.parse(data, "/f")


IMPOSSIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@given(st.text(st.characters(exclude_categories=()), max_size=5))
@example("\r")
@example("\ud800")
def test_text_is_kept_or_refused(value: str) -> None:
    """No text is changed on its way: it comes back, or it is one that XML cannot hold and was refused."""
    root = ET.Element("r")
    if IMPOSSIBLE.search(value):
        with pytest.raises(errors.BadXml):
            xmltree.add(root, "e", value)
        return
    xmltree.add(root, "e", value, a=value)
    found = xmltree.parse(xmltree.write(root).encode(), "f")
    assert (xmltree.content(found, "e"), found[0].get("a")) == (value, value)


# trees

TREES = st.dictionaries(st.sampled_from("aBcDeFgHiJ"), st.sampled_from(["", *"aBcDeFgHiJ", "gone"])).map(
    lambda parents: snapshot.Tree.of(
        snapshot.Snapshot(name, 1, parent=parent, current=name < parent) for name, parent in parents.items()
    )
)


def _below(tree: snapshot.Tree, name: str) -> set[str]:
    """Everybody whose line of parents passes through ``name``, counted by walking up."""
    found = set()
    for start in tree.snapshots.values():
        seen, at = {start.name}, start.parent
        while at in tree.snapshots and at not in seen and at != name:
            seen.add(at)
            at = tree.snapshots[at].parent
        if at == name and start.name != name:
            found.add(start.name)
    return found


@given(TREES)
def test_a_tree_counts_right(tree: snapshot.Tree) -> None:
    """Also with cycles, orphans and snapshots that are their own parents: family() and descendants() agree with walking up."""
    family = tree.family()
    assert family.keys() == tree.snapshots.keys()
    for name in tree.snapshots:
        below = [s.name for s in tree.descendants(name)]
        assert len(below) == len(set(below))
        assert set(below) == _below(tree, name)
        children = {s.name for s in tree.snapshots.values() if s.parent == name != s.name}
        assert {s.name for s in tree.children(name)} == children
        assert family[name] == (len(children), len(below))
        parents_first = [*below]
        for child in below:
            assert tree.parent(child) == name or tree.parent(child) in parents_first
    claims = [name for name, value in tree.snapshots.items() if value.current]
    assert (tree.current.name if tree.current else "") in ([*claims] or [""])
