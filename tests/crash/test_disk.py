"""The worst disk is as bad as it says, and no worse: what was fsynced is there, whatever the policy and the seed."""

from __future__ import annotations

import stat

import pytest

from tests.crash import disk
from tests.crash.disk import Policy


def _file(tree: disk.Disk, name: str, content: bytes) -> disk.File:
    file = tree.file(tree.make(disk.ROOT, name, stat.S_IFREG | 0o600, 0, 0))
    file.change(disk.Write(0, content))
    return file


def _left(tree: disk.Disk) -> dict[str, bytes]:
    return {n: bytes(tree.file(number).data) for n, number in tree.folder(disk.ROOT).entries.items()}


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("seed", range(20))
def test_what_was_synced_is_left(policy: Policy, seed: int) -> None:
    """fsync of a file and of its directory is all that anybody can do, and is enough."""
    tree = disk.Disk()
    _file(tree, "f", b"safe").sync(data_only=True)
    tree.folder(disk.ROOT).sync()
    _file(tree, "g", b"not safe")

    tree.cut(policy, seed)

    assert _left(tree)["f"] == b"safe"


def test_nothing_else_is_left_of_synced() -> None:
    """A name whose directory was not fsynced is gone, with contents that were; the old contents are back under the old name."""
    tree = disk.Disk()
    _file(tree, "f", b"old").sync()
    tree.folder(disk.ROOT).sync()
    _file(tree, "g", b"new").sync()
    tree.rename(disk.ROOT, "g", disk.ROOT, "f")

    assert tree.cut(Policy.SYNCED, 0)
    assert _left(tree) == {"f": b"old"}


def test_names_are_left_without_contents() -> None:
    """The empty file that a rename without fsync leaves."""
    tree = disk.Disk()
    _file(tree, "f", b"old").sync()
    tree.folder(disk.ROOT).sync()
    _file(tree, "g", b"new")
    tree.rename(disk.ROOT, "g", disk.ROOT, "f")

    assert tree.cut(Policy.NAMES, 0)
    assert _left(tree) == {"f": b""}


def test_torn_is_anything_by_whole_sectors() -> None:
    """Every sector is the old or the new one, a rename within a directory is whole, and all kinds of outcomes come up."""
    old, new = b"o" * disk.SECTOR, b"n" * disk.SECTOR
    seen = set()
    for seed in range(400):
        tree = disk.Disk()
        file = _file(tree, "f", old * 3)
        file.sync()
        tree.folder(disk.ROOT).sync()
        file.change(disk.Write(0, new * 3))
        tree.rename(disk.ROOT, "f", disk.ROOT, "g")
        tree.cut(Policy.TORN, seed)
        ((name, content),) = _left(tree).items()
        assert {content[n * disk.SECTOR :][: disk.SECTOR] for n in range(3)} <= {old, new}
        seen.add((name, content))

    assert len(seen) == 2 * 2**3


def test_a_directory_goes_with_its_name() -> None:
    """What is safe in a directory whose own name is not cannot be reached."""
    tree = disk.Disk()
    below = tree.make(disk.ROOT, "d", stat.S_IFDIR | 0o755, 0, 0)
    tree.file(tree.make(below, "f", stat.S_IFREG | 0o600, 0, 0)).sync()
    tree.folder(below).sync()

    tree.cut(Policy.SYNCED, 0)

    assert tree.folder(disk.ROOT).entries == {}
    with pytest.raises(OSError, match="gone"):
        tree.node(below)
