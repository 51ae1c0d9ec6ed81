"""What is compared: a QEMU driven by bare QMP, and the same kind of QEMU joined by qmpsnapd. The third is in ``libvirt``.

Every side has disks of the same shape, on the same file system, each in a machine of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab import daemon, images, qemu

SIZE = 1024 * images.MIB

# No flush of the daemon's own waits for the disk: the difference to the real one is what durability costs. Those of qemu-img stay.
_UNSYNCED = "import os, sys; os.fsync = os.fdatasync = lambda fd: None; from qmpsnap import daemon; sys.exit(daemon.main())"

_count = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that nothing else has."""
    return f"{prefix}{next(_count)}"


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    """Run a process to its end, which must be good; return its wall time."""
    words = [str(word) for word in command]
    begin = time.perf_counter()
    done = subprocess.run(
        words,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return seconds


def chain(folder: Path, depth: int, *, size: int = SIZE, data: int = 0) -> Path:
    """A chain of ``depth`` images, ``data`` bytes written in its base; the newest one's path."""
    folder.mkdir(parents=True)
    top = images.image(folder / "layer1.qcow2", size)
    if data:
        images.write_pattern(top, "qcow2", 7, 0, data)
    for number in range(2, depth + 1):
        top = images.image(folder / f"layer{number}.qcow2", size, backing=top)
    return top


def over(path: Path, below: Path) -> Path:
    """A new layer over an image: its path."""
    return images.image(path, backing=below)


def drives(tops: Sequence[Path]) -> list[str]:
    """QEMU's options for these disks."""
    return [
        word
        for number, top in enumerate(tops)
        for word in (
            *(
                "-blockdev",
                f"driver=qcow2,node-name=d{number},file.driver=file,file.filename={images.escape(top)}",
            ),
            *("-device", f"virtio-blk-pci,id=v{number},drive=d{number}"),
        )
    ]


class Raw:
    """Bare QMP by a blocking socket in this process, and the qemu-img that it takes."""

    def __init__(self, vm: qemu.Qemu, tops: Sequence[Path]) -> None:
        self.vm = vm
        self.tops = list(tops)
        self.nodes = [row["inserted"]["node-name"] for row in vm.qmp("query-block") if row.get("inserted")]

    def create(self) -> Mapping[str, float]:
        """Overlays made by qemu-img and one transaction onto them."""
        files, begin = self._files(), time.perf_counter()
        for file, top in zip(files, self.tops, strict=True):
            words = [
                images.tool("qemu-img"),
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                top,
                file,
                SIZE,
            ]
            subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, check=True)
        middle = time.perf_counter()
        self._transaction(files, "existing")
        end = time.perf_counter()
        return {"raw": end - begin, "raw transaction": end - middle}

    def absolute(self) -> Mapping[str, float]:
        """One transaction that has QEMU make the overlays, as articles have it."""
        files, begin = self._files(), time.perf_counter()
        self._transaction(files, "absolute-paths")
        return {"raw absolute": time.perf_counter() - begin}

    def _files(self) -> list[Path]:
        return [top.parent / fresh("raw") for top in self.tops]

    def _transaction(self, files: Sequence[Path], mode: str) -> None:
        nodes = [fresh("n") for _ in files]
        rows = zip(self.nodes, files, nodes, strict=True)
        actions = [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": below,
                    "snapshot-file": str(file),
                    "snapshot-node-name": node,
                    "format": "qcow2",
                    "mode": mode,
                },
            }
            for below, file, node in rows
        ]
        self.vm.qmp("transaction", actions=actions)
        self.nodes, self.tops = nodes, list(files)

    def pull(self) -> Mapping[str, float]:
        """The first disk's chain into its active layer, as QEMU alone does it."""
        begin = time.perf_counter()
        self.vm.qmp("block-stream", device=self.nodes[0], job_id=(job := fresh("j")))
        self.vm.event("BLOCK_JOB_COMPLETED", device=job)
        return {"raw": time.perf_counter() - begin}

    def durable_pull(self) -> Mapping[str, float]:
        """The same, on disk when it returns and proved so from outside: what "complete" means to us."""
        node, top, job, begin = self.nodes[0], self.tops[0], fresh("j"), time.perf_counter()
        self.vm.qmp("block-stream", device=node, job_id=job, auto_finalize=False)
        self.vm.event("JOB_STATUS_CHANGE", id=job, status="pending")
        self.vm.hmp(f'qemu-io {node} "flush"')
        _flush(top)
        words = [images.tool("qemu-img"), "map", "-U", "--output=json", "-f", "qcow2", str(top)]
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        self.vm.qmp("job-finalize", id=job)
        self.vm.event("BLOCK_JOB_COMPLETED", device=job)
        self.vm.hmp(f'qemu-io {node} "flush"')
        _flush(top)
        return {"raw durable": time.perf_counter() - begin}


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.close(fd)


class Ours:
    """A machine joined by a qmpsnapd, as the domain ``name``."""

    def __init__(self, server: daemon.Daemon, vm: qemu.Qemu, monitor: Path | None = None) -> None:
        self.server = server
        self.vm = vm
        self.name = fresh("vm")
        answer = server.api(
            "POST", "/domains", {"name": self.name, "monitor": str(monitor or vm.monitor_path)}
        )
        assert answer.status == 201, answer
        server.ready(self.name)

    def leave(self) -> None:
        """The daemon forgets the domain: one whose machine is gone would be looked for while others are measured."""
        domain = f"/domains/{self.name}"
        for snapshot in self.server.get(f"{domain}/snapshots")["snapshots"]:
            if snapshot["parent"] is None:
                path = f"{domain}/snapshots/{snapshot['name']}?metadata=true&children=true&wait=true"
                assert self.server.api("DELETE", path).status == 200
        assert self.server.api("DELETE", domain).status == 204

    def operation(self, path: str, body: object) -> float:
        """The seconds that the daemon worked for one request."""
        answer = self.server.api("POST", f"/domains/{self.name}{path}?wait=true", body)
        assert answer.status == 200, answer
        seconds: float = answer.body["finished"] - answer.body["started"]
        return seconds

    def create(self) -> float:
        return self.operation("/snapshots", {"name": fresh("s")})

    def pull(self) -> float:
        return self.operation("/pull", {"disk": self.target})

    @property
    def target(self) -> str:
        disks: list[dict[str, Any]] = self.server.get(f"/domains/{self.name}/disks")["disks"]
        target: str = disks[0]["target"]
        return target

    def cli(self, verb: str, *words: str) -> float:
        """The wall time of the client's process."""
        return run(self.server.command(verb, self.name, *words), self.server.env)

    def cli_create(self) -> float:
        return self.cli("snapshot-create-as", fresh("s"), "--disk-only", "--atomic")


@contextlib.contextmanager
def serving(folder: Path, *, settings: str = "", synced: bool = True) -> Iterator[daemon.Daemon]:
    """A qmpsnapd in a folder, with the log and the compiled modules of an installed one."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "qmpsnap.toml").write_text(settings)
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder.parent / "compiled")}
    found = daemon.Daemon(folder, env)
    found.program = found.program[:1] if synced else [sys.executable, "-c", _UNSYNCED]
    with found:
        yield found
