"""A machine with two disks, attached: what the stories about more than one disk begin with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.conftest import StartMachine
from tests.lab import qemu
from tests.lab.daemon import Daemon
from tests.lab.images import KIB, MIB

SIZE = 16 * MIB
GUESTS = {"vda": "virtio0", "vdb": "virtio1"}
TRACE = ("-trace", "handle_qmp_command")


class Pair:
    """``vda`` on `a.qcow2` and ``vdb`` on `b.qcow2`, each with its letter's code in its first 64 KiB."""

    def __init__(
        self,
        daemon: Daemon,
        machine: StartMachine,
        directory: Path,
        name: str,
        *args: str,
        owner: int | None = None,
    ) -> None:
        self.daemon = daemon
        self.directory = directory
        self.name = name
        self.files = {"vda": directory / "a.qcow2", "vdb": directory / "b.qcow2"}
        drives: list[str] = []
        for file in self.files.values():
            qemu.image(file, SIZE)
            qemu.write_pattern(file, "qcow2", ord(file.stem), 0, 64 * KIB)
            if owner is not None:
                os.chown(file, owner, owner)
            drives += ["-drive", f"file={file},format=qcow2,if=virtio"]
        self.vm = machine([*drives, *TRACE, *args], directory=directory / "m")
        daemon.ok("attach", name, self.vm.monitor_path)

    def create(self, *words: str | Path) -> str:
        return self.daemon.ok("snapshot-create-as", self.name, *words, "--disk-only")

    def refused(self, *words: str | Path) -> str:
        return self.daemon.refused("snapshot-create-as", self.name, *words, "--disk-only")

    def write(self, pattern: int, offset: int = 64 * KIB) -> None:
        for guest in GUESTS.values():
            self.vm.guest_write(guest, pattern, offset, 64 * KIB)
            self.vm.guest_flush(guest)

    def chain(self, target: str = "vda") -> list[str]:
        """The chain's file names, active layer first."""
        return [Path(layer["file"]).name for layer in self.daemon.disk(self.name, target)["chain"]]

    def names(self) -> list[str]:
        snapshots = self.daemon.get(f"/domains/{self.name}/snapshots")["snapshots"]
        return [snapshot["name"] for snapshot in snapshots]

    def picture(self) -> dict[str, Any]:
        """All that a refused or undone request must leave as it was."""
        rows = self.vm.qmp("query-block")
        names = {node["node-name"] for node in self.vm.qmp("query-named-block-nodes")}
        return {
            "tops": [row["inserted"]["node-name"] for row in rows],
            "images": [row["inserted"]["image"]["filename"] for row in rows],
            "nodes": names,
            "graph": len(self.vm.qmp("x-debug-query-block-graph")["edges"]),
            "jobs": self.vm.qmp("query-jobs"),
            "files": sorted(str(path) for path in self.directory.rglob("*") if path.name != "stderr.log"),
            "snapshots": self.names(),
            "journal": [str(path) for path in (self.daemon.root / "state/journal" / self.name).glob("*")],
            "leftovers": [str(path) for path in (self.daemon.root / "state/tmp").iterdir()],
        }

    def commands(self, *names: str) -> list[dict[str, Any]]:
        """The QMP commands of these names that QEMU has got so far, as QEMU's own trace shows them."""
        found = []
        for line in self.vm.stderr.splitlines():
            _head, mark, text = line.partition(" req: ")
            if mark and (command := json.loads(text))["execute"] in names:
                found.append(command)
        return found
