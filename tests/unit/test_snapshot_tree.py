"""The tree of snapshots: parents, children, the current one, and what was made wrong by hand."""

from __future__ import annotations

import pytest

from qmpsnap import errors
from qmpsnap.model import snapshot


def tree(*pairs: str, current: str = "") -> snapshot.Tree:
    """A tree from `name<parent` words."""
    split = [pair.partition("<") for pair in pairs]
    return snapshot.Tree.of(
        snapshot.Snapshot(name, n, parent=parent, current=name in current.split())
        for n, (name, _, parent) in enumerate(split)
    )


def names(found: list[snapshot.Snapshot]) -> list[str]:
    return [s.name for s in found]


BRANCHED = ("root", "b<root", "B2<root", "leaf<b", "a<b", "other")


def test_children_and_descendants() -> None:
    """Siblings in virsh's order, parents before their children."""
    found = tree(*BRANCHED)

    assert names(found.children("root")) == ["b", "B2"]
    assert names(found.descendants("root")) == ["b", "a", "leaf", "B2"]
    assert names(found.descendants("leaf")) == []
    assert found.family() == {
        "root": (2, 4),
        "b": (2, 2),
        "B2": (0, 0),
        "leaf": (0, 0),
        "a": (0, 0),
        "other": (0, 0),
    }
    assert len(found) == 6


def test_virshs_order() -> None:
    """Letters of ASCII fold, others do not; umlauts come after all of ASCII."""
    assert names(tree("b", "Ä", "a", "A", "_", "C", "ä").ordered()) == ["_", "A", "a", "b", "C", "Ä", "ä"]


def test_a_missing_parent_makes_a_root() -> None:
    found = tree("orphan<gone", "child<orphan")

    assert found.parent("orphan") == ""
    assert found.parent("child") == "orphan"


@pytest.mark.parametrize("pairs", [("a<a",), ("a<b", "b<a"), ("a<c", "b<a", "c<b", "tail<c")])
def test_cycles_end(pairs: tuple[str, ...]) -> None:
    """A cycle made by hand is walked once: nobody is his own descendant."""
    found = tree(*pairs)

    for name in found.snapshots:
        below = names(found.descendants(name))
        assert name not in below
        assert len(below) == len(set(below)) == found.family()[name][1]


def test_current() -> None:
    """None, one, or of two that claim it the last by name."""
    assert tree("a", "b<a").current is None
    one = tree("a", "b<a", current="a")
    assert one.current is one.get("a")
    two = tree("a", "C", "b", current="C b")
    assert two.current is two.get("C")


def test_no_such_snapshot() -> None:
    for act in ("get", "parent"):
        with pytest.raises(errors.NoSnapshot) as caught:
            getattr(tree("a"), act)("b")
        assert str(caught.value) == "Domain snapshot not found: no domain snapshot with matching name 'b'"


@pytest.mark.parametrize(
    ("memory", "overlays", "location"),
    [
        ("no", ["", "/o"], "external"),
        ("external", [""], "external"),
        ("internal", [""], "internal"),
        ("no", [], "internal"),
    ],
)
def test_location(memory: str, overlays: list[str], location: str) -> None:
    """One file of its own is enough to be external."""
    disks = tuple(snapshot.SnapshotDisk(f"vd{n}", overlay) for n, overlay in enumerate(overlays))

    assert snapshot.Snapshot("s", 1, memory=memory, disks=disks).location == location
