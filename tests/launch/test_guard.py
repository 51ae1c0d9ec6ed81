"""What is written to, and what must not be."""

from __future__ import annotations

import shlex

import pytest

from qemu_launch import guard, images, prefix
from qmpsnap import errors

BASE = prefix.Identity("file", 1, 1)
BELOW = guard.Need("it is a backing file of '/i/top', which is disk vda of domain 'rose'", "raw")
HELD = guard.Need("it holds the state of snapshot 's1' of domain 'rose'", "qcow2", state=True)


def check(text: str, need: guard.Need, *own: prefix.Identity) -> None:
    found = images.find(["qemu", *shlex.split(text)])
    guard.check(found, {i.file: BASE if i.file == "base" else None for i in found}, {BASE: need}, own)


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
        "'base' must not be written to: it is a backing file of '/i/top', which is disk vda of domain 'rose'; open it read-only,"
        " or use an overlay of it (qemu-img create -f qcow2 -F raw -b base NEW)"
    )


def test_own_active_layer_boots_whatever_old_metadata_claims() -> None:
    check("base", HELD, BASE)
    with pytest.raises(errors.ImageNeeded):
        check("base", HELD)
    with pytest.raises(errors.ImageNeeded):
        check("base", BELOW, BASE)  # but never under somebody's overlay
