"""The third side: a domain of a real libvirtd, by the virsh that its users have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import requires
from tests.bench import sides
from tests.lab import qemu
from tests.libvirt import libvirtd

_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type><loader readonly='yes' type='rom'>{firmware}</loader></os>
  <devices>
    <emulator>{emulator}</emulator>
{disks}    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""

_DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{file}'/><target dev='vd{letter}' bus='virtio'/>
    </disk>
"""


def lacking() -> str:
    """Why there can be none here; empty when there can."""
    return requires.NEEDS["libvirt"]() or ""


class Libvirtd(libvirtd.Libvirtd):
    """A running libvirtd that listens in ``folder`` too: a virsh that had to enter the namespaces would look slower than it is."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__()
        self.socket = folder / "libvirt-sock"
        self._firmware = qemu.idle_firmware(folder / "idle.bin")
        with (self.root / "etc/libvirt/libvirtd.conf").open("a") as settings:
            settings.write(f'unix_sock_dir = "{folder}"\n')
        (self.root / "run/libvirt").mkdir(parents=True)
        (self.root / "run/libvirt/libvirt-sock").symlink_to(self.socket)  # where its own virsh looks
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def timed(self, *words: str | Path) -> float:
        """Run virsh, which must succeed; return the wall time of its process."""
        uri = f"qemu+unix:///system?socket={self.socket}"
        return sides.run(["virsh", "-q", "-c", uri, *words])

    def domain(self, tops: Sequence[Path] = (), *, machine: str = "q35", memory: int = 32) -> Domain:
        """Start a domain on these images."""
        name = sides.fresh("lv")
        disks = "".join(_DISK.format(file=top, letter="abcdefgh"[n]) for n, top in enumerate(tops))
        path = self.socket.parent / f"{name}.xml"
        path.write_text(
            _DOMAIN.format(
                name=name,
                memory=memory,
                machine=machine,
                firmware=self._firmware,
                emulator=shutil.which(qemu.qemu_binary()),
                disks=disks,
            )
        )
        self.ok("define", path)
        self.ok("start", name)
        return Domain(self, name)

    @property
    def status(self) -> Path:
        """What the kernel tells of it."""
        pid = (self.root / "run/libvirtd.pid").read_text().strip()
        return self.root / "proc" / pid / "status"


class Domain:
    """A running domain; the name of its newest snapshot in ``newest``."""

    def __init__(self, home: Libvirtd, name: str) -> None:
        self.home = home
        self.name = name
        self.newest = ""

    def create(self) -> Mapping[str, float]:
        """One snapshot of all its disks."""
        self.newest = sides.fresh("s")
        words = ("snapshot-create-as", self.name, self.newest, "--disk-only", "--atomic")
        return {"virsh": self.home.timed(*words)}

    def pull(self, *words: str) -> Mapping[str, float]:
        """The first disk's whole chain into its active layer."""
        return {"virsh": self.home.timed("blockpull", self.name, "vda", "--wait", *words)}

    def remove(self) -> None:
        """End it and forget it, with what it knows of snapshots."""
        self.home.ok("destroy", self.name)
        self.home.ok("undefine", self.name, "--snapshots-metadata")
