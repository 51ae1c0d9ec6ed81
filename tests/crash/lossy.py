"""A mounted `disk.Disk`: the file system that loses what was not fsynced, and fails when it is told.

A process of its own, started by the zygote. Lines of JSON on its control socket:

    {"sync": true}                         everything is safe, as if it had been there for long
    {"cut": POLICY, "seed": N}             the power is gone and back: nobody may have a file open
    {"fail": {"pid": P, "number": N, "errno": E, "on": false}}
                                           the N-th change that process P or a child of it asks for fails; with ``on`` all after it
    {"fail": null}                         nothing fails any more
    {}                                     what was seen

Each is answered with how many changes the last cut has lost, and what the process has asked for since ``fail``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
from pathlib import Path
from typing import Any

import attrs

from tests.crash import disk, fuse


def _parents(thread: int) -> tuple[int, int]:
    """The process of a thread, and that one's parent; zeros when it is gone."""
    found = {"Tgid": 0, "PPid": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value)
    return found["Tgid"], found["PPid"]


@attrs.define
class Failure:
    """Which change fails, and what has been asked for."""

    pid: int
    number: int
    errno: int
    on: bool
    asked: list[str] = attrs.field(factory=list)

    def may(self, name: str, thread: int) -> None:
        if self.pid not in _parents(thread):
            return
        self.asked.append(name)
        count = len(self.asked)
        if count == self.number or (self.on and count > self.number):
            raise OSError(self.errno, os.strerror(self.errno))


class Lossy:
    """The file system at ``path``, told what to do at ``control``."""

    def __init__(self, path: str, control: str) -> None:
        self._path = path
        self._disk = disk.Disk()
        self._failure: Failure | None = None
        self._lost = 0
        self._control = socket.socket(socket.AF_UNIX)
        self._control.bind(control)
        self._control.listen()
        self._fd = fuse.mount(path)
        self._server = fuse.Server(self._fd, self._disk, self._may)

    def run(self) -> int:
        """Until it is unmounted: by somebody else, or because this process is told to end."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: fuse.unmount(self._path))
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            while True:
                for key, _events in selector.select():
                    if key.fileobj is self._control:
                        self._command()
                    elif not self._server.serve():
                        return 0

    def _may(self, name: str, thread: int) -> None:
        if self._failure is not None:
            self._failure.may(name, thread)

    def _command(self) -> None:
        peer, _address = self._control.accept()
        with peer, peer.makefile("rw") as lines:
            request: dict[str, Any] = json.loads(lines.readline())
            if "sync" in request:
                self._disk.sync()
            if "cut" in request:
                self._lost = self._disk.cut(disk.Policy(request["cut"]), request["seed"])
            answer = {"lost": self._lost, "asked": self._failure.asked if self._failure else []}
            if "fail" in request:
                self._failure = Failure(**request["fail"]) if request["fail"] else None
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def main(path: str, control: str) -> int:
    """Runs until it is unmounted."""
    return Lossy(path, control).run()
