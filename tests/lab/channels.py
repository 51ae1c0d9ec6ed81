"""What the real guest talks through: the shell on its serial port, and its agent."""

import json
import random
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.errors import QMPError
from tests.lab.qmp import PATIENCE


class Lines:
    """Lines over a unix socket, each with a deadline."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def close(self) -> None:
        self._socket.close()


class Serial(Lines):
    """The guest's root shell."""

    def run(self, command: str, timeout: float = PATIENCE) -> tuple[int, str]:
        """Run a command and return its status and what it printed."""
        tag = f"@@{random.getrandbits(60)}"
        self.send(f"{command}; echo {tag} $?\n".encode())
        deadline = time.monotonic() + timeout
        out: list[str] = []
        while True:
            line = self.line(deadline).decode(errors="replace").rstrip("\r")
            found = re.search(rf"(.*){tag} (\d+)$", line)
            if found is not None and "echo" not in line:
                out.append(found[1])
                return int(found[2]), "\n".join(out).strip()
            out.append(line)

    def until(self, text: str, timeout: float) -> list[str]:
        """Return the lines up to the first one that holds a text."""
        deadline = time.monotonic() + timeout
        out: list[str] = []
        while not out or text not in out[-1]:
            out.append(self.line(deadline).decode(errors="replace").rstrip("\r"))
        return out


class Agent(Lines):
    """A client of the guest's agent, one command at a time. QEMU serves one client: leave it to the daemon."""

    def __init__(self, path: Path, timeout: float = PATIENCE) -> None:
        super().__init__(path)
        self.sync(timeout)

    def sync(self, timeout: float = PATIENCE) -> None:
        """Wait until the agent answers us: answers to others, and half lines, are behind us then."""
        number = random.getrandbits(30)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self.send(b"\xff" + json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            # A parser that was clean answers our 0xFF with an error line of its own first.
            _, mark, answer = self.line(deadline).rpartition(b"\xff")
            if mark and json.loads(answer).get("return") == number:
                return

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = PATIENCE
    ) -> Any:
        """Run a command of the agent; raises `QMPError`, or `TimeoutError` when it is silent."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        self.send(json.dumps(request).encode() + b"\n")
        answer = json.loads(self.line(time.monotonic() + timeout))
        if "error" in answer:
            raise QMPError(command, answer["error"])
        return answer["return"]
