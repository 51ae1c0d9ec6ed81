"""A process between the daemon and a monitor, which cuts the connection at a command that it is told: QEMU has carried it out,
and its reply is dropped.

A process of its own, because the daemon takes whoever listens on the monitor's socket for QEMU: with ``kill`` it ends when QEMU
does. Lines of JSON on ``control`` arm it and ask what it has seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    return listener


class Proxy:
    """One client at a time, like a monitor."""

    def __init__(self, path: str, target: str, control: str) -> None:
        self._target = target
        self._listener = _listen(path)
        self._control = _listen(control)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._control, selectors.EVENT_READ, self._command)
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._buffers = {"client": b"", "qemu": b""}
        self._armed: dict[str, Any] | None = None
        self._counts: dict[str, int] = {}
        self._seen: list[tuple[str, int]] = []
        self._fired = False
        self._awaited = ""

    def run(self) -> None:
        while True:
            for key, _events in self._selector.select():
                key.data()

    def _command(self) -> None:
        """One question on the control socket: ``{"arm": {…}}``, ``{"count": true}`` (from now on), or ``{}``."""
        peer, _address = self._control.accept()
        with peer, peer.makefile("rw") as lines:
            request = json.loads(lines.readline())
            if "arm" in request or "count" in request:
                self._armed, self._counts, self._seen, self._fired = request.get("arm"), {}, [], False
            lines.write(json.dumps({"seen": self._seen, "fired": self._fired}) + "\n")
            lines.flush()

    def _accept(self) -> None:
        client, _address = self._listener.accept()
        qemu = socket.socket(socket.AF_UNIX)
        try:
            qemu.connect(self._target)
        except OSError:
            client.close()
            qemu.close()
            return
        self._pair = client, qemu
        self._buffers = {"client": b"", "qemu": b""}
        self._awaited = ""
        self._selector.unregister(self._listener)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._read("client"))
        self._selector.register(qemu, selectors.EVENT_READ, lambda: self._read("qemu"))

    def _cut(self) -> None:
        assert self._pair is not None
        for end in self._pair:
            self._selector.unregister(end)
            end.close()
        self._pair = None
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _fire(self) -> None:
        assert self._armed is not None
        victim = self._armed["kill"]
        self._armed, self._fired = None, True
        if victim:
            os.kill(victim, signal.SIGKILL)
            while _runs(victim):
                time.sleep(0.001)  # no event tells a stranger that a process is gone
            os._exit(0)
        self._cut()

    def _read(self, side: str) -> None:
        assert self._pair is not None
        ends = {"client": self._pair[0], "qemu": self._pair[1]}
        try:
            data = ends[side].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._cut()
            return
        *lines, self._buffers[side] = (self._buffers[side] + data).split(b"\n")
        for line in lines:
            if self._pair is not None:
                handle = self._to_qemu if side == "client" else self._to_client
                handle(line + b"\n", ends["qemu" if side == "client" else "client"])

    def _to_qemu(self, line: bytes, qemu: socket.socket) -> None:
        message = json.loads(line)
        name = message["execute"]
        self._counts[name] = self._counts.get(name, 0) + 1
        self._seen.append((name, self._counts[name]))
        armed = self._armed
        if armed is not None and [name, self._counts[name]] == armed["at"]:
            self._awaited = message["id"]
        qemu.sendall(line)

    def _to_client(self, line: bytes, client: socket.socket) -> None:
        if self._awaited and json.loads(line).get("id") == self._awaited:
            self._fire()
        else:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(line)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main(path: str, target: str, control: str) -> int:
    """Runs until it is killed."""
    Proxy(path, target, control).run()
    return 0
