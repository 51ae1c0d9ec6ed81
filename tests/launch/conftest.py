"""A state directory of our own, and qemu-launch run as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from qmpsnap import paths
from qmpsnap.model import domain_xml, snapshot
from qmpsnap.talk import store

ROOT = Path(__file__).parents[2]

UUID = "0a1b2c3d-0000-4000-8000-00000000da15"


@attrs.frozen
class Home:
    """A ``QMPSNAP_ROOT``."""

    folder: Path

    @property
    def paths(self) -> paths.Paths:
        return paths.find({"QMPSNAP_ROOT": str(self.folder)}, 0)

    @property
    def env(self) -> dict[str, str]:
        return {
            "QMPSNAP_ROOT": str(self.folder),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'qemu-launch'}",
        }

    @property
    def program(self) -> list[str]:
        return [sys.executable, "-m", "qemu_launch.main"]

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """qemu-launch to its end: for what ends by itself."""
        return subprocess.run(
            [*self.program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd,
            env={**os.environ, **self.env, **(env or {})},
        )

    def define(self, name: str, text: str) -> None:
        file = Path(self.paths.definition_file(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def record(
        self,
        name: str,
        disks: Mapping[str, Path | tuple[Path, str]],
        snapshots: Sequence[snapshot.Snapshot] = (),
    ) -> None:
        """The domain as the daemon would have recorded it: targets with their active layers (qcow2 unless said)."""
        found = [
            domain_xml.RecordedDisk(target, "virtio", str(file), form)
            for target, value in disks.items()
            for file, form in [value if isinstance(value, tuple) else (value, "qcow2")]
        ]
        state = store.Store(self.paths)
        state.prepare()
        state.record(
            name,
            domain_xml.RecordedDomain(name, UUID, disks=tuple(found)) if disks else None,
            {s.name: s for s in snapshots},
        )

    def open_journal(self, domain: str, operation: str = "op1") -> Path:
        folder = Path(self.paths.journal_dir(domain))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / operation).write_text("{}")
        return folder / operation


@pytest.fixture
def home(short_dir: Path) -> Home:
    return Home(short_dir / "root")


def taken(name: str, target: str, image: Path, overlay: Path, form: str = "qcow2") -> snapshot.Snapshot:
    """A snapshot of one disk, as the daemon writes it."""
    domain = domain_xml.RecordedDomain(
        "daisy", UUID, disks=(domain_xml.RecordedDisk(target, "virtio", str(image), form),)
    )
    disk = snapshot.SnapshotDisk(target, str(overlay), "qcow2", str(image), form)
    return snapshot.Snapshot(name, 1700000000, disks=(disk,), domain=domain_xml.build(domain))
