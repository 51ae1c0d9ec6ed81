"""What is found wrong, by value; the stories with real images are in tests/qemu/test_check.py."""

from __future__ import annotations

from typing import Any

import attrs

from qmpsnap.model import chain, domain_xml, images, snapshot
from qmpsnap.plan import accept, check, steps

DISK = domain_xml.RecordedDisk("vda", "virtio", "/i/s1", "qcow2")
DOMAIN = domain_xml.RecordedDomain(
    "daisy", "u", disks=(DISK,), layers=(domain_xml.FrozenLayer("/i/golden", "1:1"),)
)
PART = snapshot.SnapshotDisk("vda", "/i/s1", image="/i/base", image_format="qcow2", stamp="1:1")
TREE = snapshot.Tree.of([snapshot.Snapshot("s1", 1, disks=(PART,))])
BELOW = {"/i/s1": "/i/base", "/i/base": "/i/golden", "/i/golden": ""}


def seen(tree: snapshot.Tree = TREE, stamps: dict[str, str] | None = None, **more: Any) -> check.Seen:
    """A domain with nothing wrong, but for what is given."""
    below = {**BELOW, **more.pop("below", {})}
    found = {
        file: images.Found(
            file,
            images.Identity("file", 1, n),
            "qcow2",
            backing=below[file],
            stamp={"/i/s1": "9:9", **(stamps or {})}.get(file, "1:1"),
        )
        for n, file in enumerate(below)
        if file not in more.get("gone", ())
    }
    more.pop("gone", None)
    graph = images.Graph(found, tuple(images.needs_of(DOMAIN, tree)), more.pop("unknown", ()))
    return check.Seen(DOMAIN, tree, graph, **more)


def told(facts: check.Seen) -> list[tuple[str, str, str]]:
    return [(one.severity, one.code, one.where) for one in check.findings(facts)]


def test_nothing() -> None:
    assert told(seen()) == []
    assert accept.plan(seen()).steps == ()


def test_fingerprints() -> None:
    """Of the layer that a snapshot's state is in, and of those below it; not of one that an operation is writing to."""
    changed = seen(stamps={"/i/golden": "1:2"})

    assert told(changed) == [("error", "changed", "disk vda"), ("error", "changed", "snapshot s1, vda")]
    assert told(attrs.evolve(changed, busy=frozenset({"/i/golden"}))) == []
    assert [step.act for step in accept.plan(changed).steps] == [steps.Fingerprint("/i/golden", ())]
    state = accept.plan(seen(stamps={"/i/base": "1:2"}))
    assert [step.act for step in state.steps] == [steps.Fingerprint("/i/base", ("s1",))]


def test_an_image_that_was_active_again() -> None:
    """What was frozen later reads what it should; what was frozen before does not."""
    again = snapshot.Snapshot("s9", 9, disks=(attrs.evolve(PART, stamp="1:2"),))
    facts = seen(snapshot.Tree.of([*TREE.snapshots.values(), again]), stamps={"/i/base": "1:2"})

    assert told(facts) == [("error", "changed", "snapshot s1, vda")]
    assert [step.act for step in accept.plan(facts).steps] == [steps.Fingerprint("/i/base", ("s1", "s9"))]


def test_accepting_what_runs() -> None:
    """Only a disk that really runs somewhere else; the plan has no commit point, it is a record."""
    disk = chain.Disk("vda", "virtio", "disk", "q", (chain.Layer("n", "qcow2", "/i/base", 1),))
    view = chain.View("daisy", "running", migrating=False, disks=(disk,))
    plan = accept.plan(seen(view=view, drifted=frozenset({"vda"})))

    assert [step.act for step in plan.steps] == [steps.Record({"vda": ("/i/base", "qcow2")}, {})]
    assert plan.result == {"accepted": ["vda"]}
    assert accept.plan(seen(drifted=frozenset({"vda"}))).steps == ()


def test_what_is_missing() -> None:
    """An overlay that is not the newest is missed by nobody but its snapshot."""
    assert told(seen(gone=("/i/golden",))) == [
        ("error", "missing", "disk vda"),
        ("error", "missing", "snapshot s1, vda"),
    ]
    assert ("warning", "overlay-missing", "snapshot s1, vda") in told(seen(gone=("/i/s1",)))


def test_trees() -> None:
    orphaned = snapshot.Tree.of([snapshot.Snapshot("s1", 1, parent="s0", disks=(PART,))])
    assert told(seen(orphaned)) == [("warning", "no-parent", "snapshot s1")]


def test_the_worst_comes_first() -> None:
    """What is under way is only noted; what has failed is wrong."""
    facts = seen(
        open={"1": "", "2": "no space"},
        damaged=["x cannot be read"],
        corrupt={"/i/s1": "leaks"},
        launch="no such image",
        unknown=("y cannot be read",),
    )
    assert told(facts) == [
        ("error", "damaged", "state"),
        ("error", "unfinished", "operation 2"),
        ("error", "corrupt", "/i/s1"),
        ("error", "no-boot", "qemu-launch"),
        ("warning", "unknown", "images"),
        ("notice", "open", "operation 1"),
    ]


def test_a_backing_file_somewhere_else() -> None:
    facts = seen()
    found = dict(facts.graph.found)
    found["/i/golden"] = attrs.evolve(found["/i/golden"], strange="nbd:host:1")
    graph = images.Graph(found, facts.graph.needs)
    assert told(attrs.evolve(facts, graph=graph)) == [
        ("notice", "elsewhere", "disk vda"),
        ("notice", "elsewhere", "snapshot s1, vda"),
    ]
