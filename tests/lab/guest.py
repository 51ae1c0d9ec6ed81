"""The small real guest: two ext4 disks, a marker writer, a guest agent, a shell on the serial port.

What it shows that no machine without a guest can: whether a cut over several disks is one point in time,
and whether a file system was quiet at the cut. Evidence of both comes from outside: `offline`.
"""

import dataclasses
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.lab import images
from tests.lab.channels import Agent, Serial
from tests.lab.errors import LabError
from tests.lab.qemu import PATIENCE, Qemu
from tests.lab.records import Offline, Records, check_log, offline

__all__ = ["Agent", "BuildError", "Guest", "Offline", "Options", "Records", "build", "check_log", "offline"]

HERE = Path(__file__).parent / "guest"

# A cold boot takes 4 s of processor time; a loaded host once needed 19 s.
BOOT = 180.0


class BuildError(LabError):
    """The guest cannot be made on this host."""


def lab_directory() -> Path:
    """Where made things are kept between runs: `$QMPSNAP_LAB`, else `.lab` beside the sources."""
    return Path(os.environ.get("QMPSNAP_LAB") or Path(__file__).parents[2] / ".lab").absolute()


@functools.cache
def build() -> Path:
    """Make the guest if it is not there or out of date, and return its directory. Raises `BuildError`."""
    directory = lab_directory() / "guest"
    try:
        subprocess.run(
            [HERE / "make-guest.sh", directory],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise BuildError(error.stdout.strip()) from None
    return directory


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a guest is made of. `extra` goes to QEMU as it is."""

    name: str = "guest"
    disks: int = 2
    memory: int = 192
    processors: int = 1
    machine_type: str = "pc"
    iothread: bool = False
    agent: bool = True
    heartbeat: int | None = None
    block_options: str = ""
    append: str = ""
    extra: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return {
            "GUEST": str(build()),
            "QEMU": images.qemu_binary(),
            "NAME": self.name,
            "NDISKS": str(self.disks),
            "MEM": str(self.memory),
            "SMP": str(self.processors),
            "MACHINE": self.machine_type,
            "IOTHREAD": "1" if self.iothread else "",
            "GA": "on" if self.agent else "off",
            "HB": "off" if self.heartbeat is None else str(self.heartbeat),
            "W": "off",  # started by hand, so that a warm start can be shared
            "BLOCKOPTS": self.block_options,
            "APPEND": self.append,
        }


DEFAULT = Options()


def command(directory: Path, options: Options = DEFAULT, disks: Sequence[str | Path] = ()) -> list[str]:
    """Return the QEMU command line of a guest with its sockets in a directory.

    `disks` are the files to boot; for the others `directory/disk0.qcow2` and so on are used, and made from
    the empty template if they do not exist.
    """
    environment = {f"DISK{number}": str(path) for number, path in enumerate(disks)}
    text = subprocess.run(
        [HERE / "run-guest.sh", "-n", directory],
        env={**os.environ, **options.environment(), **environment},
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return [*text.decode().split("\0")[:-1], *options.extra]


class Guest(Qemu):
    """A running guest with an idle writer: `cold` boots it, `warm` resumes one that was booted before.

    Monitors, processes and guest I/O as in `Qemu`; the devices are `vd0`, `vd1`, their nodes `disk0`,
    `disk1`. `monitor_path` and `agent_path` are free for the daemon under test.
    """

    def __init__(
        self,
        directory: str | Path,
        line: Sequence[str],
        *,
        prefix: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._serial: Serial | None = None
        self._agent: Agent | None = None
        super().__init__(directory, line, prefix=prefix, env=env)
        self.agent_path = self.directory / "agent.sock"
        self.console: list[str] = []
        try:
            self._serial = Serial(self.directory / "serial.sock")
        except BaseException:
            self.close()
            raise

    @classmethod
    def cold(
        cls,
        directory: str | Path,
        options: Options = DEFAULT,
        *,
        disks: Sequence[str | Path] = (),
        prefix: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Boot a guest, and wait for its shell: some seconds."""
        directory = Path(directory).absolute()
        self = cls(directory, command(directory, options, disks), prefix=prefix, env=env)
        try:
            self.console = self.serial.until("GUEST READY", BOOT)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def warm(
        cls,
        directory: str | Path,
        options: Options = DEFAULT,
        *,
        prefix: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Resume a guest that was booted once on this host, with disks of its own in the directory: 0.5 s."""
        directory = Path(directory).absolute()
        state = _warm_state(options)
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(options.disks):
            _copy(state / f"disk{number}.qcow2", directory)
        line = [*command(directory, options), "-incoming", "defer"]
        self = cls(directory, line, prefix=prefix, env=env)
        try:
            self.load(state / "ram")
            self.run("true")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        for held in (self._serial, self._agent):
            if held is not None:
                held.close()
        super().close()

    # the guest's shell, writer and agent

    @property
    def serial(self) -> Serial:
        """The root shell's line."""
        if self._serial is None:
            raise LabError("the serial port is not connected")
        return self._serial

    @property
    def agent(self) -> Agent:
        """A client of the agent, connected at first use: the daemon cannot have it then."""
        if self._agent is None:
            self._agent = Agent(self.agent_path)
        return self._agent

    def leave_agent(self) -> None:
        """Close the agent's client, for the daemon's."""
        if self._agent is not None:
            self._agent.close()
        self._agent = None

    def sh(self, line: str, timeout: float = PATIENCE) -> tuple[int, str]:
        """Run a shell command in the guest; return its status and its output."""
        return self.serial.run(line, timeout)

    def run(self, line: str, timeout: float = PATIENCE) -> str:
        """Run a shell command in the guest that must succeed; return its output."""
        status, text = self.sh(line, timeout)
        if status != 0:
            raise LabError(f"in the guest: {line}: status {status}: {text}")
        return text

    def writer_start(self, interval: int = 2000) -> None:
        """Start the marker writer: a round over all disks, each record synced, every so many microseconds."""
        self.run(f"writer start {interval}")
        self.writer_reached(self.writer_last() + 1)

    def writer_stop(self) -> int:
        """Stop the writer between two rounds, and return the last one."""
        self.run("writer stop")
        return self.writer_last()

    def writer_status(self) -> dict[str, int]:
        """Return the writer's counters: `seq` (last whole round), `maxgap_us` and others; empty before a start."""
        text = self.run("writer status")
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?=\s|$)", text)}

    def writer_last(self) -> int:
        """Return the last round that is durable on every disk."""
        return self.writer_status().get("seq", 0)

    def writer_reached(self, sequence: int, timeout: float = PATIENCE) -> int:
        """Wait until the writer has finished a round, and return its last one."""
        deadline = time.monotonic() + timeout
        while (last := self.writer_last()) < sequence:
            if time.monotonic() > deadline:
                raise LabError(f"the writer is at {last}, not at {sequence}")
        return last

    def writer_check(self) -> list[dict[str, int]]:
        """Read every disk's whole log in the guest, past its cache: `records`, `last`, `holes`, `bad`."""
        text = self.run("sync; echo 3 > /proc/sys/vm/drop_caches; writer check")
        return [
            {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}
            for line in text.splitlines()
        ]

    # its memory

    def save(self, path: Path) -> None:
        """Stop the guest and write its memory and devices to a file; the images are flushed and consistent."""
        self._follow_migration()
        self.qmp("stop")
        self.qmp("migrate", uri=f"exec:cat > '{path}'")
        self._migrated()

    def load(self, path: Path) -> None:
        """Fill a process started with `-incoming defer` from a saved file, and run it."""
        self._follow_migration()
        self.qmp("migrate-incoming", uri=f"exec:cat '{path}'")
        self._migrated()
        self.qmp("cont")

    def _follow_migration(self) -> None:
        self.qmp("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    def _migrated(self) -> None:
        while (status := self.event("MIGRATION")["data"]["status"]) != "completed":
            if status == "failed":
                raise LabError(f"migration failed: {self.qmp('query-migrate')}")


def _copy(source: Path, directory: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, directory], check=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _warm_state(options: Options) -> Path:
    """Return a directory with the memory and disks of a booted guest; boot one if there is none.

    One for each guest, QEMU and set of options: a migration stream fits nothing else.
    """
    made = (build() / "stamp").read_text()
    parts = made, images.version(), dataclasses.astuple(dataclasses.replace(options, name=""))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    top = lab_directory() / "warm"
    top.mkdir(parents=True, exist_ok=True)
    state = top / key
    with _locked(top / f"{key}.lock"):
        if not state.exists():
            # A short path for the sockets, and a rename at the end: a cut boot leaves nothing that looks whole.
            work = Path(tempfile.mkdtemp(prefix="qs-warm-", dir="/tmp"))
            part = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=top))
            try:
                with Guest.cold(work, options) as guest:
                    guest.run("sync")
                    guest.save(part / "ram")
                    guest.quit()
                for number in range(options.disks):
                    _copy(work / f"disk{number}.qcow2", part)
                part.rename(state)
            finally:
                shutil.rmtree(work)
                shutil.rmtree(part, ignore_errors=True)
    return state
