"""A definition as a command."""

from __future__ import annotations

import itertools
import json

import pytest

from qemu_launch import definition, prefix
from qmpsnap import config, errors

HOST = definition.Host("qemu-system-x86_64", "tcg", "5f0e4f0e-0000-4000-8000-000000000000")


def command(**values: object) -> list[str]:
    disks = values.pop("disk", ())
    assert isinstance(disks, tuple)
    defined = config.Definition(name="daisy", disk=disks, **values)  # type: ignore[arg-type]  # as the tests write them
    layers = [prefix.Layer(d.file, d.format) for d in disks]
    return definition.command(defined, layers, "/run/q/domain/daisy", HOST)


def disks(*buses: config.Bus) -> tuple[config.DiskDefinition, ...]:
    return tuple(config.DiskDefinition(f"d{n}", f"/i/{n}.qcow2", "qcow2", bus) for n, bus in enumerate(buses))


def devices(words: list[str]) -> list[str]:
    return [value.partition(",id=d")[0] for word, value in itertools.pairwise(words) if word == "-device"]


def test_whole() -> None:
    file = '{"driver": "file", "node-name": "disk-vda-file", "filename": "/i/a, \\"b\\".qcow2"}'
    disk = (config.DiskDefinition("vda", '/i/a, "b".qcow2', "qcow2"),)
    run = "/run/q/domain/daisy"
    assert command(disk=disk, agent=True, firmware="/fw.bin", extra_args=("-device", "virtio-rng-pci")) == [
        *("qemu-system-x86_64", "-name", "guest=daisy", "-uuid", "5f0e4f0e-0000-4000-8000-000000000000"),
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256M", "-smp", "1"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-bios", "/fw.bin"),
        *("-blockdev", f'{{"driver": "qcow2", "node-name": "disk-vda", "file": {file}}}'),
        *("-device", "virtio-blk-pci,id=vda,drive=disk-vda,bootindex=1"),
        *("-chardev", f"socket,id=console,path={run}/console.sock,server=on,wait=off"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,path={run}/qmp.sock,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={run}/agent.sock,server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-device", "virtio-rng-pci"),
    ]


def test_what_the_definition_says_wins() -> None:
    words = command(accel="kvm", uuid="11111111-0000-4000-8000-000000000000", machine="pc", cpu="qemu64")
    assert "pc,accel=kvm" in words
    assert "11111111-0000-4000-8000-000000000000" in words
    assert "qemu64" in words
    assert "host" in command(accel="kvm:tcg")


def test_block_device() -> None:
    defined = config.Definition(name="daisy", disk=disks("virtio"))
    words = definition.command(defined, [prefix.Layer("/dev/vg/lv", "raw", block=True)], "/r", HOST)
    tree = json.loads(words[words.index("-blockdev") + 1])
    assert (tree["driver"], tree["file"]["driver"]) == ("raw", "host_device")


@pytest.mark.parametrize(
    ("machine", "buses", "expected"),
    [
        ("q35", ("virtio", "virtio"), ["virtio-blk-pci", "virtio-blk-pci"]),
        (
            "q35",
            ("scsi", "scsi"),
            ["virtio-scsi-pci,id=scsi0", "scsi-hd,bus=scsi0.0,scsi-id=0", "scsi-hd,bus=scsi0.0,scsi-id=1"],
        ),
        (
            "pc-q35-7.2",
            ("sata", "virtio", "sata"),
            ["ide-hd,bus=ide.0", "virtio-blk-pci", "ide-hd,bus=ide.1"],
        ),
        ("pc", ("sata",), ["ich9-ahci,id=ahci", "ide-hd,bus=ahci.0"]),
        (
            "pc",
            ("ide", "ide", "ide"),
            ["ide-hd,bus=ide.0,unit=0", "ide-hd,bus=ide.0,unit=1", "ide-hd,bus=ide.1,unit=0"],
        ),
    ],
)
def test_buses(machine: str, buses: tuple[config.Bus, ...], expected: list[str]) -> None:
    assert devices(command(machine=machine, disk=disks(*buses))) == expected


@pytest.mark.parametrize(
    ("machine", "buses", "reason"),
    [
        ("q35", ("ide",), 'ide needs machine = "pc"'),
        ("pc", ("ide",) * 5, "has 4 ports for ide"),
        ("q35", ("sata",) * 7, "has 6 ports for sata"),
    ],
)
def test_no_port(machine: str, buses: tuple[config.Bus, ...], reason: str) -> None:
    with pytest.raises(errors.ConfigError, match=reason):
        command(machine=machine, disk=disks(*buses))


def test_socket_path() -> None:
    assert definition.checked("/" + "x" * 106)
    with pytest.raises(errors.SocketPathTooLong, match="has 108 bytes; 107 are possible"):
        definition.checked("/" + "ü" * 53 + "x")
