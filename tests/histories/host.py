"""A host in memory: images as arrays of blocks, and QEMUs that have them open. The double of the file system and of QEMU.

What is visible to others and what would survive are two things, at each of two edges: a QEMU that is killed loses what it has not
written out (``Node.cache``), a host that is cut loses what is not on disk (``Image.safe``). What the double claims of QEMU is held
against the real one by ``test_truth``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml

BLOCKS = 4
SIZE = BLOCKS * 256 * 1024

Content = tuple[int, ...]
Blocks = tuple[int | None, ...]


@attrs.define(eq=False)
class Image:
    """``blocks`` are None where the image has nothing of its own; ``stamp`` rises with every write, of the header too.

    ``safe`` is what a cut of the host leaves of ``backing`` and ``blocks``.
    """

    backing: str
    blocks: Blocks
    inode: int
    stamp: int = 0
    safe: tuple[str, Blocks] = ("", ())

    def change(self, *, backing: str | None = None, blocks: Mapping[int, int] | None = None) -> None:
        """Written, and visible to all; not yet safe."""
        self.backing = self.backing if backing is None else backing
        self.blocks = tuple((blocks or {}).get(n, old) for n, old in enumerate(self.blocks))
        self.stamp += 1

    def flush(self) -> None:
        self.safe = self.backing, self.blocks


@attrs.define(eq=False)
class Node:
    """An image as a QEMU has it open, by file and by what it opened: the name may lead elsewhere by now.

    ``added`` nodes were opened by blockdev-add and are closed by blockdev-del alone.
    """

    name: str
    file: str
    image: Image
    added: bool = False
    cache: dict[int, int] = attrs.field(factory=dict)

    def own(self, block: int) -> int | None:
        return self.cache.get(block, self.image.blocks[block])

    def flush(self) -> None:
        if self.cache:
            self.image.change(blocks=self.cache)
            self.cache = {}
        self.image.flush()


@attrs.define(eq=False)
class Job:
    """A stream into ``top``, of what is above ``base`` (None: of all)."""

    id: str
    top: Node
    base: Node | None
    status: str = "running"


@attrs.define(eq=False)
class Device:
    """A guest's disk; ``owner`` is whose contents it holds, which nobody can see: the test's idea of the truth."""

    qdev: str
    owner: str
    chain: list[Node]
    alike: bool = True


@attrs.define(eq=False)
class Machine:
    """A running QEMU."""

    devices: list[Device]
    opened: list[Node] = attrs.field(factory=list)
    jobs: list[Job] = attrs.field(factory=list)
    alive: bool = True

    @property
    def nodes(self) -> list[Node]:
        return [*(node for device in self.devices for node in device.chain), *self.opened]

    def device_of(self, node: str) -> tuple[Device, int] | None:
        for device in self.devices:
            for place, one in enumerate(device.chain):
                if one.name == node:
                    return device, place
        return None

    def content(self, device: Device) -> Content:
        """What the guest reads."""
        return tuple(_first(node.own(block) for node in device.chain) for block in range(BLOCKS))

    def view(
        self, name: str, recorded: Sequence[domain_xml.RecordedDisk], there: Collection[str]
    ) -> chain.View:
        """What a look shows, where the images ``there`` have names; the targets are found as act.look finds them."""
        chains = {d.qdev: [n.file if n.file in there else "" for n in d.chain] for d in self.devices}
        seen = [*chains.items()]
        told = domain_xml.identify(recorded, seen)
        reserved = (disk.target for disk in recorded if disk.device == "disk")
        targets = chain.targets(told, [(device.qdev, "virtio") for device in self.devices], reserved)
        disks = tuple(
            self._disk(device, targets[device.qdev], chains[device.qdev]) for device in self.devices
        )
        jobs = tuple(chain.Job(j.id, "stream", j.status, nodes=self._held(j)) for j in self.jobs)
        names = frozenset(node.name for node in self.nodes)
        return chain.View(name, "running", migrating=False, disks=disks, jobs=jobs, nodes=names)

    def _disk(self, device: Device, target: str, files: Sequence[str]) -> chain.Disk:
        layers = tuple(
            chain.Layer(node.name, "qcow2", file, SIZE, node.image.backing)
            for node, file in zip(device.chain, files, strict=True)
        )
        options = chain.BlockOptions(detect_zeroes="off" if device.alike else "on")
        return chain.Disk(target, "virtio", "disk", device.qdev, layers, options=options)

    def _held(self, job: Job) -> frozenset[str]:
        return frozenset(node.name for node in self._range(job))

    def _range(self, job: Job) -> list[Node]:
        """The top of the job, and what it takes in."""
        found = self.device_of(job.top.name)
        assert found is not None
        layers = found[0].chain[found[1] :]
        return layers[: layers.index(job.base)] if job.base else layers

    def work(self) -> None:
        """Running jobs come to where they wait to be finalized: in memory alone, as QEMU does it (facts/qemu.md 2)."""
        for job in self.jobs:
            top, *pulled = self._range(job)
            for block in range(BLOCKS):
                found = next((v for n in pulled if (v := n.own(block)) is not None), None)
                if top.own(block) is None and found is not None:
                    top.cache[block] = found
            job.status = "pending"

    def finalize(self, job: Job) -> None:
        """The header names the base at once; data follow when somebody flushes."""
        _top, *pulled = self._range(job)
        self.jobs.remove(job)
        job.top.image.change(backing=job.base.file if job.base else "")
        found = self.device_of(job.top.name)
        assert found is not None
        device = found[0]
        device.chain = [node for node in device.chain if node not in pulled]
        self.opened += [node for node in pulled if node.added]


def _first(values: Iterator[int | None]) -> int:
    return next((value for value in values if value is not None), 0)


class Host:
    """All images by name, and the QEMUs that run, by domain.

    An empty file in ``folder`` goes with each image: own.describe asks the file system whether a layer is there.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.images: dict[str, Image] = {}
        self.machines: dict[str, Machine] = {}
        self._inodes = 0
        self._nodes = 0

    # --- files ---

    def create(self, file: str, backing: str) -> None:
        with open(file, "x"):
            self._inodes += 1
            blocks = (None,) * BLOCKS
            self.images[file] = Image(backing, blocks, self._inodes, safe=(backing, blocks))

    def unlink(self, file: str) -> None:
        os.unlink(file)
        del self.images[file]

    def layers(self, file: str) -> list[str] | None:
        """The chain as headers have it; None when it does not end."""
        found: list[str] = []
        while file:
            if file not in self.images or file in found:
                return None
            found.append(file)
            file = self.images[file].backing
        return found

    def read(self, file: str) -> Content | None:
        """What an outsider reads through the headers; None when he cannot."""
        layers = self.layers(file)
        if layers is None:
            return None
        images = [self.images[name] for name in layers]
        return tuple(_first(image.blocks[block] for image in images) for block in range(BLOCKS))

    def opened(self, file: str, *, writing: bool = False, but: Machine | None = None) -> bool:
        """Whether a QEMU has the image open (for writing)."""
        image = self.images.get(file)
        for machine in self.machines.values():
            writable = [d.chain[0] for d in machine.devices] + [job.top for job in machine.jobs]
            if machine is not but and any(n.image is image for n in (writable if writing else machine.nodes)):
                return True
        return False

    # --- QEMU ---

    def open(self, machine: Machine | None, file: str, *, writing: bool, name: str = "") -> Node:
        """QEMU's locks: one writer, or many readers, of different QEMUs."""
        if file not in self.images:
            raise errors.CommandFailed(command="open", reason=f"{file} does not exist")
        if self.opened(file, writing=not writing, but=machine):
            raise errors.CommandFailed(command="open", reason=f"{file} is locked")
        self._nodes += 1
        return Node(name or f"#block{self._nodes}", file, self.images[file], added=bool(name))

    def boot(self, domain: str, disks: Sequence[tuple[str, str]]) -> Machine:
        """A QEMU with these disks (owner, file) in this order; qdevs are places on the bus."""
        machine = Machine([])
        for place, (owner, file) in enumerate(disks):
            layers = self.layers(file)
            if layers is None:
                raise errors.CommandFailed(command="start", reason=f"the chain of {file} is broken")
            nodes = [self.open(machine, name, writing=name == file) for name in layers]
            alike = owner != "vdb"
            machine.devices.append(Device(f"device[{place}]", owner, nodes, alike))
        self.machines[domain] = machine
        return machine

    def kill(self, domain: str, *, written: bool) -> None:
        """QEMU dies; whether its memory has reached the files by then is chance."""
        machine = self.machines.pop(domain, None)
        if machine is not None:
            machine.alive = False
            for node in machine.nodes if written else ():
                if node.cache:
                    node.image.change(blocks=node.cache)

    def cut(self, *, header: bool, blocks: bool) -> None:
        """The host dies; what of each image that was not flushed is on disk all the same is chance."""
        for domain in [*self.machines]:
            self.kill(domain, written=False)
        for image in self.images.values():
            backing = image.backing if header else image.safe[0]
            image.backing, image.blocks = backing, image.blocks if blocks else image.safe[1]
            image.flush()

    def execute(self, machine: Machine, command: str, arguments: Mapping[str, Any]) -> None:
        """A QMP command, whole or not at all; ``CommandFailed`` as QEMU would."""
        match command:
            case "transaction":
                self._transaction(machine, arguments["actions"])
            case "blockdev-add":
                file, name = arguments["file"]["filename"], arguments["node-name"]
                machine.opened.append(self.open(machine, file, writing=True, name=name))
            case "blockdev-del":
                node = self._opened(machine, arguments["node-name"])
                node.flush()
                machine.opened.remove(node)
            case "block-stream":
                self._stream(machine, arguments)
            case "job-finalize":
                job = self._job(machine, arguments["id"])
                if job.status != "pending":
                    raise errors.CommandFailed(command=command, reason=f"it is {job.status}")
                machine.finalize(job)
            case "job-cancel":
                machine.jobs.remove(self._job(machine, arguments["id"]))
            case _:
                raise AssertionError(command)

    def _opened(self, machine: Machine, name: str) -> Node:
        found = next((node for node in machine.opened if node.name == name), None)
        if found is None:
            raise errors.CommandFailed(command="blockdev", reason=f"no free node {name}")
        return found

    def _job(self, machine: Machine, name: str) -> Job:
        found = next((job for job in machine.jobs if job.id == name), None)
        if found is None:
            raise errors.CommandFailed(command="job", reason=f"no job {name}")
        return found

    def _transaction(self, machine: Machine, actions: Sequence[Mapping[str, Any]]) -> None:
        pushed: list[tuple[Device, Node]] = []
        for action in actions:
            data = action["data"]
            if action["type"] == "blockdev-snapshot":
                found, over = machine.device_of(data["node"]), self._opened(machine, data["overlay"])
            else:
                found = machine.device_of(data["node-name"])
                over = self.open(
                    machine, data["snapshot-file"], writing=True, name=data["snapshot-node-name"]
                )
                over.added = False
            if found is None or found[1]:
                raise errors.CommandFailed(command="transaction", reason="the node is on top of no disk")
            pushed.append((found[0], over))
        for device, over in pushed:
            device.chain[0].flush()
            device.chain.insert(0, over)
            machine.opened = [node for node in machine.opened if node is not over]

    def _stream(self, machine: Machine, arguments: Mapping[str, Any]) -> None:
        found = machine.device_of(arguments["device"])
        base = machine.device_of(arguments["base-node"]) if "base-node" in arguments else None
        if found is None:
            raise errors.CommandFailed(command="block-stream", reason="no such node")
        top = found[0].chain[found[1]]
        if found[1] and self.opened(top.file, but=machine):
            raise errors.CommandFailed(command="block-stream", reason=f"{top.file} is locked")
        below = base[0].chain[base[1]] if base else None
        machine.jobs.append(Job(arguments["job-id"], top, below))
