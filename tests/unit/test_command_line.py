"""QEMU's option syntax: read, written, and numbered as QEMU numbers its drives."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model import command_line
from qmpsnap.model.command_line import block_arguments, drive_ids, image_options
from tests import requires
from tests.lab import qemu
from tests.lab.images import qemu_binary

KEY = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
VALUE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(KEY, VALUE), min_size=1))
def test_options_survive_writing_and_reading(pairs: list[tuple[str, str]]) -> None:
    assert command_line.split_options(command_line.join_options(pairs)) == pairs


NAME = st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True)
TREE = st.dictionaries(
    NAME,
    st.recursive(
        st.none() | st.booleans() | st.integers() | VALUE,
        lambda inner: st.lists(inner) | st.dictionaries(NAME, inner),
        max_leaves=12,
    ),
)


@given(TREE)
def test_json_survives_flattening(tree: dict[str, object]) -> None:
    assert command_line.unflatten(command_line.flatten(tree)) == tree


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("file=a,,b,if=virtio", [("file", "a,b"), ("if", "virtio")]),
        ("file=a,,,if=virtio", [("file", "a,"), ("if", "virtio")]),
        ("file=a=b", [("file", "a=b")]),
        ("file=x,readonly", [("file", "x"), ("readonly", "on")]),
        ("file=", [("file", "")]),
    ],
)
def test_split(text: str, pairs: list[tuple[str, str]]) -> None:
    assert command_line.split_options(text) == pairs


def test_first_word_is_the_value_of_the_implied_key() -> None:
    assert command_line.split_options("qcow2,node-name=n,auto-read-only", "driver") == [
        ("driver", "qcow2"),
        ("node-name", "n"),
        ("auto-read-only", "on"),
    ]


def found(*arguments: str) -> list[tuple[int, str, dict[str, object]]]:
    return [(a.index, a.kind, a.options) for a in block_arguments(["qemu", *arguments])]


def test_every_way_to_name_an_image() -> None:
    nested = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "c"}}
    flat = {"driver": "qcow2", "node-name": "n", "file.driver": "file", "file.filename": "c"}
    assert found(
        *("-drive", "file=a,if=virtio", "--drive", "file=b", "-blockdev", json.dumps(nested)),
        *("-blockdev", "file,node-name=m,filename=d", "-hdb", "e,f", "-cdrom", "g", "h", "-fda", "i"),
    ) == [
        (2, "drive", {"file": "a", "if": "virtio"}),
        (4, "drive", {"file": "b"}),
        (6, "blockdev", flat),
        (8, "blockdev", {"driver": "file", "node-name": "m", "filename": "d"}),
        (10, "hdb", {"file": "e,f", "index": "1", "media": "disk"}),
        (12, "cdrom", {"file": "g", "index": "2", "media": "cdrom"}),
        (13, "", {"file": "h", "index": "0", "media": "disk"}),
        (15, "fda", {"file": "i", "if": "floppy", "index": "0"}),
    ]


def test_a_json_name_says_the_same_as_options() -> None:
    name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "a,b"}})
    text = command_line.join_options([("file", f"json:{name}"), ("if", "virtio")])
    assert found("-drive", text) == [
        (2, "drive", {"driver": "qcow2", "file.driver": "file", "file.filename": "a,b", "if": "virtio"})
    ]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["-append", "-hda", "x.img"], ["x.img"]),  # "-hda" was meant as text, but better a disk too many
        (["-append", "root=/dev/vda -drive file=no"], []),
        (["-nographic", "x.img"], ["x.img"]),
        (["-S", "-snapshot", "x.img", "-s"], ["x.img"]),
        (["-newer-flag", "-drive", "file=x.img"], ["x.img"]),
        (["-netdev", "user,id=n", "-monitor", "none"], []),
        (["-drive"], []),
        (["-blockdev", "{broken"], []),
        ([], []),
    ],
)
def test_what_is_an_argument_and_what_an_image(arguments: list[str], files: list[str]) -> None:
    assert [str(o["file"]) for _i, _k, o in found(*arguments) if "file" in o] == files


@requires.requires_qemu
def test_the_table_of_flags_is_complete() -> None:
    """An option shown without an argument that we took for one with would hide the word behind it."""
    text = subprocess.run([qemu_binary(), "-help"], capture_output=True, text=True, check=True).stdout
    shown = set(re.findall(r"^--?([\w-]+)(?:\s{2,}|$)", text, re.MULTILINE))
    assert len(shown) > 20
    # `-dtb    file`: the help has spaces where one was meant.
    assert shown - {"dtb"} <= command_line._FLAGS


DRIVES = [
    ("q35", ["-drive", "IMG", "-drive", "IMG,media=cdrom", "-drive", "IMG,index=3", "-drive", "IMG"]),
    ("pc", ["-drive", "IMG", "-drive", "IMG,media=cdrom", "-drive", "IMG,index=3", "-drive", "IMG"]),
    ("pc", ["-drive", "IMG,if=virtio,index=1", "-drive", "IMG,if=virtio", "-drive", "IMG,if=virtio"]),
    ("pc", ["-drive", "IMG,if=none", "-drive", "IMG,if=none,id=mine", "-drive", "IMG,if=none"]),
    ("pc", ["-hdb", "FILE", "-cdrom", "FILE", "FILE", "-hdd", "FILE", "-drive", "IMG,if=virtio"]),
    ("pc", ["-drive", "IMG,bus=1,unit=1", "-drive", "IMG,bus=1", "-drive", "IMG"]),
    ("pc", ["-fdb", "FILE", "-drive", "IMG,if=floppy"]),
]


@requires.requires_qemu
@pytest.mark.parametrize(("machine", "arguments"), DRIVES)
def test_drives_are_numbered_as_qemu_does(machine: str, arguments: list[str], short_dir: Path) -> None:
    filled = []
    for n, word in enumerate(arguments):
        if "IMG" in word or word == "FILE":
            file = qemu.image(short_dir / str(n), 1 << 20, "qcow2")
            word = word.replace("IMG", f"file={file},format=qcow2").replace("FILE", str(file))
        filled.append(word)
    ids = drive_ids(["qemu", "-M", machine, *filled])
    assert list(ids) == [a.index for a in block_arguments(["qemu", "-M", machine, *filled])]
    with qemu.Machine(short_dir / "m", filled, machine_type=machine) as vm:
        assert sorted(ids.values()) == sorted(row["device"] for row in vm.qmp("query-block"))


def test_virtio_machines_have_virtio_drives() -> None:
    assert list(drive_ids(["qemu-system-aarch64", "-M", "virt-8.0", "-drive", "file=a"]).values()) == [
        "virtio0"
    ]


def test_nonsense_numbers_name_nothing() -> None:
    assert list(drive_ids(["qemu", "-drive", "file=a,index=x"]).values()) == [""]


def test_options_of_a_drive_without_id() -> None:
    """The second virtio drive is virtio1 though nothing on the command line says so."""
    command = ["qemu", "-drive", "file=a,if=virtio,aio=native", "-drive", "file=b,if=virtio,discard=unmap"]
    assert image_options(command, [], "virtio0") == {"aio": "native"}
    assert image_options(command, [], "virtio1") == {"discard": "unmap"}
    assert image_options(command, [], "virtio2") is None


def test_options_of_a_node_and_of_its_storage() -> None:
    command = [
        *("qemu", "-blockdev", "driver=file,node-name=s,filename=a,aio=io_uring"),
        *("-blockdev", "driver=qcow2,node-name=n,file=s,detect-zeroes=unmap"),
    ]
    assert image_options(command, ["overlay", "n"], "") == {"aio": "io_uring", "detect-zeroes": "unmap"}
