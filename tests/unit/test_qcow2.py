"""An overlay of ours is the very file that qemu-img makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qmpsnap.model import qcow2
from tests.lab import images

MIB, GIB, TIB = 2**20, 2**30, 2**40


def written(layout: qcow2.Layout) -> bytes:
    file = bytearray(layout.length)
    for offset, part in layout.parts:
        file[offset : offset + len(part)] = part
    assert len(file) == layout.length
    return bytes(file)


@pytest.mark.qemu
@pytest.mark.parametrize("form", ["qcow2", "raw"])
@pytest.mark.parametrize(
    "size", [512, 1000, MIB, 512 * MIB, 512 * MIB + 512, 20 * GIB, 4 * TIB, 4 * TIB + 512, 9 * TIB + 1]
)
def test_the_same_bytes_as_qemu_img(tmp_path: Path, size: int, form: str) -> None:
    file, backing = tmp_path / "overlay", "/i/daisy — Kopie.qcow2"
    command = [images.tool("qemu-img"), "create", "-q", "-u", "-f", "qcow2", "-F", form, "-b", backing]
    subprocess.run([*command, str(file), str(size)], check=True)

    assert written(qcow2.empty_overlay(backing.encode(), form, size)) == file.read_bytes()


@pytest.mark.qemu
@pytest.mark.parametrize("length", [1, qcow2.LONGEST_BACKING])
def test_a_backing_name_may_be_as_long_as_qemu_reads(tmp_path: Path, length: int) -> None:
    file, backing = tmp_path / "overlay", "/" * length
    file.write_bytes(written(qcow2.empty_overlay(backing.encode(), "raw", MIB)))

    assert images.info(file)["backing-filename"] == backing
