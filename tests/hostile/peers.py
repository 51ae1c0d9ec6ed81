"""Monitors that misbehave, each on its own socket, in a thread beside the test; and what a real QEMU said, for them to repeat."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from tests.lab import fake_qemu, qemu
from tests.lab.images import MIB

_ASKED = (
    "query-status",
    "query-migrate",
    "query-block-jobs",
    "query-jobs",
    "x-debug-query-block-graph",
    "query-block",
    "query-blockstats",
    "query-uuid",
    "query-memory-size-summary",
    "query-cpus-fast",
    "query-target",
)

_OURS = "FOLDER"

#: The images of the recorded machine, in its directory: the second lies on the first, by a relative name.
IMAGES = ("base.qcow2", "top.qcow2")


def record(folder: Path) -> str:
    """All that a look asks, as JSON, of a real machine with a disk of two layers and an empty CD-ROM drive; ``_OURS`` is its
    directory."""
    qemu.image(folder / IMAGES[0], 4 * MIB)
    top = qemu.image(folder / IMAGES[1], backing=IMAGES[0])
    args = ["-drive", f"file={top},format=qcow2,if=virtio", "-device", "ide-cd,id=cd"]
    with qemu.Machine(folder / "m", args) as machine:
        answers = {fake_qemu.asked(command, {}): machine.qmp(command) for command in _ASKED}
        for path in ["/machine", *_devices(answers)]:
            for name in ("type", "parent_bus"):
                arguments = {"path": path, "property": name}
                try:
                    answers[fake_qemu.asked("qom-get", arguments)] = machine.client.execute(
                        "qom-get", arguments
                    )
                except qemu.QMPError:
                    continue  # most have no bus
    return json.dumps(answers).replace(str(folder), _OURS)


def _devices(answers: dict[str, Any]) -> Iterator[str]:
    for row in answers[fake_qemu.asked("query-block", {})]:
        qdev = row.get("qdev", "")
        yield qdev if qdev.startswith("/") else f"/machine/peripheral/{qdev}"


def replay(recorded: str, folder: Path) -> dict[str, Any]:
    """The recorded answers, as of a machine whose images are in ``folder``."""
    answers: dict[str, Any] = json.loads(recorded.replace(_OURS, str(folder)))
    return answers


class Peers:
    """Fake QEMUs being served, each at the path that it was made with."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), name="peers")
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    def start(self, peer: fake_qemu.FakeQemu) -> None:
        """Serve one more."""
        trio.from_thread.run_sync(self._nursery.start_soon, peer.run, trio_token=self._token)

    def behave(self, peer: fake_qemu.FakeQemu) -> None:
        """From now on this one is a good QEMU."""
        trio.from_thread.run_sync(peer.behave, trio_token=self._token)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join()
