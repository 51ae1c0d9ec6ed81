"""Daemons and proxies that start in milliseconds, and waiting for what a process does: both ends are processes of the zygote."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.crash import fuse
from tests.lab.images import tool

ROOT = Path(__file__).parent.parent.parent

#: Longer than any recovery that goes well takes (the daemon tries again after 5 s), and short enough to fail by hundreds.
PATIENCE = 20.0


class TooLate(AssertionError):
    """Something that must happen did not, in ``PATIENCE``."""


def until(true: Callable[[], bool], what: Callable[[], str], seconds: float = PATIENCE) -> None:
    """Poll until it is true: for what no event tells a process that is not the daemon's own."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TooLate(f"not within {seconds:g} s: {what()}")
        time.sleep(0.01)


class Child:
    """A process of the zygote. It cannot be mistaken for a later one of its pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does within that time."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def wait_ended(self) -> None:
        if not self.ended(PATIENCE):
            raise TooLate(f"process {self.pid} has not ended")

    def stopped(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def close(self) -> None:
        """End it as a crash does, if it still runs."""
        if self._fd >= 0:
            self.send(signal.SIGKILL)
            self.wait_ended()
            os.close(self._fd)
            self._fd = -1


class Zygote:
    """Starts processes, for any thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("QMPSNAP_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._turn = threading.Lock()

    def start(
        self, what: str, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> Child:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"what": what, "arguments": list(arguments), "log": str(log), "env": dict(env or {})}
        with self._turn:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return Child(int(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("qmpsnap", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Request:
    """A request that is under way while its daemon dies: ``answer`` may come, or not."""

    def __init__(self, path: Path, method: str, url: str, body: object = None) -> None:
        self._connection = _Connection(path)
        try:
            self._connection.request(method, f"/v1{url}", None if body is None else json.dumps(body).encode())
        except BaseException:
            self._connection.close()
            raise

    def readable(self) -> bool:
        """Whether the answer has begun to come."""
        poll = select.poll()
        poll.register(self._connection.sock, select.POLLIN)
        return bool(poll.poll(0))

    def answer(self) -> tuple[int, Any] | None:
        """Status and body, or None when the daemon died before it had answered."""
        try:
            response = self._connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            self._connection.close()


def tell(control: Path, request: object) -> dict[str, Any] | None:
    """What a proxy or a disk answers on its control socket; None while it is not there."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(control))
            peer.sendall(json.dumps(request).encode() + b"\n")
            with peer.makefile("r") as lines:
                line = lines.readline()
            return dict(json.loads(line)) if line else None
    except OSError:
        return None


class Disk:
    """A mounted `lossy.Lossy` at ``directory/d``."""

    def __init__(self, zygote: Zygote, directory: Path) -> None:
        self.path = directory / "d"
        self.path.mkdir()
        self._control, self._log = directory / "d.sock", directory / "d.log"
        self._child = zygote.start("lossy", [str(self.path), str(self._control)], self._log)
        try:
            # It serves both from one loop: when it answers, it is mounted.
            until(lambda: tell(self._control, {}) is not None, self._why)
        except BaseException:
            self.close()
            raise

    def _why(self) -> str:
        return f"the lossy disk does not answer: {self._log.read_text() if self._log.exists() else ''}"

    def tell(self, request: object) -> dict[str, Any]:
        answer = tell(self._control, request)
        assert answer is not None, self._why()
        return answer

    def close(self) -> None:
        """It is unmounted, whoever still has a file there open."""
        self._child.send(signal.SIGTERM)
        if not self._child.ended(PATIENCE):
            fuse.unmount(str(self.path))
        self._child.close()


class Daemon:
    """A `qmpsnapd`, started and killed at will. State and configuration lie under ``keep``, sockets under ``root``; its whole
    log is ``root/log``."""

    def __init__(self, zygote: Zygote, root: Path, keep: Path) -> None:
        self.root = root
        self.keep = keep
        self.run = root / "run"
        self.socket = self.run / "qmpsnap.sock"
        self.points = root / "points"
        self._log = root / "log"
        self._zygote = zygote
        self._child: Child | None = None
        self._began = 0
        root.mkdir()
        keep.mkdir(exist_ok=True)
        #: Where it keeps what, as systemd says it.
        self.where = {
            "STATE_DIRECTORY": str(keep / "state"),
            "CONFIGURATION_DIRECTORY": str(keep / "config"),
            "RUNTIME_DIRECTORY": str(self.run),
        }

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    def start(self, *, crash: str = "", log_points: bool = False) -> None:
        """Start it and wait until it answers; with ``crash`` it dies or hangs at the point of that name."""
        self.kill()
        self._began = self._log.stat().st_size if self._log.exists() else 0
        env = {**self.where, "QMPSNAP_CRASH": crash, "QMPSNAP_QEMU_IMG": tool("qemu-img")}
        if log_points:
            env["QMPSNAP_CRASH_LOG"] = str(self.points)
        self._child = self._zygote.start("daemon", [], self._log, env)
        until(self._answers, lambda: f"the daemon does not serve: {self.log()}")

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return self.child.ended()

    def kill(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def request(self, method: str, url: str, body: object = None) -> Request:
        return Request(self.socket, method, url, body)

    def ask(self, method: str, url: str, body: object = None) -> tuple[int, Any]:
        """Status and body; `OSError` when nobody answers."""
        answer = self.request(method, url, body).answer()
        if answer is None:
            raise ConnectionError(f"no answer to {method} {url}")
        return answer

    def must(self, method: str, url: str, body: object = None) -> Any:
        """The body of the answer, which must be a success."""
        status, found = self.ask(method, url, body)
        assert status < 300, (method, url, status, found, self.log())
        return found

    def cut_off(self) -> bool:
        """Whether it has lost its connection to QEMU since it was started, and has seen that."""
        return "the monitor was lost" in self.told()

    def told(self) -> str:
        """What it has logged since it was started."""
        if not self._log.exists():
            return ""
        with self._log.open(errors="replace") as log:
            log.seek(self._began)
            return log.read()

    def log(self, lines: int = 25) -> str:
        """The end of the log."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])
