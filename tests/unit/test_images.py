"""Backing files read from headers: the same that qemu-img reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qmpsnap import errors
from qmpsnap.talk import images, qemu_img
from tests import requires
from tests.lab import qemu

pytestmark = requires.requires_qemu
SIZE = 1 << 20


def files(file: Path, form: str = "qcow2") -> list[str]:
    return [link.file for link in images.Looker().chain(str(file), form)]


def told(file: Path, form: str = "qcow2") -> list[str]:
    return [layer["filename"] for layer in qemu_img.backing_chain(str(file), form)]


@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "compat=1.1,lazy_refcounts=on"])
def test_chain_as_qemu_img_tells_it(tmp_path: Path, options: str) -> None:
    (tmp_path / "below").mkdir()
    base = qemu.image(tmp_path / 'below/ba, "se".raw', SIZE, "raw")
    mid = qemu.image(tmp_path / "below/grün.qcow2", SIZE, backing=base, backing_format="raw", options=options)
    top = qemu.image(tmp_path / "top.qcow2", SIZE, backing="below/grün.qcow2", options=options)
    assert files(top) == told(top) == [str(top), str(mid), str(base)]
    assert [link.format for link in images.Looker().chain(str(top), "qcow2")] == ["qcow2", "qcow2", "raw"]


def test_name_in_json(tmp_path: Path) -> None:
    base = qemu.image(tmp_path / "base.qcow2", SIZE)
    name = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}})
    top = qemu.image(tmp_path / "top.qcow2", SIZE, backing=name)
    assert files(top) == [str(top), str(base)]


def test_a_guest_cannot_give_a_raw_disk_a_backing_file(tmp_path: Path) -> None:
    base = qemu.image(tmp_path / "base.qcow2", SIZE)
    top = qemu.image(tmp_path / "top.qcow2", SIZE, backing=base)
    over = qemu.image(tmp_path / "over.qcow2", SIZE, backing=top, backing_format="raw")
    assert files(top, "raw") == [str(top)]
    assert files(over) == [str(over), str(top)]


def test_other_formats_are_asked_of_qemu_img(tmp_path: Path) -> None:
    base = qemu.image(tmp_path / "base.qcow2", SIZE)
    top = tmp_path / "top.qed"
    subprocess.run(
        [qemu.tool("qemu-img"), "create", "-q", "-f", "qed", "-b", base, "-F", "qcow2", top], check=True
    )
    assert files(top, "qed") == [str(top), str(base)]


def test_a_broken_chain_ends_where_it_is_broken(tmp_path: Path) -> None:
    base = qemu.image(tmp_path / "base.qcow2", SIZE)
    mid = qemu.image(tmp_path / "mid.qcow2", SIZE, backing=base)
    top = qemu.image(tmp_path / "top.qcow2", SIZE, backing=mid)
    base.unlink()
    assert files(top) == [str(top), str(mid)]
    qemu.image(base, SIZE, backing=top)  # a circle
    assert files(top) == [str(top), str(mid), str(base)]
    mid.write_bytes(mid.read_bytes()[:40])  # cut off
    assert files(top) == [str(top), str(mid)]
    assert files(tmp_path / "never") == []


def test_network_images_and_directories_are_no_files(tmp_path: Path) -> None:
    top = qemu.image(tmp_path / "top.qcow2", SIZE, backing="nbd:localhost:1", backing_format="raw")
    assert files(top) == [str(top)]
    assert images.identity(str(tmp_path)) is None
    assert images.identity("a\0b") is None


def test_unreadable() -> None:
    # A regular file that not even root can read from its start.
    with pytest.raises(errors.FileFailed, match="cannot read '/proc/self/mem'"):
        files(Path("/proc/self/mem"))
