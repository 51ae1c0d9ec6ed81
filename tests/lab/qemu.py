"""Real QEMU processes for tests. Synchronous, and usable without pytest.

The machines run no guest: their firmware halts at once, so that they are `running` and cost no CPU. A
"guest write" is made by `qemu-io` inside QEMU, through the BlockBackend of the guest's own device.

`image`, `read_ok` and the like come from `images`, `QMP` from `qmp`, and the layouts from `layouts`.
"""

import contextlib
import os
import signal
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.errors import GuestIOError, LabError, QMPError
from tests.lab.images import (
    chain,
    check,
    content_digest,
    escape,
    image,
    info,
    matched,
    qemu_binary,
    read_ok,
    tool,
    version,
    virtual_size,
    write_pattern,
)
from tests.lab.qmp import PATIENCE, QMP

__all__ = [
    "PATIENCE",
    "QMP",
    "GuestIOError",
    "LabError",
    "Machine",
    "QMPError",
    "Qemu",
    "chain",
    "check",
    "content_digest",
    "escape",
    "idle_firmware",
    "image",
    "info",
    "qemu_binary",
    "read_ok",
    "tool",
    "version",
    "virtual_size",
    "write_pattern",
]

# A unix socket's path with its final zero has 108 bytes; one byte more and QEMU refuses to start.
SUN_PATH = 107


def idle_firmware(path: Path) -> Path:
    """Write a firmware whose first instruction halts the processor for ever: no CPU time, no disk access."""
    rom = bytearray(64 * 1024)
    rom[0xFFF0:0xFFF3] = b"\xf4\xeb\xfd"  # at the reset vector: hlt; jmp back to it
    path.write_bytes(rom)
    return path


class _Output:
    """QEMU's standard output, through a pseudo terminal: on a pipe the C library would hold it back."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.openpty()
        tty.setraw(self.theirs, termios.TCSANOW)  # no \r, no echo
        self._text = bytearray()
        self._grew = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="qemu-output", daemon=True)

    def start(self) -> None:
        """Read from now on; the process has its own end."""
        os.close(self.theirs)
        self._reader.start()

    def _read(self) -> None:
        # All the time, not on demand: a full terminal buffer would stop QEMU.
        data = b"first"
        while data:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # EIO: the last process that had it open is gone
                data = b""
            with self._grew:
                self._text += data
                self._ended = not data
                self._grew.notify_all()

    def mark(self) -> int:
        """Return the place of the end, for `until`."""
        with self._grew:
            return len(self._text)

    def until(self, end: str, mark: int) -> str:
        """Return what came after a mark and before the text `end`, which must come."""
        wanted = end.encode()
        with self._grew:
            self._grew.wait_for(lambda: self._ended or wanted in self._text[mark:], PATIENCE)
            found = bytes(self._text[mark:])
        if wanted not in found:
            raise LabError(f"QEMU's output lacks {end!r}: {found!r}")
        return found[: found.index(wanted)].decode(errors="replace")

    def close(self) -> None:
        """Free the terminal; the process must be gone."""
        self._reader.join(PATIENCE)
        os.close(self._ours)


class Qemu:
    """A QEMU process that answers on its `qmp.sock` when the constructor returns, and is killed by `close`.

    `command` must give it a monitor at `directory/qmp.sock`, which this object holds. `prefix` goes before
    the command (`["qemu-launch", "--name", "daisy", "--"]`) and must end in an exec, so that the pid is
    QEMU's.
    """

    def __init__(
        self,
        directory: str | Path,
        command: Sequence[str],
        *,
        prefix: Sequence[str | Path] = (),
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.command = list(command)
        self.qmp_path = self.directory / "qmp.sock"
        self.monitor_path = self.directory / "monitor.sock"
        self._stderr = self.directory / "stderr.log"
        self._client: QMP | None = None
        self._ends = 0
        self._closed = False
        self.qmp_path.unlink(missing_ok=True)  # of a machine killed before: nobody listens there
        self._output = _Output()
        with self._stderr.open("wb") as errors:
            self.process = subprocess.Popen(
                [*(str(part) for part in prefix), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=self._output.theirs,
                stderr=errors,
                cwd=cwd,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,  # a Ctrl-C is for the tests, not for their machines
            )
        self._output.start()
        self.pid = self.process.pid
        try:
            self._client = self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> QMP:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return QMP(self.qmp_path)
            except (FileNotFoundError, ConnectionRefusedError, EOFError):
                if self.process.poll() is not None:
                    raise LabError(f"QEMU did not start: {self.stderr.strip()}") from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.005)  # the socket appears without an event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # the process

    @property
    def alive(self) -> bool:
        """Whether the process runs (or is stopped), right now."""
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        """What QEMU has said on its standard error so far."""
        return self._stderr.read_text(errors="replace")

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the process to end, and return its status as `subprocess` gives it."""
        return self.process.wait(timeout)

    def kill9(self) -> None:
        """End the process as a crash does; when this returns, it is gone and its locks are free."""
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def quit(self) -> None:
        """End the process in good order: images flushed and closed."""
        with contextlib.suppress(EOFError):  # the reply may be lost on the way out
            self.client.execute("quit")
        self.wait()

    def close(self) -> None:
        """End the process if it still runs, and free what this object holds. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self.alive:
            self.kill9()
        if self._client is not None:
            self._client.close()
        self._output.close()

    # the monitor

    @property
    def client(self) -> QMP:
        """The client on `qmp_path`."""
        if self._client is None:
            raise LabError("QEMU has not answered yet")
        return self._client

    def reconnect(self) -> QMP:
        """Leave `qmp_path` and join it again, as a new client without events."""
        self.client.close()
        self._client = QMP(self.qmp_path)
        return self._client

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run a command; a keyword's `_` becomes `-`, values go as they are. Raises `QMPError`."""
        return self.client.execute(
            command, {key.replace("_", "-"): value for key, value in arguments.items()}
        )

    def event(self, name: str, timeout: float = PATIENCE, **data: object) -> dict[str, Any]:
        """Take the first event of a name with these data: a kept one, or wait for it."""
        return self.client.event(name, timeout, **data)

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor. Most of its errors are only in the text that it returns."""
        text: str = self.qmp("human-monitor-command", command_line=line)
        return text.replace("\r\n", "\n")

    # the guest's view

    def backend(self, disk: str) -> dict[str, Any]:
        """Return the row of `query-block` for a disk named by device id, QOM path, drive id or top node."""
        rows: list[dict[str, Any]] = self.qmp("query-block")
        for row in rows:
            qdev = row.get("qdev", "")
            names = {
                qdev,
                qdev.removeprefix("/machine/peripheral/").removesuffix("/virtio-backend"),
                row["device"],
                row.get("inserted", {}).get("node-name", ""),
            }
            if disk and disk in names:
                return row
        raise LabError(f"QEMU has no disk {disk!r}; query-block: {rows}")

    def guest_io(self, disk: str, command: str) -> str:
        """Run a `qemu-io` command through the guest's device, and return what it printed, errors included.

        Through the device, because a node that a device uses refuses the writes of others.
        """
        row = self.backend(disk)
        target = f"-d {row['qdev']}" if row.get("qdev") else row["device"]
        # HMP answers "" whatever happens; the text goes to QEMU's standard output. Help for an unknown
        # command prints there too, which gives us an end to wait for.
        self._ends += 1
        end = f"command end-{self._ends} not found"
        mark = self._output.mark()
        for line in (command, f"help end-{self._ends}"):
            refusal = self.hmp(f'qemu-io {target} "{line}"')
            if refusal:
                raise GuestIOError(f"{disk}: {line}: {refusal.strip()}")
        return self._output.until(end, mark)

    def _change(self, disk: str, verb: str, what: str, offset: int, length: int) -> None:
        command = f"{what} {offset} {length}"
        text = self.guest_io(disk, command)
        if f"{verb} {length}/{length} bytes at offset {offset}" not in text:
            raise GuestIOError(f"{disk}: {command}: {text.strip() or 'no answer'}")

    def guest_write(self, disk: str, pattern: int, offset: int, length: int) -> None:
        """Write as the guest does; safe in the image after `guest_flush`. Raises `GuestIOError` if it failed."""
        self._change(disk, "wrote", f"write -P {pattern}", offset, length)

    def guest_zero(self, disk: str, offset: int, length: int, *, unmap: bool = False) -> None:
        """Write zeroes as the guest does, as a request for zeroes, not as data."""
        self._change(disk, "wrote", "write -z -u" if unmap else "write -z", offset, length)

    def guest_discard(self, disk: str, offset: int, length: int) -> None:
        """Discard as the guest does."""
        self._change(disk, "discard", "discard", offset, length)

    def guest_flush(self, disk: str) -> None:
        """Flush as the guest does. QEMU tells nobody whether it worked: read the image to know."""
        self.guest_io(disk, "flush")

    def guest_read_ok(self, disk: str, pattern: int, offset: int, length: int) -> bool:
        """Tell whether the guest reads nothing but this byte. Raises `GuestIOError` if it cannot read."""
        command = f"read -P {pattern} {offset} {length}"
        return matched(self.guest_io(disk, command), command, offset, length)


class Machine(Qemu):
    """A QEMU without a guest, with two monitors: `qmp_path` for this object, `monitor_path` for the daemon.

    `args` are given to QEMU as they are.
    """

    def __init__(
        self,
        directory: str | Path,
        args: Sequence[str | Path] = (),
        *,
        machine_type: str = "q35",
        memory: int = 32,
        name: str | None = None,
        paused: bool = False,
        firmware: bool = True,
        monitor: bool = True,
        binary: str | None = None,
        prefix: Sequence[str | Path] = (),
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        directory = Path(directory).absolute()
        monitors = [directory / "qmp.sock", *([directory / "monitor.sock"] if monitor else [])]
        if len(os.fsencode(directory / "monitor.sock")) > SUN_PATH:
            raise ValueError(f"{directory} is too long for sockets; use the fixture short_dir")
        directory.mkdir(parents=True, exist_ok=True)
        command = [binary or qemu_binary(), "-machine", f"{machine_type},accel=tcg", "-m", str(memory)]
        command += ["-display", "none", "-nodefaults", "-no-user-config"]
        if name is not None:
            command += ["-name", name]
        if paused:
            command += ["-S"]
        if firmware:
            command += ["-bios", str(idle_firmware(directory / "idle.bin"))]
        for path in monitors:
            command += ["-qmp", f"unix:{escape(path)},server=on,wait=off"]
        command += [str(argument) for argument in args]
        super().__init__(directory, command, prefix=prefix, cwd=cwd, env=env)
