"""A raw, blocking QMP client, made for tests: nothing of the product's own monitor code is in it."""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.errors import QMPError

# Where no test waits longer for QEMU. Slow hosts run TCG guests beside the tests: this must never decide.
PATIENCE = 60.0


class QMP:
    """A raw, blocking QMP client: one command at a time, events kept in their order."""

    def __init__(self, path: str | Path, timeout: float = PATIENCE) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        self._serial = 0
        self.events: list[dict[str, Any]] = []
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self.greeting: dict[str, Any] = self.receive(timeout)
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version, from its greeting."""
        found = self.greeting["QMP"]["version"]["qemu"]
        return found["major"], found["minor"], found["micro"]

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message as it is, and wait for nothing."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Return the next message, whatever it is; raise `EOFError` when QEMU is gone."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = PATIENCE
    ) -> Any:
        """Run a command with its arguments as QMP spells them; events that come meanwhile are kept."""
        self._serial += 1
        request: dict[str, object] = {"execute": command, "id": self._serial}
        if arguments:
            request["arguments"] = dict(arguments)
        self.send(request)
        deadline = time.monotonic() + timeout
        while True:
            message = self.receive(deadline - time.monotonic())
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == self._serial:
                if "error" in message:
                    raise QMPError(command, message["error"])
                return message["return"]

    def event(self, name: str, timeout: float = PATIENCE, **data: object) -> dict[str, Any]:
        """Take the first event of a name whose data hold these values: a kept one, or wait for it."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for position, event in enumerate(self.events[seen:], seen):
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return self.events.pop(position)
            seen = len(self.events)
            message = self.receive(deadline - time.monotonic())
            if "event" in message:
                self.events.append(message)

    def close(self) -> None:
        """Leave the monitor; its next client is then served."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
