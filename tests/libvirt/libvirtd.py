"""A real libvirtd in namespaces of its own: its directories are empty at first, and nothing of the host's is touched.

The paths of libvirt's state are compiled in, so they are hidden by a private mount namespace; a pid namespace makes all that it
started end with it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.lab.errors import LabError
from tests.lab.qmp import PATIENCE

# Root's own files, no cgroups, no security labels: facts/libvirt.md 0.
_QEMU_CONF = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""

_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

# The first process of the namespace. It is a shell that waits, because that reaps what others leave behind: libvirt probes
# daemonized QEMUs, and takes a zombie for a process that cannot be killed. It ends with whoever holds its standard input.
_ENTER = """\
set -e
mount -t proc proc "$1/proc"
if [ -n "$1" ]; then mount --rbind /dev "$1/dev"; mount --rbind /sys "$1/sys"; mount --bind /tmp "$1/tmp"; fi
for folder in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt run; do
    mount -t tmpfs tmpfs "$1/$folder"
done
touch "$1/etc/libvirt/private"
exec chroot "${1:-/}" sh -c 'exec 3<&0; cat <&3 & echo ready; wait $!'
"""

# What the log may say of a host without udev, D-Bus or bridges is not about domains; the rest would be about ours.
_OURS = re.compile(
    r": error : (\w*(?:[Dd]omain|[Ss]napshot|[Mm]oment|XML|XPath|[Qq]emu|Storage|catch)\w*:.*)"
)

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Result(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Libvirtd:
    """The namespaces, with no libvirtd in them yet. ``tree`` is a Debian with another libvirt; None is the host's.

    ``root`` is how its files are seen from outside.
    """

    def __init__(self, tree: Path | None = None) -> None:
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"),
                *("--propagation", "private", "sh", "-c", _ENTER, "sh", str(tree or "")),
            ],
            env={**os.environ, "PATH": _PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._enter()
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            _, reason = self._holder.communicate(timeout=PATIENCE)
            raise LabError(f"no namespaces for libvirtd: {reason.decode(errors='replace')}")
        pid = self._holder.pid
        self._first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        self.root = Path(f"/proc/{self._first}/root")
        if not (self.root / "etc/libvirt/private").exists():
            raise LabError("libvirt's directories are not hidden: nothing may be written there")
        self.snapshots = self.root / "var/lib/libvirt/qemu/snapshot"
        self._log = self.root / "var/log/libvirt/libvirtd.log"
        (self.root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
        (self.root / "etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD_CONF)
        self._pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the namespaces and, by --kill-child, everything in them."""
        self._holder.kill()
        self._holder.communicate()

    def run(self, *words: str | Path) -> Result:
        """Run a command beside libvirtd."""
        enter = ["nsenter", "-t", str(self._first), "--mount", "--pid", "--net", "--ipc", "--root", "--wd=/"]
        done = subprocess.run(
            [*enter, *(str(word) for word in words)],
            env={"PATH": _PATH, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    # the daemon

    @functools.cached_property
    def version(self) -> tuple[int, ...]:
        """libvirt's version."""
        return tuple(int(part) for part in self.run("libvirtd", "--version").stdout.split()[-1].split("."))

    def start(self) -> None:
        """Start libvirtd; it has read its directories when this returns."""
        assert not self.alive
        done = self.run("libvirtd", "--daemon")
        if done.status:
            raise LabError(f"libvirtd does not start: {done}")
        self._pid = int((self.root / "run/libvirtd.pid").read_text())
        self.ok("uri")

    def stop(self) -> None:
        """End libvirtd; what it has answered is on disk. Asked to end by itself, it has been seen to wait for 30 seconds."""
        self.run("sh", "-c", f"kill -9 {self._pid}")  # the shell's own: a small tree has no /bin/kill
        deadline = time.monotonic() + PATIENCE
        while self._process.exists():  # a zombie's threads may still hold the lock of its pid file
            if time.monotonic() > deadline:
                raise LabError("libvirtd does not end")
            time.sleep(0.01)  # it is nobody's child here: there is no event

    @property
    def _process(self) -> Path:
        return self.root / f"proc/{self._pid}"

    @property
    def alive(self) -> bool:
        try:
            status = (self._process / "status").read_text()
        except OSError:
            return False
        return "Name:\tlibvirtd\n" in status and "State:\tZ" not in status

    def reset(self) -> None:
        """As it was before the first start, but for what libvirt knows of QEMU, which costs two seconds to find out."""
        if self.alive:
            for domain in self.ok("-q", "list", "--name").split():
                self.ok("destroy", domain)
            self.stop()
        for folder in (self.snapshots, self.root / "etc/libvirt/qemu"):
            shutil.rmtree(folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    @property
    def complaints(self) -> list[str]:
        """The errors in the log that are about domains and their snapshots."""
        return [found[1] for line in self._log.read_text().splitlines() if (found := _OURS.search(line))]

    # its client

    def virsh(self, *words: str | Path) -> Result:
        """Run virsh; a libvirtd that dies of it is an error."""
        done = self.run("virsh", "-c", "qemu:///system", *words)
        if not self.alive:
            raise LabError(f"libvirtd died of {words}: {done}")
        return done

    def ok(self, *words: str | Path) -> str:
        """Run virsh, which must succeed and say nothing on stderr; return its stdout."""
        done = self.virsh(*words)
        assert (done.status, done.stderr) == (0, ""), (words, done)
        return done.stdout

    def lines(self, *words: str | Path) -> list[str]:
        """The lines of what virsh says, without the empty ones at its end."""
        return self.ok(*words).rstrip("\n").split("\n")

    # handing over

    def adopt(self, state: Path) -> None:
        """What a user does with our state directory: define the domains, put the snapshots in place, start libvirtd."""
        self.start()
        for file in sorted((state / "domain").iterdir()):
            self.ok("define", file)
        self.stop()
        shutil.copytree(state / "snapshot", self.snapshots, dirs_exist_ok=True)
        self.start()

    def written(self, domain: str) -> dict[str, bytes]:
        """The domain's snapshot files as they are now."""
        return {file.name: file.read_bytes() for file in sorted((self.snapshots / domain).iterdir())}
