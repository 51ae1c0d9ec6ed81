"""What a test needs of the host. What a laptop lacks is skipped with its reason; a named need never is.

`QMPSNAP_REQUIRE=qemu,guest` (any of `NEEDS`) turns the skips for these things into failures: CI sets it, so
that a green run means that they ran. Use the marks on a test, a class, or as `pytestmark`:

    pytestmark = requires.requires_qemu
"""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import guest, qemu

requires_qemu = pytest.mark.qemu
requires_guest = pytest.mark.guest
requires_libvirt = pytest.mark.libvirt
requires_systemd = pytest.mark.systemd
requires_fuse = pytest.mark.fuse

OTHER_QEMU = "QMPSNAP_OTHER_QEMU"
LIBVIRT_TREE = "QMPSNAP_LIBVIRT_TREE"


@functools.cache
def _qemu() -> str | None:
    for name in (qemu.qemu_binary(), qemu.tool("qemu-img"), qemu.tool("qemu-io")):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    return None


@functools.cache
def _guest() -> str | None:
    if platform.machine() != "x86_64":
        return f"the test guest is for x86_64, not for {platform.machine()}"
    try:
        guest.build()
    except guest.BuildError as error:
        return f"the test guest cannot be built: {error}"
    return _qemu()


@functools.cache
def _libvirt() -> str | None:
    for name in ("libvirtd", "virsh"):
        if shutil.which(name) is None and not Path("/usr/sbin", name).exists():
            return f"{name} is not installed"
    if os.geteuid() != 0:
        return "libvirtd's system driver needs root"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "true"], capture_output=True, check=False
    )
    if done.returncode:
        return f"no namespaces for libvirtd: {done.stderr.decode(errors='replace').strip()}"
    return _qemu()


@functools.cache
def _systemd() -> str | None:
    # sd_booted(3): the directory exists when systemd is the service manager
    return None if Path("/run/systemd/system").is_dir() else "systemd does not run here"


@functools.cache
def _fuse() -> str | None:
    if os.geteuid() != 0:
        return "mounting a file system of our own needs root"
    return None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "there is no /dev/fuse to be used"


@functools.cache
def _other_qemu() -> str | None:
    name = os.environ.get(OTHER_QEMU)
    if not name:
        return f"{OTHER_QEMU} names no second QEMU"
    return None if shutil.which(name) else f"{OTHER_QEMU}={name} cannot be run"


@functools.cache
def _libvirt_tree() -> str | None:
    name = os.environ.get(LIBVIRT_TREE)
    if not name:
        return f"{LIBVIRT_TREE} names no tree with another libvirt"
    return None if Path(name, "usr/sbin/libvirtd").exists() else f"{LIBVIRT_TREE}={name} has no libvirtd"


NEEDS: dict[str, Callable[[], str | None]] = {
    "qemu": _qemu,
    "guest": _guest,
    "libvirt": _libvirt,
    "systemd": _systemd,
    "fuse": _fuse,
    "other-qemu": _other_qemu,
    "libvirt-tree": _libvirt_tree,
}


def required() -> frozenset[str]:
    """Return the needs that this run must not skip; raise for a name that is none."""
    names = frozenset(name.strip() for name in os.environ.get("QMPSNAP_REQUIRE", "").split(",")) - {""}
    unknown = names - NEEDS.keys()
    if unknown:
        raise pytest.UsageError(f"QMPSNAP_REQUIRE: {', '.join(sorted(unknown))}: not in {', '.join(NEEDS)}")
    return names


def need(name: str) -> None:
    """Return if the host has it; else skip the test, or fail it if this run requires it."""
    reason = NEEDS[name]()
    if reason is None:
        return
    if name in required():
        pytest.fail(f"{reason}, and QMPSNAP_REQUIRE says that it must be", pytrace=False)
    pytest.skip(reason)


def other_qemu() -> str:
    """Return the second QEMU's path (a program or a wrapper such as `lab/trixie-qemu.sh` writes), or skip."""
    need("other-qemu")
    found = shutil.which(os.environ[OTHER_QEMU])
    assert found is not None
    return found


def libvirt_tree() -> Path:
    """Return the root of another Debian, with libvirt and QEMU in it, or skip."""
    need("libvirt-tree")
    return Path(os.environ[LIBVIRT_TREE])
