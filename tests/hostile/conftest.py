"""The daemon among monitors that misbehave, beside one real machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import misbehaviour, peers
from tests.lab import fake_qemu, qemu
from tests.lab.daemon import Daemon
from tests.lab.images import MIB


def memory(pid: int) -> dict[str, int]:
    """A process' resident memory in bytes: ``VmRSS`` now, ``VmHWM`` at most so far."""
    rows = Path(f"/proc/{pid}/status").read_text().split("\n")
    words = [row.split() for row in rows if row.startswith(("VmRSS:", "VmHWM:"))]
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _unit in words}


class Ward:
    """A daemon, a healthy machine ``rose``, and for each case a domain whose monitor misbehaves."""

    def __init__(self, root: Path, stack: contextlib.ExitStack) -> None:
        (root / "config").mkdir()
        (root / "config/qmpsnap.toml").write_text("greeting_timeout = 0.2\n")
        self.daemon = Daemon(root)
        # Not at debug level: with a storm in the log it would be the log that is tested.
        self.daemon.program[1:] = []
        stack.enter_context(self.daemon)
        self.peers = stack.enter_context(peers.Peers())
        (root / "s").mkdir()
        self._recorded = peers.record(root / "s")
        image = qemu.image(root / "rose.qcow2", 4 * MIB)
        drive = f"file={image},format=qcow2,if=virtio"
        self.rose = stack.enter_context(qemu.Machine(root / "rose", ["-drive", drive]))
        self.daemon.ok("attach", "rose", self.rose.monitor_path)
        self.before = self.memory()
        self.sick: dict[str, fake_qemu.FakeQemu] = {}

    def memory(self) -> dict[str, int]:
        """The daemon's."""
        return memory(self.daemon.pid)

    def admit(self, cases: list[misbehaviour.Case]) -> None:
        """Attach them all at once."""
        threads = [threading.Thread(target=self._attach, args=(case,)) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _attach(self, case: misbehaviour.Case) -> None:
        folder = Path(tempfile.mkdtemp(dir=self.daemon.root, prefix="p"))
        for name in peers.IMAGES:
            shutil.copy(self.daemon.root / "s" / name, folder)
        recorded = peers.replay(self._recorded, folder)
        peer = fake_qemu.FakeQemu(str(folder / "m"), case.session, recorded)
        self.sick[str(case)] = peer
        self.peers.start(peer)
        answer = self.daemon.api("POST", "/domains", {"name": str(case), "monitor": peer.path})
        assert answer.status == 201, answer


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    root = Path(tempfile.mkdtemp(prefix="qh-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root)
        found = Ward(root, stack)
        found.admit(misbehaviour.CASES)
        yield found
