"""The real programs for tests: a `qmpsnapd` of its own, and the `qmpsnap` that speaks to it, both as processes.

    def test_it(daemon, machine):
        vm = machine([...])
        assert daemon.cli("attach", "daisy", vm.monitor_path).status == 0
        daemon.kill9()
        daemon.start()

Import the fixtures that a directory of tests needs into its `conftest.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import pytest

from tests.lab.errors import LabError
from tests.lab.images import tool
from tests.lab.qmp import PATIENCE

_BIN = Path(sys.executable).parent


class Result(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Answer(NamedTuple):
    """What the control API answered; ``body`` is the JSON of it, or its text where it is none."""

    status: int
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        """The object that says what is wrong; the answer must be one."""
        assert self.status >= 400, self
        found: dict[str, Any] = self.body["error"]
        return found


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("qmpsnap", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    """A `qmpsnapd` with its state, sockets and settings under ``root``; it serves when `start` returns.

    ``root`` must be short, for sockets. ``env`` is added to the environment of both programs, ``faults`` (see
    `qmpsnap.faults`) to the daemon's alone, and for one start only. The log, at debug level, is ``root/log``.
    ``program`` is what a start runs.
    """

    def __init__(self, root: Path, env: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.socket = root / "run" / "qmpsnap.sock"
        self.log_path = root / "log"
        self.program: list[str] = [str(_BIN / "qmpsnapd"), "--log-level", "debug"]
        keep = {key: value for key, value in os.environ.items() if not key.startswith("QMPSNAP_")}
        self.env = {
            **keep,
            "QMPSNAP_ROOT": str(root),
            "QMPSNAP_QEMU_IMG": tool("qemu-img"),
            "TZ": "UTC",
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alive:
            self.kill9()

    # the process

    def start(self, *, faults: Mapping[str, str] | None = None, wait: bool = True) -> None:
        """Start the daemon, and return when it serves (with ``wait`` false, at once)."""
        assert not self.alive
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log_path.open("ab") as log:
            # systemd's own way to be told, so that nothing is polled: an abstract name that only we have
            ready.bind(f"\0qmpsnap-test-{os.getpid()}-{id(self)}-{time.monotonic_ns()}")
            notify = "@" + ready.getsockname().decode().removeprefix("\0")
            self.process = subprocess.Popen(
                self.program,
                env={**self.env, **(faults or {}), "NOTIFY_SOCKET": notify},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            if wait:
                self._until_ready(ready)

    def _until_ready(self, ready: socket.socket) -> None:
        assert self.process is not None
        ready.settimeout(0.2)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if ready.recv(4096) == b"READY=1":
                    return
            if self.process.poll() is not None:
                break
        raise LabError(f"qmpsnapd does not serve: {self.log[-2000:]}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """All that the daemon has written to its log, over all its starts."""
        return self.log_path.read_text(errors="replace")

    def wait(self) -> int:
        """Wait for the daemon to end by itself, and return its status as `subprocess` gives it."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def kill9(self) -> None:
        """End the daemon as a crash does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End the daemon as systemd does, and return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def restart(self) -> None:
        """Stop it in good order and start it again."""
        assert self.stop() == 0, self.log[-2000:]
        self.start()

    # its clients

    def command(self, *words: str | Path) -> list[str]:
        """The command line of the real client."""
        return [str(_BIN / "qmpsnap"), *(str(word) for word in words)]

    def cli(self, *words: str | Path, cwd: Path | None = None) -> Result:
        """Run the real client to its end."""
        done = subprocess.run(
            self.command(*words),
            env=self.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *words: str | Path) -> str:
        """Run the client, which must succeed and say nothing on stderr; return its stdout."""
        done = self.cli(*words)
        assert (done.status, done.stderr) == (0, ""), (words, done, self.log[-3000:])
        return done.stdout

    def refused(self, *words: str | Path) -> str:
        """Run the client, which must fail with status 1 and one line on stderr; return that line's text."""
        done = self.cli(*words)
        assert done.status == 1, (words, done)
        assert done.stderr.startswith("error: "), (words, done)
        assert done.stderr.count("\n") == 1, (words, done)
        return done.stderr.removeprefix("error: ").removesuffix("\n")

    @contextlib.contextmanager
    def spawn(self, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """The client while it runs, its output in pipes (as bytes: text would lose `\\r`); killed at the end if it still runs."""
        with subprocess.Popen(
            self.command(*words),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def api(self, method: str, path: str, body: object = None) -> Answer:
        """One request of the control API; ``path`` comes without its ``/v1``, ``body`` is sent as JSON (bytes as they are)."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = _Connection(self.socket)
        try:
            connection.request(method, f"/v1{path}", raw)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if "json" in (answer.getheader("Content-Type") or ""):
            return Answer(answer.status, json.loads(data))
        return Answer(answer.status, data.decode())

    def get(self, path: str) -> Any:
        """The body of a GET that must succeed."""
        answer = self.api("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def disk(self, domain: str, target: str = "vda") -> dict[str, Any]:
        """One disk as the API shows it."""
        disks: list[dict[str, Any]] = self.get(f"/domains/{domain}/disks")["disks"]
        return next(disk for disk in disks if disk["target"] == target)

    def until(self, domain: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until something is true of a domain as the API shows it, by its events; return the domain."""
        connection = _Connection(self.socket)
        try:
            # Subscribed before the first look: no change is missed in between.
            connection.request("GET", "/v1/events")
            stream = connection.getresponse()
            deadline = time.monotonic() + PATIENCE
            while True:
                found = self.api("GET", f"/domains/{domain}")
                if found.status == 200 and true(found.body):
                    value: dict[str, Any] = found.body
                    return value
                assert time.monotonic() < deadline, (found, self.log[-3000:])
                while not stream.readline().startswith(b"event:"):
                    assert not stream.isclosed(), "the daemon ended its events"
        except TimeoutError:
            raise LabError(f"{domain}: {found}; {self.log[-3000:]}") from None
        finally:
            connection.close()

    def ready(self, domain: str) -> dict[str, Any]:
        """Wait until the domain's monitor is ours and recovery is done."""
        return self.until(domain, lambda found: found["monitor"]["state"] == "ready")


class StartDaemon(Protocol):
    """Start one more daemon: in a new root, or in the one given."""

    def __call__(self, root: Path | None = None, env: Mapping[str, str] | None = None) -> Daemon: ...


@contextlib.contextmanager
def _short() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="qd-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def running(env: Mapping[str, str] | None = None, *, settings: str = "") -> Iterator[Daemon]:
    """A daemon in a root of its own, both gone afterwards; ``settings`` are its `qmpsnap.toml`."""
    with _short() as root:
        config = root / "config" / "qmpsnap.toml"
        config.parent.mkdir()
        config.write_text(settings)
        with Daemon(root, env) as daemon:
            yield daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A running daemon for one test."""
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """A running daemon for all tests of a module, which give their domains names of their own."""
    with running() as found:
        yield found


@pytest.fixture
def daemons() -> Iterator[StartDaemon]:
    """Start daemons; all are killed afterwards, by their pid."""
    with contextlib.ExitStack() as started:

        def start(root: Path | None = None, env: Mapping[str, str] | None = None) -> Daemon:
            return started.enter_context(Daemon(root or started.enter_context(_short()), env))

        yield start
