"""A command line on active layers: every way to name an image, and nothing but the image changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_launch import images, prefix
from qmpsnap import errors
from qmpsnap.model import command_line
from qmpsnap.model.images import Identity


def ident(number: int) -> Identity:
    return Identity("file", 1, number)


# The world: daisy's vda is /i/top over /i/mid over /i/base; vdb is /i/top2 over /i/base2; /i/twin is below both.
FILES = ["/i/base", "/i/mid", "/i/top", "/i/base2", "/i/top2", "/i/new", "/i/twin", "base", "a, b"]
WORLD = {name: ident(n) for n, name in enumerate(FILES)}
WORLD["base"] = WORLD["a, b"] = WORLD["/i/base"]


def family(*names: str) -> frozenset[Identity]:
    return frozenset(WORLD[name] for name in names)


def known(target: str, active: str, *below: str, form: str = "qcow2", block: bool = False) -> prefix.Known:
    return prefix.Known(
        target=target,
        active=prefix.Layer(active, form, block),
        identity=WORLD.get(active),
        family=family(*([active] if active in WORLD else []), *below),
        names=frozenset({active, *below}),
    )


VDA = known("vda", "/i/top", "/i/mid", "/i/base", "/i/twin")
VDB = known("vdb", "/i/top2", "/i/base2", "/i/twin")


def rewritten(arguments: Sequence[str], *disks: prefix.Known) -> list[str]:
    command = ["qemu", *arguments]
    found = images.find(command)
    swaps = prefix.choose("daisy", found, disks or [VDA], {i.file: WORLD.get(i.file) for i in found})
    return prefix.rewrite(command, swaps)[1:]


SAME = "the command stays"
DRIVES = [
    ("-drive file=/i/base,format=raw,if=virtio", "-drive file=/i/top,format=qcow2,if=virtio"),
    ("-drive file=/i/mid,format=qcow2,if=virtio", "-drive file=/i/top,format=qcow2,if=virtio"),
    ("-drive file=/i/top,format=qcow2,if=virtio", SAME),
    ("-drive file=/i/base,if=virtio", "-drive file=/i/top,if=virtio,format=qcow2"),
    ("--drive if=none,id=d,file=base,driver=raw", "--drive if=none,id=d,file=/i/top,driver=qcow2"),
    (
        "-drive file=/i/base,if=ide,index=1,cache=none,aio=native,discard=unmap,format=raw,werror=stop",
        "-drive file=/i/top,if=ide,index=1,cache=none,aio=native,discard=unmap,format=qcow2,werror=stop",
    ),
    ("-drive 'file=a,, b,format=raw'", "-drive file=/i/top,format=qcow2"),
    ("-drive file=file:/i/base,format=raw", "-drive file=/i/top,format=qcow2"),
    (
        "-drive driver=raw,file.driver=file,file.filename=/i/base,file.locking=on,if=virtio",
        "-drive driver=qcow2,file.driver=file,file.filename=/i/top,file.locking=on,if=virtio",
    ),
    ("-drive file.filename=/i/base,format=raw", "-drive file.filename=/i/top,format=qcow2"),
    (
        "-drive file=/i/mid,backing.file.filename=/elsewhere/base,backing.driver=raw,format=qcow2",
        "-drive file=/i/top,format=qcow2",
    ),
    ("-snapshot -drive file=/i/base,format=raw", "-snapshot -drive file=/i/top,format=qcow2"),
    (
        "-drive file=/i/base,format=raw,snapshot=on",
        "-drive file=/i/top,format=qcow2,snapshot=on",
    ),
    ("-hda /i/base", "-drive file=/i/top,index=0,media=disk,format=qcow2"),
    ("-m 1 -hdc /i/base -S", "-m 1 -drive file=/i/top,index=2,media=disk,format=qcow2 -S"),
    ("-S /i/base -m 1", "-S -drive file=/i/top,index=0,media=disk,format=qcow2 -m 1"),
    ("-m 1 base", "-m 1 -drive file=/i/top,index=0,media=disk,format=qcow2"),
]
NODES = [
    (
        "-blockdev driver=raw,node-name=n,file.driver=file,file.filename=/i/base",
        "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/i/top",
    ),
    (
        "-blockdev raw,node-name=raw,file.driver=file,file.filename=/i/base",
        "-blockdev driver=qcow2,node-name=raw,file.driver=file,file.filename=/i/top",
    ),
    (
        "-blockdev driver=file,node-name=s,filename=base,aio=native -blockdev driver=raw,node-name=n,file=s",
        "-blockdev driver=file,node-name=s,filename=/i/top,aio=native -blockdev driver=qcow2,node-name=n,file=s",
    ),
    # The device sits on the storage itself: a format comes between, under the same node name.
    (
        "-blockdev driver=file,node-name=n,filename=/i/base,aio=native,discard=unmap",
        "-blockdev node-name=n,discard=unmap,driver=qcow2,file.driver=file,file.filename=/i/top,file.aio=native",
    ),
    (
        "-blockdev driver=throttle,node-name=t,throttle-group=g,file.driver=file,file.filename=/i/base",
        (
            "-blockdev driver=throttle,node-name=t,throttle-group=g,file.driver=qcow2,"
            "file.file.driver=file,file.file.filename=/i/top"
        ),
    ),
    # A filter above the format, and one below it.
    (
        "-blockdev driver=throttle,node-name=t,file.driver=raw,file.file.driver=file,file.file.filename=/i/base",
        "-blockdev driver=throttle,node-name=t,file.driver=qcow2,file.file.driver=file,file.file.filename=/i/top",
    ),
    (
        "-blockdev driver=raw,node-name=n,file.driver=throttle,file.file.driver=file,file.file.filename=/i/base",
        "-blockdev driver=qcow2,node-name=n,file.driver=throttle,file.file.driver=file,file.file.filename=/i/top",
    ),
    # An explicit backing node would leave out the layers between: the header says it right. The node must not stay writable.
    (
        (
            "-blockdev driver=raw,node-name=b,file.driver=file,file.filename=/i/base"
            " -blockdev driver=qcow2,node-name=n,backing=b,file.driver=file,file.filename=/i/mid"
        ),
        (
            "-blockdev driver=raw,node-name=b,file.driver=file,file.filename=/i/base,read-only=on"
            " -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/i/top"
        ),
    ),
]
UNTOUCHED = [
    "-drive file=/i/base,format=raw,readonly=on",
    "-drive file=/i/base,format=raw,read-only=true",
    "-cdrom /i/base",
    "-drive file=/i/base,media=cdrom",
    "-blockdev driver=file,node-name=s,filename=/i/base -blockdev driver=raw,node-name=n,file=s,read-only=on",
    "-drive file=nbd:localhost:10809 -drive file=/i/top",
    "-kernel /i/base -append /i/base -hda /i/top",
    "-blockdev driver=quorum,node-name=q,children.0.driver=file,children.0.filename=/i/base /i/top",
    "-drive file=/i/new,if=virtio -drive file=/i/top,if=virtio",
]


@pytest.mark.parametrize(
    ("before", "after"), [*DRIVES, *NODES, *((text, SAME) for text in UNTOUCHED)], ids=lambda text: text[:60]
)
def test_table(before: str, after: str) -> None:
    words = shlex.split(before)
    assert rewritten(words) == (words if after == SAME else shlex.split(after))


def test_json_stays_json_with_its_types() -> None:
    given_tree = {
        "driver": "raw",
        "node-name": "n",
        "cache": {"direct": True, "no-flush": False},
        "backing": None,
        "file": {"driver": "file", "filename": "/i/base", "aio-max-batch": 4},
    }
    [_option, text] = rewritten(["-blockdev", json.dumps(given_tree)])
    assert json.loads(text) == {
        "driver": "qcow2",
        "node-name": "n",
        "cache": {"direct": True, "no-flush": False},
        "file": {"driver": "file", "filename": "/i/top", "aio-max-batch": 4},
    }


def test_json_name_of_a_drive() -> None:
    name = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": "/i/base"}})
    text = command_line.join_options([("file", f"json:{name}"), ("if", "virtio")])
    assert rewritten(["-drive", text]) == [
        "-drive",
        "driver=qcow2,file.driver=file,file.filename=/i/top,if=virtio",
    ]


def test_storage_driver_follows_the_layer() -> None:
    """A disk that was a logical volume and has its overlay in a file, and the other way round."""
    lv = "-blockdev driver=raw,node-name=n,file.driver=host_device,file.filename=/i/base"
    assert "file.driver=file," in rewritten(shlex.split(lv))[1]
    file = lv.replace("host_device", "file")
    assert (
        "file.driver=host_device,"
        in rewritten(shlex.split(file), known("vda", "/i/top", "/i/base", block=True))[1]
    )


def test_back_on_raw_after_a_commit() -> None:
    raw = known("vda", "/i/base", "/i/top", form="raw")
    assert rewritten(shlex.split("-drive file=/i/top,format=qcow2"), raw)[1] == "file=/i/base,format=raw"


def test_each_disk_gets_its_own_layer() -> None:
    words = shlex.split("-drive file=/i/base,format=raw -drive file=/i/base2,format=raw")
    assert rewritten(words, VDA, VDB) == shlex.split(
        "-drive file=/i/top,format=qcow2 -drive file=/i/top2,format=qcow2"
    )


def test_an_image_below_two_disks_is_not_guessed_at() -> None:
    with pytest.raises(errors.ImageAmbiguous, match=r"vda \(/i/top\), vdb \(/i/top2\)"):
        rewritten(["-hda", "/i/twin"], VDA, VDB)


def test_a_missing_layer_is_not_replaced_by_what_is_below() -> None:
    gone = known("vda", "/i/gone", "/i/base")
    with pytest.raises(errors.ActiveMissing, match="vda of domain 'daisy' has its active layer in '/i/gone'"):
        rewritten(["-hda", "/i/base"], gone)
    # What was below it is not known: any image that nothing else knows could be it.
    with pytest.raises(errors.ActiveMissing):
        rewritten(["-hda", "/i/new"], gone)
    with pytest.raises(errors.ActiveMissing):
        rewritten(["-hda", "/i/gone"], gone)


def test_an_unknown_image_in_place_of_a_recorded_one() -> None:
    with pytest.raises(errors.ImageStrange, match="'/i/new' is not in the backing chain of disk vdb"):
        rewritten(["-hda", "/i/base", "-hdb", "/i/new"], VDA, VDB)
    # Without the second disk, or with a new third, nothing is doubtful.
    assert rewritten(["-hda", "/i/base"], VDA, VDB)
    assert rewritten(["-hda", "/i/base", "-hdb", "/i/base2", "-hdc", "/i/new"], VDA, VDB)[4:] == [
        "-hdc",
        "/i/new",
    ]
    # A kernel's rescue disc is no disk.
    assert rewritten(["-cdrom", "/i/new"], VDA, VDB) == ["-cdrom", "/i/new"]


def test_monitor() -> None:
    assert prefix.with_monitor(["qemu", "-S"], "/run/a,b/monitor.sock") == [
        *("qemu", "-S", "-chardev", "socket,id=qmpsnap,path=/run/a,,b/monitor.sock,server=on,wait=off"),
        *("-mon", "chardev=qmpsnap,mode=control"),
    ]


OPTION = st.tuples(
    st.sampled_from(["cache", "id", "serial", "throttling.iops-total", "file.locking", "aio"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)


@given(st.dictionaries(OPTION.map(lambda o: o[0]), OPTION.map(lambda o: o[1])), st.sampled_from(FILES))
def test_nothing_else_is_lost(others: dict[str, str], file: str) -> None:
    before = {**others, "file": file, "format": "raw"}
    words = ["-drive", command_line.join_options(before.items()), "-S"]
    try:
        after = rewritten(words, VDA)
    except errors.ImageStrange:
        assert WORLD[file] not in VDA.family
        return
    assert after[2:] == ["-S"]
    expected = before if file == "/i/top" else {**before, "file": "/i/top", "format": "qcow2"}
    assert dict(command_line.split_options(after[1])) == expected


UNSEEN = [
    ("-readconfig x", True),
    ("-set drive.d.file=/i/base", True),
    ("-set drive.d.cache=none", False),
    ("-set device.d.file=x", False),
]


@pytest.mark.parametrize(("text", "expected"), UNSEEN)
def test_options_that_hide_images(text: str, expected: bool) -> None:
    assert bool(list(images.unseen(["qemu", *shlex.split(text)]))) is expected
