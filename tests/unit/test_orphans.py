"""Orphans and the trash by value: what nobody needs, what may be moved, what a crash means."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Collection

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap import errors
from qmpsnap.model import domain_xml, images
from qmpsnap.plan import names, orphans, trash

#: Names of the same image.
SAME = {"/i/link": "/i/old", "/i/hard": "/i/old", "/way/old": "/i/old", "/i/other-name-of-b": "/i/b"}
DIRTY = "/i/line\nbreak\udc80.qcow2"


def ident(name: str) -> images.Identity:
    return images.Identity("file", 1, zlib.crc32(SAME.get(name, name).encode("utf-8", "surrogateescape")))


ACTIVE = images.Need("active", "/i/b", "daisy", "vda")
RECORDED = domain_xml.RecordedDomain(
    "daisy",
    "u",
    disks=(domain_xml.RecordedDisk("vda", "virtio", "/i/b", "qcow2", was=("/i/base", "/i/old")),),
)
#: base <- a <- b is in use; old was ours; clone is anybody's; plain has no backing file.
CHAIN = {"/i/base": "", "/i/a": "/i/base", "/i/b": "/i/a", "/i/plain": ""}


def facts(
    backing: dict[str, str],
    *needs: images.Need,
    opened: Collection[str] = (),
    links: Collection[str] = (),
    folders: Collection[str] = (),
    operations: Collection[str] = (),
    unknown: tuple[str, ...] = (),
    recorded: tuple[domain_xml.RecordedDomain, ...] = (RECORDED,),
) -> orphans.Facts:
    found = {
        name: images.Found(name, ident(name), "qcow2", backing=below, stamp="1:2", length=7, allocated=5)
        for name, below in backing.items()
    }
    graph = images.Graph(found, needs or (ACTIVE,), unknown)
    seen = {
        name: orphans.Seen("" if name in links else name.replace("/way/", "/i/"), ident(name), name in opened)
        for name in backing
    }
    return orphans.Facts(graph, folders, recorded, seen, operations)


def found(what: orphans.Facts) -> dict[str, bool]:
    """File to whether it was ours, in order."""
    return {one.file: one.known for one in orphans.find(what)}


def test_what_nobody_needs() -> None:
    """A former layer of ours, and an overlay of which nobody can say whose it is; a plain image is none."""
    what = facts({**CHAIN, "/i/old": "/i/base", "/i/clone": "/i/base"})

    assert found(what) == {"/i/old": True, "/i/clone": False}
    old, clone = orphans.find(what)
    assert (old.domain, old.size, old.allocation, old.backing) == ("daisy", 7, 5, "/i/base")
    assert old.proof == (
        "it was a layer of disk vda of domain 'daisy'",
        "nothing that is known here needs it",
        "no image has it as its backing file",
        "no QEMU has it open",
    )
    assert clone.domain == ""
    assert clone.proof[0] == "it is an overlay of '/i/base', perhaps of a machine that is not known here"


def test_a_plain_image_that_was_a_layer() -> None:
    """The base of a chain that was pulled into one image; what has no backing file and was never ours stays out."""
    assert found(facts({"/i/b": "", "/i/base": "", "/i/plain": ""})) == {"/i/base": True}


@pytest.mark.parametrize(
    "need",
    [
        images.Need("state", "/i/old", "daisy", "s1"),
        images.Need("hold", "/i/old"),
        images.Need("operation", "/i/over", "daisy", "k1"),
        images.Need("open", "/i/over", "iris", "vdb"),
    ],
    ids=lambda need: need.kind,
)
def test_every_need_counts(need: images.Need) -> None:
    """The image that is needed, and all below it."""
    assert found(facts({**CHAIN, "/i/old": "/i/base", "/i/over": "/i/old"}, ACTIVE, need)).keys() <= {
        "/i/over"
    }


def test_an_image_that_somebody_has_open() -> None:
    """Nor is any below it an orphan: a machine may run on it."""
    images_ = {**CHAIN, "/i/old": "/i/base", "/i/over": "/i/old", "/i/top": "/i/over"}

    assert found(facts(images_, opened=["/i/over"])) == {"/i/top": False}
    assert found(facts(images_, opened=["/i/top"])) == {}


def test_top_first_and_ours_first() -> None:
    """In this order they may go. What was ours stays while something that was not is above it."""
    ours = {"/i/old": "/i/base", "/i/.qs-k9-0": "/i/old"}

    assert [*found(facts({**CHAIN, "/i/clone": "/i/a", **ours})).items()] == [
        ("/i/.qs-k9-0", True),
        ("/i/old", True),
        ("/i/clone", False),
    ]
    assert [*found(facts({**CHAIN, **ours, "/i/clone": "/i/old"})).items()] == [
        ("/i/.qs-k9-0", True),
        ("/i/clone", False),
        ("/i/old", False),
    ]


def test_a_temporary_file() -> None:
    """It is ours, and an orphan once its operation has ended."""
    made = {**CHAIN, names.temp("/i/x", "k9f", 3): "/i/b"}

    assert found(facts(made)) == {"/i/.qs-k9f-3": True}
    assert found(facts(made, operations=["k9f"])) == {}
    assert [names.maker(name) for name in ("/i/qs-k9-1", "/i/.qs-k9-1x", "/i/.qs--1", "/i/.qs-k9-1")] == [
        "",
        "",
        "",
        "k9",
    ]


def test_names_of_one_image() -> None:
    """What is needed by one name is needed by all; what is not is shown by its own names, whichever way they were found."""
    linked = {**CHAIN, "/i/old": "/i/base", "/i/link": "/i/base", "/i/hard": "/i/base"}

    assert found(facts(linked, links=["/i/link"])) == {"/i/hard": True, "/i/old": True}
    assert found(facts({**linked, "/i/other-name-of-b": "/i/a"}, images.Need("active", "/i/hard"))) == {
        "/i/b": False,
        "/i/other-name-of-b": False,
        "/i/a": False,
    }
    assert found(facts({**CHAIN, "/i/old": "/i/base", "/way/old": "/i/base"}, folders=["/way"])) == {
        "/i/old": True
    }


def test_only_known_directories() -> None:
    """Of another directory not every image is known, so nobody knows what is above."""
    elsewhere = {**CHAIN, "/else/x": "/i/base"}

    assert found(facts(elsewhere)) == {}
    assert found(facts(elsewhere, folders=["/else"])) == {"/else/x": False}


def test_circles_and_depth() -> None:
    """Headers that name each other, and a chain of ten thousand."""
    assert found(facts({**CHAIN, "/i/x": "/i/y", "/i/y": "/i/x", "/i/z": "/i/z"})) == dict.fromkeys(
        ["/i/z", "/i/x", "/i/y"], False
    )
    deep = {f"/i/{n}": f"/i/{n + 1}" for n in range(10_000)}
    assert [*found(facts({**CHAIN, **deep}))] == [*deep]


# --- what is chosen ---


def refusal(what: orphans.Facts, *files: str) -> str:
    with pytest.raises(errors.Refused) as caught:
        orphans.choose(what, files)
    return str(caught.value)


MANY = {**CHAIN, "/i/old": "/i/base", "/i/clone": "/i/base", "/i/over": "/i/clone", DIRTY: "/i/base"}


def test_only_ours_unless_named() -> None:
    """A linked clone may be another machine's disk: it goes when it is named, with or after what is above it."""
    assert [one.file for one in orphans.choose(facts(MANY), ())] == ["/i/old"]
    assert [one.file for one in orphans.choose(facts(MANY), ["/i/clone", "/i/over"])] == [
        "/i/over",
        "/i/clone",
    ]
    assert refusal(facts(MANY), "/i/clone", "/i/old") == (
        "'/i/clone' cannot be removed: the image '/i/over' has it as its backing file; remove that one first"
    )
    assert [one.file for one in orphans.choose(facts(MANY), [DIRTY])] == [DIRTY]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("/i/b", "'/i/b' cannot be removed: disk vda of domain 'daisy' boots it; keep it"),
        ("/i/a", "'/i/a' cannot be removed: it is below '/i/b', and disk vda of domain 'daisy' boots"),
        ("/i/other-name-of-b", "cannot be removed: disk vda of domain 'daisy' boots it; keep it"),
        ("/i/over", "'/i/over' cannot be removed: a process has it open; keep it"),
        ("/i/clone", "cannot be removed: the image '/i/over' has it as its backing file; keep it"),
        ("/i/link", "'/i/link' is no orphan: it is a link: name the file that it leads to"),
        ("/i/plain", "'/i/plain' is no orphan: it has no backing file, and was never a layer of a domain"),
        ("/i/.qs-k1-0", "'/i/.qs-k1-0' is no orphan: operation k1 is not finished yet"),
        ("/i/none", "'/i/none' is no orphan: No such file or directory"),
        (
            "/else/x",
            "'/else/x' is no orphan: nobody looks for images in its directory; the setting image_dir",
        ),
    ],
)
def test_what_is_no_orphan(file: str, why: str) -> None:
    """Whoever needs it is named, by whatever name it is asked for; and nothing goes, what is one neither."""
    more = dict.fromkeys(["/i/link", "/i/.qs-k1-0", "/i/other-name-of-b", "/else/x"], "/i/base")
    what = facts({**MANY, **more}, opened=["/i/over", "/i/b"], links=["/i/link"], operations=["k1"])

    assert why in refusal(what, "/i/old", file)


def test_nothing_goes_while_something_is_unknown() -> None:
    what = facts(MANY, unknown=("/j cannot be read: Permission denied",))

    assert found(what)
    assert "who needs it is not known: /j cannot be read" in refusal(what)
    assert "who needs it is not known: /j cannot be read" in refusal(what, "/i/over")


@st.composite
def worlds(draw: st.DrawFn) -> orphans.Facts:
    """Any few images with any backing, needs, locks and former layers."""
    files = [f"/i/{n}" for n in range(draw(st.integers(1, 7)))]
    backing = {file: draw(st.sampled_from(["", *files])) for file in files}
    some = st.lists(st.sampled_from(files), max_size=2)
    needs = [images.Need("hold", file) for file in draw(some)]
    disk = domain_xml.RecordedDisk("vda", "virtio", "", "", was=tuple(draw(some)))
    recorded = domain_xml.RecordedDomain("daisy", "u", disks=(disk,))
    needs.append(images.Need("hold", "/i/none"))
    return facts(backing, *needs, opened=draw(some), folders=["/i"], recorded=(recorded,))


@given(worlds())
def test_nothing_that_is_needed_ever_goes(what: orphans.Facts) -> None:
    """Whatever the images are: none that goes is needed, open, or below one that stays; and none goes before one above it."""
    going = [one.file for one in orphans.choose(what, ())]
    everything = [one.file for one in orphans.find(what)]

    for gone in (going, everything):
        assert not {ident(file) for file in gone} & what.graph.needed()
        for file in gone:
            assert not what.seen[file].opened
            above = {name for name, one in what.graph.found.items() if one.backing == file != name}
            assert above <= {*gone}
    circles = [file for file in going if what.graph.missing(file)]
    for first, second in itertools.combinations(going, 2):
        if not circles:
            assert what.graph.found[second].backing != first


# --- the trash ---

OLD = orphans.find(facts({**CHAIN, "/i/old": "/i/a"}))[0]
RECORD = trash.record(OLD, facts({**CHAIN, "/i/old": "/i/a"}).graph, "k7", now=1000, days=7)


def test_a_record_says_everything() -> None:
    """Where it was and is, until when it stays, and what it reads through; whatever the name."""
    below = (trash.Below("/i/a", "1:2"), trash.Below("/i/base", "1:2"))
    assert (
        trash.Record(
            "k7", "/i/old", "/i/.qmpsnap-trash/k7", "daisy", 1000, 1000 + 7 * 86400, 7, 5, "1:2", below
        )
        == RECORD
    )
    odd = attrs.evolve(RECORD, file=DIRTY)
    assert trash.load(trash.dump(odd), "k7") == odd


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b'{"version": 2}', b'{"version": 1, "id": "k7"}', b"\xff"]
)
def test_a_record_that_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        trash.load(text, "k7")


def test_a_record_of_a_newer_daemon() -> None:
    with pytest.raises(ValueError, match="version"):
        trash.load(trash.dump(RECORD).replace(b'"version": 1', b'"version": 2'), "k7")


def test_a_record_under_another_name() -> None:
    with pytest.raises(ValueError, match="another image"):
        trash.load(trash.dump(RECORD), "k8")


A, B = (1, 2), (1, 3)


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        (trash.Names(True, A, None), "drop"),
        (trash.Names(True, None, A), "keep"),
        (trash.Names(True, B, A), "keep"),
        (trash.Names(True, A, A), "take-back"),
        (trash.Names(True, None, None), "drop"),
        (trash.Names(False, A, None), "keep"),
        (trash.Names(False, None, None), "keep"),
    ],
)
def test_what_a_crash_means(seen: trash.Names, decision: str) -> None:
    """Without the trash directory nothing is concluded: its file system is not mounted."""
    assert trash.decide(seen) == decision


def test_the_grace_time() -> None:
    later = attrs.evolve(RECORD, id="k8", when=999, until=RECORD.until + 1)

    assert trash.due([RECORD, later], RECORD.until - 0.5) == []
    assert trash.due([RECORD, later], RECORD.until) == [RECORD]
    assert trash.due([RECORD, later], RECORD.until + 1) == [later, RECORD]


def test_restore_needs_what_is_below_as_it_was() -> None:
    stamps = {"/i/a": "1:2", "/i/base": "1:2"}
    trash.check_restore(RECORD, stamps, [RECORD])

    def why(stamps: dict[str, str], *others: trash.Record) -> str:
        with pytest.raises(errors.CannotRestore) as caught:
            trash.check_restore(RECORD, stamps, [RECORD, *others])
        return str(caught.value)

    assert why({**stamps, "/i/base": "1:3"}) == (
        "'/i/old' cannot be restored: '/i/base' below it has been changed since"
    )
    assert why({"/i/base": "1:2"}) == "'/i/old' cannot be restored: '/i/a' below it is gone"
    assert why({"/i/base": "1:2"}, attrs.evolve(RECORD, id="k8", file="/i/a")) == (
        "'/i/old' cannot be restored: '/i/a' below it is in the trash: restore k8 first"
    )


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"/i/new": "/i/.qmpsnap-trash/k7"}, "the image '/i/new' has it as its backing file"),
        ({"/i/new": "/i/old"}, "'/i/old' cannot be removed: the image '/i/new' has it as its backing file"),
    ],
)
def test_what_is_needed_again_is_not_deleted(more: dict[str, str], why: str) -> None:
    """By where it is, and by where it was, unless something else is there now."""
    there = orphans.Seen("/i/.qmpsnap-trash/k7")
    trash.check_delete(RECORD, facts(CHAIN).graph, there)
    trash.check_delete(RECORD, facts({**CHAIN, "/i/old": "", "/i/new": "/i/old"}).graph, there)

    with pytest.raises(errors.WouldHurt) as caught:
        trash.check_delete(RECORD, facts({**CHAIN, **more}).graph, there)
    assert why in str(caught.value)
    with pytest.raises(errors.WouldHurt, match="a process has it open"):
        trash.check_delete(RECORD, facts(CHAIN).graph, attrs.evolve(there, opened=True))
    with pytest.raises(errors.WouldHurt, match="is not known"):
        trash.check_delete(RECORD, facts(CHAIN, unknown=("x",)).graph, there)
