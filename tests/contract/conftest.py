"""The two servers and the two clients of the contract suite."""

import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from qmpsnap.talk import monitor, wire
from tests.lab.fake_qemu import FakeQemu
from tests.lab.oracle import Oracle

START_DEADLINE = 20.0


class Client(Protocol):
    """What `Monitor` and the oracle have in common."""

    @property
    def version(self) -> tuple[int, int, int]: ...
    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any: ...
    def events(self) -> trio.MemoryReceiveChannel[wire.Event]: ...
    async def wait_closed(self) -> None: ...
    async def aclose(self) -> None: ...


Join = Callable[[], Awaitable[Client]]


class RealQemu:
    """`-machine none`, stopped, with one monitor: 40 ms to start, no disk, no guest."""

    def __init__(self, path: str) -> None:
        self.path = path
        binary = os.environ.get("QMPSNAP_QEMU", "qemu-system-x86_64")
        arguments = ["-machine", "none", "-nodefaults", "-S", "-m", "16", "-display", "none"]
        self.process = subprocess.Popen([binary, *arguments, "-qmp", f"unix:{path},server=on,wait=off"])
        self.pid = self.process.pid
        deadline = time.monotonic() + START_DEADLINE
        while not self._listens():
            assert self.process.poll() is None, f"{binary} ended at once"
            assert time.monotonic() < deadline, f"{binary} does not listen"
            time.sleep(0.002)

    def _listens(self) -> bool:
        # a trial connection would take the monitor's only place; 00010000 is the kernel's "accepts"
        with open("/proc/net/unix", errors="surrogateescape") as table:
            return any(row.split()[3] == "00010000" and row.endswith(f" {self.path}\n") for row in table)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.qemu)])
async def server(
    request: pytest.FixtureRequest, short_dir: Path, nursery: trio.Nursery
) -> AsyncIterator[FakeQemu | RealQemu]:
    path = str(short_dir / "qmp.sock")
    if request.param == "fake":
        fake = FakeQemu(path)
        nursery.start_soon(fake.run)
        yield fake
    else:
        real = RealQemu(path)
        try:
            yield real
        finally:
            real.kill()


@pytest.fixture
def real_qemu(short_dir: Path) -> Iterator[RealQemu]:
    real = RealQemu(str(short_dir / "qmp.sock"))
    yield real
    real.kill()


@pytest.fixture(params=["monitor", "oracle"])
async def join(
    request: pytest.FixtureRequest, server: FakeQemu | RealQemu, nursery: trio.Nursery
) -> AsyncIterator[Join]:
    """Connect one more client of the kind; all are closed afterwards."""
    clients: list[Client] = []

    async def connect() -> Client:
        client: Client
        if request.param == "monitor":
            client = await monitor.connect(nursery, server.path)
        else:
            client = await Oracle.connect(server.path)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.aclose()
