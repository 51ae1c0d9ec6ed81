"""A definition as a command: plain QEMU, every part named so that qmpsnapd and people find it again."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs

from qemu_launch import prefix
from qmpsnap import config, errors
from qmpsnap.model import command_line

# A unix socket's path with its final zero has 108 bytes (unix(7)).
SUN_PATH = 107

#: Disks that a machine's own controllers take: q35 has AHCI with 6 ports, the PC has IDE with 2 buses of 2.
_PORTS = {"sata": 6, "ide": 4}


@attrs.frozen
class Sockets:
    """Where a machine's sockets are; ``monitor`` is qmpsnapd's, ``qmp`` the user's."""

    folder: str

    @property
    def monitor(self) -> str:
        return f"{self.folder}/monitor.sock"

    @property
    def qmp(self) -> str:
        return f"{self.folder}/qmp.sock"

    @property
    def agent(self) -> str:
        return f"{self.folder}/agent.sock"

    @property
    def console(self) -> str:
        return f"{self.folder}/console.sock"


@attrs.frozen
class Host:
    """What the host decides: the program, and accelerator and uuid where the definition leaves them open."""

    emulator: str
    accel: str
    uuid: str


def command(
    definition: config.Definition, layers: Sequence[prefix.Layer], folder: str, host: Host
) -> list[str]:
    """The whole command but for our monitor; ``layers`` are what the disks start on, in their order.

    A device's id is its target: in a running QEMU the disk is found again by it. ``ConfigError`` for disks that the machine
    has no port for.
    """
    accel = definition.accel or host.accel
    # Without a word the processor is QEMU's oldest; "host" and "max" are the same thing said to KVM and to TCG.
    cpu = definition.cpu or ("host" if accel.startswith("kvm") else "max")
    words = [host.emulator, "-name", f"guest={_escaped(definition.name)}"]
    words += ["-uuid", definition.uuid or host.uuid]
    words += ["-machine", f"{definition.machine},accel={accel}", "-cpu", cpu]
    words += ["-m", definition.memory, "-smp", str(definition.vcpus)]
    words += ["-nodefaults", "-no-user-config", "-display", "none"]
    if definition.firmware:
        words += ["-bios", definition.firmware]
    words += _disks(definition, layers)
    sockets = Sockets(folder)
    words += ["-chardev", _socket("console", sockets.console), "-serial", "chardev:console"]
    words += ["-chardev", _socket("qmp", sockets.qmp), "-mon", "chardev=qmp,mode=control"]
    if definition.agent:
        words += ["-device", "virtio-serial-pci", "-chardev", _socket("agent", sockets.agent)]
        words += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    return [*words, *definition.extra_args]


def _escaped(value: str) -> str:
    return value.replace(",", ",,")


def _socket(name: str, path: str) -> str:
    return f"socket,id={name}," + command_line.join_options(
        [("path", path), ("server", "on"), ("wait", "off")]
    )


def _disks(definition: config.Definition, layers: Sequence[prefix.Layer]) -> list[str]:
    words = _controllers(definition)
    used = {"virtio": 0, "scsi": 0, "sata": 0, "ide": 0}
    for order, (disk, layer) in enumerate(zip(definition.disk, layers, strict=True), start=1):
        device = _device(definition, disk, used[disk.bus])
        used[disk.bus] += 1
        words += ["-blockdev", _blockdev(disk.target, layer)]
        words += ["-device", f"{device},id={disk.target},drive=disk-{disk.target},bootindex={order}"]
    return words


def _blockdev(target: str, layer: prefix.Layer) -> str:
    driver = "host_device" if layer.block else "file"
    file = {"driver": driver, "node-name": f"disk-{target}-file", "filename": layer.file}
    return json.dumps(
        {"driver": layer.format, "node-name": f"disk-{target}", "file": file}, ensure_ascii=False
    )


def _controllers(definition: config.Definition) -> list[str]:
    buses = {disk.bus for disk in definition.disk}
    words = ["-device", "virtio-scsi-pci,id=scsi0"] if "scsi" in buses else []
    if "sata" in buses and not _q35(definition):
        words += ["-device", "ich9-ahci,id=ahci"]
    return words


def _q35(definition: config.Definition) -> bool:
    return "q35" in definition.machine.partition(",")[0]


def _device(definition: config.Definition, disk: config.DiskDefinition, n: int) -> str:
    if disk.bus == "virtio":
        return "virtio-blk-pci"
    if disk.bus == "scsi":
        return f"scsi-hd,bus=scsi0.0,scsi-id={n}"
    if disk.bus == "ide" and _q35(definition):
        raise _unfit(definition, disk, 'ide needs machine = "pc"; q35 has sata')
    if n >= _PORTS[disk.bus]:
        raise _unfit(definition, disk, f"the machine has {_PORTS[disk.bus]} ports for {disk.bus}")
    if disk.bus == "ide":
        return f"ide-hd,bus=ide.{n // 2},unit={n % 2}"
    return f"ide-hd,bus={'ide' if _q35(definition) else 'ahci'}.{n}"


def _unfit(definition: config.Definition, disk: config.DiskDefinition, reason: str) -> errors.Error:
    return errors.ConfigError(file=f"domain '{definition.name}'", key=f"disk {disk.target}:", reason=reason)


def checked(path: str) -> str:
    """The path, if a socket can have it."""
    length = len(path.encode(errors="surrogateescape"))
    if length > SUN_PATH:
        raise errors.SocketPathTooLong(path=path, length=length, limit=SUN_PATH)
    return path
