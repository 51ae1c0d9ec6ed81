"""A real QEMU whose monitor passes through a liar: what it says of a job decides nothing that is not looked at."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import requires
from tests.conftest import StartMachine
from tests.hostile import peers
from tests.lab import fake_qemu, qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB, MIB

pytestmark = requires.requires_qemu


def _status(job: str, status: object) -> fake_qemu.Message:
    return fake_qemu.event("JOB_STATUS_CHANGE", {"id": job, "status": status})


#: What is said of a job that runs, before its "running" is passed on.
LIES: dict[str, Callable[[str], fake_qemu.Message]] = {
    "no status": lambda job: _status(job, "nonsense"),
    "no text": lambda job: _status(job, ["running"]),
    "a pending one": lambda job: _status(job, "pending"),
    "an end": lambda job: _status(job, "null"),
    "an end without end": lambda job: fake_qemu.event("BLOCK_JOB_COMPLETED", {"device": job}),
    "a failure": lambda job: fake_qemu.event(
        "BLOCK_JOB_COMPLETED", {"device": job, "offset": 0, "len": -1, "error": "it burns"}
    ),
}


class Liar:
    """A session that passes everything on to a real monitor and back, and tells one lie."""

    def __init__(self, target: Path, lie: str) -> None:
        self.told = False
        self._target = target
        self._lie = LIES[lie]

    async def __call__(self, link: fake_qemu.Link) -> None:
        async with await trio.open_unix_socket(str(self._target)) as qemu_side, trio.open_nursery() as both:
            both.start_soon(self._to_client, qemu_side, link)
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in link.stream:
                    await qemu_side.send_all(data)
            both.cancel_scope.cancel()

    async def _to_client(self, qemu_side: trio.SocketStream, link: fake_qemu.Link) -> None:
        rest = b""
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in qemu_side:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    lie = [] if self.told else self._about(json.loads(line))
                    self.told = self.told or bool(lie)
                    await link.send(*lie, line + b"\n")

    def _about(self, message: dict[str, Any]) -> list[fake_qemu.Message | bytes]:
        data = message.get("data", {})
        if message.get("event") == "JOB_STATUS_CHANGE" and data["status"] == "running":
            return [self._lie(data["id"])]
        return []


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Daemon, peers.Peers]]:
    with running() as daemon, peers.Peers() as served:
        yield daemon, served


@pytest.mark.parametrize("lie", LIES)
def test_a_pull_survives_lies_about_its_job(
    service: tuple[Daemon, peers.Peers], machine: StartMachine, short_dir: Path, lie: str
) -> None:
    """It is done, or it failed with one line; the guest reads what it wrote, and the next pull is done."""
    daemon, served = service
    name = lie.replace(" ", "-")
    image = qemu.image(short_dir / "a.qcow2", 4 * MIB)
    vm = machine(["-drive", f"file={image},format=qcow2,if=virtio"], directory=short_dir / "m")
    vm.guest_write("virtio0", 1, 0, 64 * KIB)
    liar = Liar(vm.monitor_path, lie)
    served.start(fake_qemu.FakeQemu(str(short_dir / "liar"), liar))
    daemon.ok("attach", name, short_dir / "liar")
    daemon.ready(name)
    daemon.ok("snapshot-create-as", name, "s1", "--disk-only")
    vm.guest_write("virtio0", 2, 64 * KIB, 64 * KIB)

    done = daemon.cli("blockpull", name, "vda", "--wait")
    assert liar.told
    assert "Pull complete" in done.stdout or done.stderr.count("\n") == 1, done
    daemon.until(name, lambda domain: domain["monitor"]["state"] == "ready" and not domain["operations"])
    if done.status != 0:
        daemon.ok("blockpull", name, "vda", "--wait")
    assert [layer["file"] for layer in daemon.disk(name)["chain"]] == [str(short_dir / "a.s1")]
    assert vm.qmp("query-jobs") == []
    assert vm.guest_read_ok("virtio0", 1, 0, 64 * KIB)
    assert vm.guest_read_ok("virtio0", 2, 64 * KIB, 64 * KIB)
    assert "Traceback" not in daemon.log
