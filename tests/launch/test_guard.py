"""What is written to, and what must not be."""

from __future__ import annotations

import shlex

import pytest

from qemu_launch import guard
from qemu_launch import images as command
from qmpsnap import errors
from qmpsnap.model import images

BASE, TOP = images.Identity("file", 1, 1), images.Identity("file", 1, 2)
BELOW = images.Need("active", "/i/top", "rose", "vda")
HELD = images.Need("state", "base", "rose", "s1")


def check(text: str, need: images.Need | None, *own: images.Identity, clone_at: int = 0) -> list[str]:
    """What is noted; ``need`` None: only the overlay itself, last written to at ``clone_at``, needs its base."""
    found = command.find(["qemu", *shlex.split(text)])
    known = {
        "base": images.Found("base", BASE, "raw", written=5),
        "/i/top": images.Found("/i/top", TOP, "qcow2", backing="base", written=clone_at),
    }
    if need is HELD:
        del known["/i/top"]
    graph = images.Graph(known, (need,) if need else ())
    noted: list[str] = []
    identify = {i.file: graph.identity(i.file) for i in found}
    guard.check(found, identify, graph, own, noted.append)
    return noted


WRITES = [
    "-drive file=base",
    "base",
    "-hdb base",
    "-pflash base",
    "-drive file.filename=base,readonly=off",
    "-drive file=base,snapshot=off -snapshot",
    "-snapshot -blockdev driver=file,node-name=n,filename=base",  # -snapshot is for -drive only
    "-blockdev driver=file,node-name=s,filename=base -blockdev driver=raw,node-name=n,file=s",
    "-blockdev driver=file,node-name=s,filename=base,auto-read-only=on",
    '-blockdev \'{"driver": "quorum", "node-name": "q", "children": [{"driver": "file", "filename": "base"}]}\'',
    '-drive \'file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"base"}}\'',
]
READS = [
    "-drive file=base,readonly=on",
    "-drive file=base,read-only=yes",
    "-drive file=base,readonly",
    "-cdrom base",
    "-drive file=base -snapshot",
    "-drive file=base,snapshot=on",
    "-blockdev driver=file,node-name=s,filename=base -blockdev driver=raw,node-name=n,file=s,read-only=on",
    '-blockdev \'{"driver": "raw", "node-name": "n", "read-only": true, "file": {"driver": "file", "filename": "base"}}\'',
    "-blockdev driver=file,node-name=b,filename=base -blockdev driver=qcow2,node-name=n,backing=b,file.filename=top",
    "-drive file=top,backing.file.filename=base",
    "-kernel base -drive file=top",
]


@pytest.mark.parametrize("text", WRITES)
def test_written(text: str) -> None:
    with pytest.raises(errors.ImageNeeded, match="disk vda of domain 'rose'"):
        check(text, BELOW)


@pytest.mark.parametrize("text", READS)
def test_not_written(text: str) -> None:
    check(text, BELOW)


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(errors.ImageNeeded) as caught:
        check("base", BELOW)
    assert str(caught.value) == (
        "'base' must not be written to: it is below '/i/top', and disk vda of domain 'rose' boots that; open it read-only,"
        " or use an overlay of it (qemu-img create -f qcow2 -F raw -b base NEW)"
    )


def test_own_active_layer_boots_whatever_old_metadata_claims() -> None:
    assert check("base", HELD, BASE) == []
    with pytest.raises(errors.ImageNeeded):
        check("base", HELD)
    with pytest.raises(errors.ImageNeeded):
        check("base", BELOW, BASE)  # but never under somebody's overlay


def test_an_overlay_of_a_stranger_is_kept_while_there_is_something_to_keep() -> None:
    """Made, or written to, after the active layer's last write: it shows what it should, and a boot would spoil it."""
    with pytest.raises(errors.ImageNeeded, match="the image '/i/top' has it as its backing file"):
        check("base", None, BASE, clone_at=6)
    with pytest.raises(errors.ImageNeeded):
        check("base", None, clone_at=4)  # not ours to write to
    assert check("base", None, BASE, clone_at=4) == [
        "/i/top no longer shows what it did when it was made: base was written to since"
    ]
