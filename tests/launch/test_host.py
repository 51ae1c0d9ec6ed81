"""Accelerator and uuid."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from qemu_launch import host


def test_kvm_that_cannot_make_a_machine_is_none(tmp_path: Path) -> None:
    assert host.accelerator(str(tmp_path / "none")) == ("tcg", f"{tmp_path}/none: No such file or directory")
    accel, why = host.accelerator("/dev/null")  # opens, and knows no KVM_CREATE_VM
    assert (accel, why) == ("tcg", "/dev/null: Inappropriate ioctl for device")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    host.accelerator()
    host.accelerator("/dev/null")
    assert os.listdir("/proc/self/fd") == before


def test_uuid_stays_and_does_not_tell_the_machine_id(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    daisy = host.machine_uuid("daisy", str(file))
    assert daisy == host.machine_uuid("daisy", str(file))
    assert uuid.UUID(daisy).version == 4
    assert daisy != host.machine_uuid("rose", str(file))
    file.write_text("")
    assert host.machine_uuid("daisy", str(file)) != host.machine_uuid("daisy", str(file))
    assert host.machine_uuid("daisy", str(tmp_path / "none")) != host.machine_uuid(
        "daisy", str(tmp_path / "none")
    )
