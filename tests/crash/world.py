"""A machine, its daemon, and what must be on its disks: the model that every crash is measured against.

Two disks, given to QEMU in different ways: ``vda`` by ``-drive`` (automatic node names, overlays by blockdev-snapshot-sync),
``vdb`` by ``-blockdev`` with detect-zeroes (overlays by blockdev-add, nodes that are ours to close). A disk has 16 slots, each
filled with one byte; every byte of every slot is compared, so contents are equal bit for bit or the slot is named.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree as ET

from tests.crash import daemons
from tests.lab import qemu
from tests.lab.images import KIB, tool

SLOTS = 16
SLOT = 64 * KIB
NAME = "daisy"
API = f"/domains/{NAME}"
TARGETS = ("vda", "vdb")

#: How the lab's machine names the device of a target.
GUEST = {"vda": "virtio0", "vdb": "vdb"}

Content = tuple[int, ...]


class World:
    """One machine with one daemon, in a directory of its own; what it was told to write is what it must hold."""

    def __init__(
        self, directory: Path, zygote: daemons.Zygote, *, proxied: bool = False, lossy: bool = False
    ) -> None:
        """``lossy``: images, state and configuration lie on a `lossy.Lossy`, which can lose power."""
        directory.mkdir()
        self.directory = directory
        self.zygote = zygote
        self.disk = daemons.Disk(zygote, directory) if lossy else None
        keep = self.disk.path if self.disk else directory
        self.images = keep / "i"
        self.images.mkdir()
        self.proxied = proxied
        self.monitor = directory / ("p.sock" if proxied else "m/monitor.sock")
        self.proxy: daemons.Child | None = None
        self.machine: qemu.Machine | None = None
        self.content: dict[str, Content] = dict.fromkeys(TARGETS, (0,) * SLOTS)
        self.frozen: dict[str, dict[str, Content]] = {}
        self.known: set[str] = set()
        #: Somebody has written to an image that is frozen: check says so until that is accepted.
        self.meddled = False
        #: Images that were read and found right, as they were then.
        self.read: set[tuple[object, Content]] = set()
        self._epochs = itertools.count(1)
        self._names = itertools.count(1)
        self.base = {
            target: str(qemu.image(self.images / f"{target}.qcow2", SLOTS * SLOT)) for target in TARGETS
        }
        self.daemon = daemons.Daemon(zygote, directory / "r", keep / "r")
        try:
            if self.disk is not None:
                self.disk.tell({"sync": True})
            self.boot()
            self.write()
            self.daemon.start()
            self.daemon.must("POST", "/domains", {"name": NAME, "monitor": str(self.monitor)})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.daemon.kill()
        if self.proxy is not None:
            self.proxy.close()
        if self.machine is not None:
            self.machine.close()
        if self.disk is not None:
            self.disk.close()
        shutil.rmtree(self.directory)

    # --- the machine ---

    def boot(self) -> None:
        """Start QEMU as qemu-launch does: on the layers that are recorded, or for the first time."""
        if self.machine is not None:
            self.machine.close()
        active = self.recorded() or self.base
        storage = {"driver": "file", "filename": active["vdb"]}
        node = {"driver": "qcow2", "node-name": "node1", "detect-zeroes": "on", "file": storage}
        arguments = (
            *("-drive", f"file={active['vda']},format=qcow2,if=virtio"),
            *("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,id=vdb,drive=node1"),
        )
        self.machine = qemu.Machine(self.directory / "m", arguments, memory=16)
        if self.proxied:
            self.start_proxy()

    def start_proxy(self) -> None:
        if self.proxy is not None:
            self.proxy.close()
        target, control = self.directory / "m/monitor.sock", self.directory / "c.sock"
        self.proxy = self.zygote.start(
            "proxy", [str(self.monitor), str(target), str(control)], self.directory / "proxy.log"
        )
        daemons.until(lambda: self.tell_proxy({}) is not None, lambda: "the proxy does not listen")

    def tell_proxy(self, request: object) -> dict[str, Any] | None:
        """What the proxy has seen; None while it is not there."""
        return daemons.tell(self.directory / "c.sock", request)

    @property
    def qemu(self) -> qemu.Machine:
        assert self.machine is not None
        return self.machine

    def kill_machine(self) -> None:
        self.qemu.kill9()
        if self.proxy is not None:
            self.proxy.close()

    def cut_power(self, policy: str, seed: int) -> int:
        """The host dies: everybody on it at once, what was not on disk, and all of ``run``. How many changes were not on disk."""
        assert self.disk is not None
        self.kill_machine()
        self.daemon.kill()
        shutil.rmtree(self.daemon.run)
        self.read.clear()  # times of the last write go back, and may come again
        return int(self.disk.tell({"cut": policy, "seed": seed})["lost"])

    def write(self, *targets: str) -> None:
        """The guest writes to its disks, some slots for the first time and some again, and flushes."""
        for target in targets or TARGETS:
            epoch = next(self._epochs)
            content = list(self.content[target])
            for slot in (epoch % 3, 3 + epoch * 7 % 5, 8 + epoch * 5 % 8):
                content[slot] = epoch % 255 + 1
                self.qemu.guest_write(GUEST[target], content[slot], slot * SLOT, SLOT)
            self.qemu.guest_flush(GUEST[target])
            self.content[target] = tuple(content)

    def fill(self, target: str) -> None:
        """The guest writes all of a disk, and flushes."""
        value = next(self._epochs) % 255 + 1
        self.qemu.guest_write(GUEST[target], value, 0, SLOTS * SLOT)
        self.qemu.guest_flush(GUEST[target])
        self.content[target] = (value,) * SLOTS

    def new_name(self) -> str:
        """A snapshot's name, never used before."""
        return f"s{next(self._names)}"

    def snapshot(self, **more: object) -> str:
        """A snapshot made in peace, and writes after it; its name."""
        name = self.new_name()
        self.freeze(name)
        self.daemon.must("POST", f"{API}/snapshots?wait=true", {"name": name, **more})
        self.write()
        return name

    def differing(self, path: str, content: Content) -> str:
        """Where an image differs from the contents; not read again while nobody has written to it or to anything below."""
        key = stamps(path), content
        if key in self.read:
            return ""
        found = differing(path, content)
        if not found:
            self.read.add(key)
        return found

    def freeze(self, name: str) -> None:
        """The contents now are what the snapshot of that name must hold, if it comes to be."""
        self.frozen[name] = dict(self.content)

    # --- what is there ---

    def recorded(self) -> dict[str, str] | None:
        """Target to the layer that state/domain names, if the domain is recorded with disks."""
        path = self.daemon_state / "domain" / f"{NAME}.xml"
        if not path.exists():
            return None
        disks = ET.fromstring(path.read_text()).iterfind("devices/disk")
        found = {d.find("target").get("dev"): d.find("source").get("file") for d in disks}  # type: ignore[union-attr]  # ours have both
        return {str(target): str(file) for target, file in found.items()} or None

    @property
    def daemon_state(self) -> Path:
        return self.daemon.keep / "state"

    def journal(self) -> list[str]:
        folder = self.daemon_state / "journal" / NAME
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def files(self) -> set[str]:
        return {str(self.images / name) for name in os.listdir(self.images)}

    def active(self, target: str) -> str:
        """The file of the layer that QEMU writes to, as QEMU says it."""
        inserted = self.qemu.backend(GUEST[target])["inserted"]
        return str(inserted["image"]["filename"])

    def chain(self, target: str) -> list[str]:
        """QEMU's chain of the disk by files, active layer first."""
        image: dict[str, Any] | None = self.qemu.backend(GUEST[target])["inserted"]["image"]
        found = []
        while image is not None:
            found.append(str(image["filename"]))
            image = image.get("backing-image")
        return found

    def domain(self) -> dict[str, Any]:
        return dict(self.daemon.must("GET", API))

    def settled(self, live: bool) -> bool:
        """The daemon says that nothing is open, and how the machine is."""
        try:
            found = self.domain()
        except OSError:
            return False
        there = found["monitor"]["state"] == "ready" if live else found["state"] == "shut off"
        return there and not found["operations"] and not self.journal()

    def wait_settled(self, live: bool) -> None:
        daemons.until(lambda: self.settled(live), lambda: f"settled: {self._open()}")

    def _open(self) -> str:
        try:
            domain = self.domain()
            operations = [self.daemon.ask("GET", f"/operations/{o}") for o in domain["operations"]]
        except OSError as error:
            return f"{error}; {self.daemon.log()}"
        return f"{domain}; {operations}; journal {self.journal()}; log:\n{self.daemon.log()}"


def stamps(path: str) -> tuple[tuple[str, int, int, int], ...]:
    """An image and all below it by name, inode, size and time of the last write: where these are equal, contents are."""
    found = []
    while path:
        status = os.stat(path)
        found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        with open(path, "rb") as file:
            header = file.read(4096)
        offset, length = struct.unpack(">QI", header[8:20])
        path = header[offset : offset + length].decode() if offset else ""
    return tuple(found)


def runs(content: Content) -> list[tuple[int, int, int]]:
    """The disk as (byte, offset, length), equal neighbours together."""
    found, start = [], 0
    for value, same in itertools.groupby(content):
        length = len(list(same))
        found.append((value, start * SLOT, length * SLOT))
        start += length
    return found


def differing(path: str, content: Content) -> str:
    """Where an image, read from outside through its whole chain, differs from the contents; "" when nowhere."""
    commands = [word for v, o, n in runs(content) for word in ("-c", f"read -P {v} {o} {n}")]
    options = f"driver=qcow2,file.driver=file,file.filename={path}"
    done = subprocess.run(
        [tool("qemu-io"), "-r", "-U", *commands, "--image-opts", options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wrong = re.findall(r"Pattern verification failed at offset (\d+)", done.stdout)
    if wrong:
        return f"{path}: wrong contents at {', '.join(wrong)}"
    complete = sum(int(n) for n in re.findall(r"^read (\d+)/\1 bytes", done.stdout, re.MULTILINE))
    return "" if complete == SLOTS * SLOT else f"{path}: cannot be read: {done.stdout.strip()[:300]}"


def differing_in_guest(world: World, target: str) -> str:
    """The same for what the guest of the running machine reads."""
    machine, wanted = world.qemu, runs(world.content[target])
    row = machine.backend(GUEST[target])
    # As `guest_read_ok` does it, but with one look for the device and one end to wait for: a suite's worth of time.
    mark = machine._output.mark()
    for value, offset, length in wanted:
        machine.hmp(f'qemu-io -d {row["qdev"]} "read -P {value} {offset} {length}"')
    machine.hmp(f'qemu-io -d {row["qdev"]} "help end-of-disk"')
    text = machine._output.until("command end-of-disk not found", mark)
    wrong = re.findall(r"Pattern verification failed at offset (\d+)", text)
    if wrong:
        return f"{target}: the guest reads wrong contents at {', '.join(wrong)}"
    complete = sum(int(n) for n in re.findall(r"^read (\d+)/\1 bytes", text, re.MULTILINE))
    return "" if complete == SLOTS * SLOT else f"{target}: the guest cannot read: {text[:300]}"
