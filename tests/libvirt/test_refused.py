"""A machine that the real libvirtd runs is refused by name, on the monitor that its user gave us and on libvirtd's own."""

from pathlib import Path

import pytest

from tests import requires
from tests.lab.daemon import Daemon
from tests.libvirt.libvirtd import Libvirtd

pytestmark = requires.requires_libvirt

DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web,1</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
  <qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{monitor},server=on,wait=off'/></qemu:commandline>
</domain>
"""


@pytest.mark.parametrize("whose", ["given-to-us", "libvirts-own"])
def test_a_machine_of_libvirts(daemon: Daemon, libvirt: Libvirtd, short_dir: Path, whose: str) -> None:
    monitor = short_dir / "qmp.sock"
    file = short_dir / "web.xml"
    file.write_text(DOMAIN.format(monitor=monitor))
    libvirt.start()
    libvirt.ok("define", file)
    libvirt.ok("start", "web,1")
    if whose == "libvirts-own":
        (monitor,) = (libvirt.root / "var/lib/libvirt/qemu").glob("domain-*/monitor.sock")

    refusal = daemon.refused("attach", "daisy", monitor)
    assert refusal.startswith(f"the machine at {monitor} is libvirtd's domain 'web,1': use virsh for it")
    assert daemon.ok("list", "--all", "--name") == "\n"
    assert libvirt.ok("qemu-monitor-command", "web,1", "--hmp", "info status").startswith(
        "VM status: running"
    )
    libvirt.ok("destroy", "web,1")
