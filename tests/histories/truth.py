"""The same world for real: QEMUs, a daemon, images in a directory. It is told what the double was told, and must look like it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tests.crash import daemons
from tests.crash.world import SLOTS, Content, differing, stamps
from tests.histories import actions, host, world
from tests.histories.actions import Action
from tests.lab import qemu

#: Slots of tests.crash.world in one block of the double.
WIDE = SLOTS // host.BLOCKS
BLOCK = host.SIZE // host.BLOCKS


class Truth:
    """What the double claims, done; ``problems`` tells where the two differ."""

    def __init__(self, directory: Path, zygote: daemons.Zygote, double: world.World) -> None:
        directory.mkdir()
        self.directory = directory
        self.images = directory / "i"
        self.images.mkdir()
        self.double = double
        self.machines: dict[str, qemu.Machine] = {}
        self._running: dict[str, list[str]] = {}
        #: What became of the last request: its status and body; None when it was cut, or there was none.
        self.answer: tuple[int, Any] | None = None
        self._read: set[tuple[object, Content]] = set()
        self._hands = 0
        self.daemon = daemons.Daemon(zygote, directory / "r", directory / "k")
        try:
            for path, image in double.host.images.items():
                self._make(_name(path), _name(image.backing), image.blocks)
            for name, machine in double.host.machines.items():
                self._boot(name, [(d.owner, _name(d.chain[0].file)) for d in machine.devices])
            self.daemon.start()
            for name in self.machines:
                monitor = str(self.directory / name / "monitor.sock")
                self.daemon.must("POST", "/domains", {"name": name, "monitor": monitor})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.daemon.kill()
        for machine in self.machines.values():
            machine.close()
        shutil.rmtree(self.directory)

    def _path(self, file: str) -> str:
        return str(self.images / file)

    def _make(self, file: str, backing: str, blocks: host.Blocks = ()) -> None:
        below = self._path(backing) if backing else None
        qemu.image(self._path(file), host.SIZE, backing=below)
        for block, value in enumerate(blocks):
            if value is not None:
                qemu.write_pattern(self._path(file), "qcow2", value, block * BLOCK, BLOCK)

    # --- machines ---

    def _boot(self, name: str, disks: list[tuple[str, str]]) -> None:
        arguments: list[str] = []
        for owner, file in disks:
            zeroes = ",detect-zeroes=on" if owner == "vdb" else ""
            arguments += ["-drive", f"file={self._path(file)},format=qcow2,if=none,id=d-{owner}{zeroes}"]
            arguments += ["-device", f"virtio-blk-pci,drive=d-{owner}"]
        if name in self.machines:
            self.machines.pop(name).close()
        self.machines[name] = qemu.Machine(self.directory / name, arguments, memory=16)

    def _kill(self, name: str) -> None:
        self.machines.pop(name).close()

    def _write(self, name: str, owner: str, block: int, value: int) -> None:
        machine = self.machines[name]
        machine.guest_write(f"d-{owner}", value, block * BLOCK, BLOCK)
        machine.guest_flush(f"d-{owner}")

    def _chain(self, name: str, owner: str) -> list[tuple[str, str]]:
        """Nodes and files, active layer first."""
        row = self.machines[name].backend(f"d-{owner}")
        rows = self.machines[name].qmp("query-blockstats")
        stat = next(one for one in rows if one.get("qdev") == row["qdev"])
        image, found = row["inserted"]["image"], []
        while image is not None:
            found.append((stat["node-name"], _name(image["filename"])))
            image, stat = image.get("backing-image"), stat.get("backing", {})
        return found

    def _layers(self, name: str, file: str) -> tuple[str, dict[str, str]]:
        """The owner of the disk that has the image, and its nodes by file."""
        for device in self.double.host.machines[name].devices:
            nodes = {one: node for node, one in self._chain(name, device.owner)}
            if file in nodes:
                return device.owner, nodes
        raise AssertionError(f"no disk of {name} has {file}")

    # --- actions ---

    def do(self, action: Action, owners: dict[str, list[str]]) -> None:
        """What has just been done in the double. ``owners`` are the disks that each machine had before it."""
        self.answer = None
        struck = self.double.struck
        if isinstance(action, actions.Verb):
            self._ask(action, owners)
        elif self.double.refused is None:
            self._do(action)
        elif isinstance(action, actions.Boot) and not isinstance(self.double.refused, world.Impossible):
            with contextlib.suppress(qemu.LabError):
                if getattr(self.double.refused, "code", "") == "command-failed":
                    self._boot(action.domain, list(action.disks))
                    raise AssertionError(f"QEMU starts, and in the double {self.double.refused}")
        assert not struck or isinstance(action, actions.Verb)

    def _do(self, action: Action) -> None:
        match action:
            case actions.Trash() | actions.HandRemove():
                os.unlink(self._path(action.file))
            case actions.Write():
                self._write(action.domain, action.owner, action.block, action.value)
            case actions.Boot():
                self._boot(action.domain, list(action.disks))
            case actions.Off():
                if not action.killed:
                    self.machines[action.domain].quit()
                self._kill(action.domain)
            case actions.Restart():
                self.daemon.start()
            case actions.Overlay():
                self._make(action.file, action.backing)
            case actions.HandWrite():
                qemu.write_pattern(
                    self._path(action.file), "qcow2", action.value, action.block * BLOCK, BLOCK
                )
            case actions.HandSnapshot():
                nodes = self._chain(action.domain, action.owner)
                self._make(action.file, nodes[0][1])
                data = {
                    "node-name": nodes[0][0],
                    "snapshot-file": self._path(action.file),
                    "mode": "existing",
                }
                data["snapshot-node-name"] = f"hand{self._hand()}"
                self.machines[action.domain].qmp("blockdev-snapshot-sync", **data, format="qcow2")
            case actions.HandStream() | actions.HandCommit():
                self._hand_job(action)

    def _hand(self) -> int:
        self._hands += 1
        return self._hands

    def _hand_job(self, action: actions.HandStream | actions.HandCommit) -> None:
        _owner, nodes = self._layers(action.domain, action.top)
        machine, ident = self.machines[action.domain], f"hand{self._hand()}"
        base = {"base-node": nodes[action.base]} if action.base else {}
        if isinstance(action, actions.HandStream):
            machine.qmp("block-stream", job_id=ident, device=nodes[action.top], **base)
        else:
            active = next(iter(nodes.values()))
            machine.qmp("block-commit", job_id=ident, device=active, top_node=nodes[action.top], **base)
            if active == nodes[action.top]:
                machine.event("BLOCK_JOB_READY", device=ident)
                machine.qmp("job-complete", id=ident)
        machine.event("BLOCK_JOB_COMPLETED", device=ident)
        owner = self._layers(action.domain, action.base or action.top)[0]
        machine.guest_flush(f"d-{owner}")

    # --- what people ask for ---

    def _ask(self, action: actions.Verb, owners: dict[str, list[str]]) -> None:
        struck = list(self.double.struck)
        method, url, body = self._request(action, owners.get(action.domain, []))
        url = f"/domains/{action.domain}{url}"
        if not struck:
            self.answer = self.daemon.ask(method, f"{url}{'&' if '?' in url else '?'}wait=true", body)
            return
        point, cut = struck.pop(0)
        self.daemon.start(crash=_crash(point, cut))
        self._settle(lambda: self._joined())
        request = self.daemon.request(method, url, body)
        try:
            self._strike(action.domain, cut, point)
            while struck:
                point, cut = struck.pop(0)
                self.daemon.start(crash=_crash(point, cut))
                self._strike(action.domain, cut, point)
            if cut.who != "qemu":
                self.daemon.start()
        finally:
            request.answer()

    def _strike(self, name: str, cut: actions.Cut, point: str) -> None:
        """The daemon comes to the point and dies, or stands still while QEMU dies."""
        child = self.daemon.child
        what = child.stopped if cut.who == "qemu" else child.ended
        daemons.until(what, lambda: f"{point} is not passed; log:\n{self.daemon.log()}")
        if cut.wrote and name in self.machines:
            for owner in self._running[name]:
                self._write(name, owner, cut.wrote % host.BLOCKS, cut.wrote)
        if cut.who != "daemon" and name in self.machines:
            self._kill(name)
        if cut.who == "qemu":
            child.send(signal.SIGCONT)

    def _request(self, action: actions.Verb, owners: list[str]) -> tuple[str, str, Any]:
        self._running = {action.domain: owners}
        match action:
            case actions.Create():
                chosen = [{"target": t, **({"file": self._path(f)} if f else {})} for t, f in action.files]
                names = {target for target, _file in action.files}
                out = [{"target": owner, "snapshot": "no"} for owner in owners if owner not in names]
                body: dict[str, Any] = {"name": action.name, "disks": [*chosen, *out]}
                body |= {"reuse_external": action.reuse, "no_metadata": not action.metadata}
                return "POST", "/snapshots", body
            case actions.Pull():
                base = {"base": self._path(action.base)} if action.base else {}
                return "POST", "/pull", {"disk": self._path(action.top), **base}
            case actions.Current():
                return "PUT", "/current", {"name": action.name}
            case actions.Forget():
                children = "&children=true" if action.children else ""
                return "DELETE", f"/snapshots/{action.name}?metadata=true{children}", None

    def _joined(self) -> str:
        """Whether the daemon has looked at every machine, and settled all that is open; "" when it has."""
        for name in self.double.keeper.domains:
            found = self.daemon.must("GET", f"/domains/{name}")
            there = (
                found["monitor"]["state"] == "ready"
                if name in self.machines
                else found["state"] == "shut off"
            )
            if not there or bool(found["operations"]) != bool(self.double.keeper.open(name)):
                return f"{name}: {found}"
        return ""

    def _settle(self, wrong: Any) -> None:
        daemons.until(lambda: not wrong(), lambda: f"{wrong()}; log:\n{self.daemon.log()}")

    # --- comparing ---

    def problems(self) -> list[str]:
        """Where double and truth differ, once the daemon says that nothing is open, and has looked."""
        self._settle(self._joined)
        for name in self.machines:
            self.daemon.must("GET", f"/domains/{name}/check")
        found = [*self._refusals(), *self._files()]
        for name in self.double.keeper.domains:
            found += [*self._records(name), *self._chains(name), *self._contents(name)]
        return found

    def _refusals(self) -> Iterator[str]:
        if self.answer is None:
            return
        body = self.answer[1] or {}
        refused = getattr(self.double.refused, "code", "") if self.double.refused else ""
        said = (body.get("error") or {}).get("code", "")
        if said != refused:
            yield f"the daemon says '{said}', the double '{refused}': {body}, {self.double.refused}"

    def _files(self) -> Iterator[str]:
        here, there = set(os.listdir(self.images)), {_name(file) for file in self.double.host.images}
        if here != there:
            yield f"images: {sorted(here - there)} only here, {sorted(there - here)} only in the double"

    def _records(self, name: str) -> Iterator[str]:
        root = ET.fromstring((self.daemon.keep / "state" / "domain" / f"{name}.xml").read_text())
        disks = [(disk.find("target"), disk.find("source")) for disk in root.iterfind("devices/disk")]
        here = {t.get("dev"): _name(s.get("file", "")) for t, s in disks if t is not None and s is not None}
        there = {disk.target: _name(disk.file) for disk in self.double.keeper.recorded(name).disks}
        if here != there:
            yield f"{name} boots {here}, in the double {there}"
        told = self.daemon.must("GET", f"/domains/{name}/snapshots")["snapshots"]
        mine = {s["name"]: (s["parent"] or "", s["current"], _parts(s["disks"])) for s in told}
        tree = self.double.keeper.tree(name)
        theirs = {
            s.name: (
                tree.parent(s.name),
                s is tree.current,
                {(d.target, _name(d.overlay), _name(d.image)) for d in s.disks if d.external},
            )
            for s in tree.ordered()
        }
        if mine != theirs:
            yield f"snapshots of {name} are {mine}, in the double {theirs}"

    def _chains(self, name: str) -> Iterator[str]:
        machine = self.double.host.machines.get(name)
        if (machine is None) != (name not in self.machines):
            yield f"{name} runs only here or only in the double"
            return
        for device in machine.devices if machine else ():
            here = [file for _node, file in self._chain(name, device.owner)]
            there = [_name(node.file) for node in device.chain]
            if here != there:
                yield f"{name} {device.owner}: the chain is {here}, in the double {there}"

    def _contents(self, name: str) -> Iterator[str]:
        w = self.double
        files = {d.file for d in w.keeper.recorded(name).disks}
        files |= {part.image for s in w.keeper.tree(name).ordered() for part in s.disks if part.image}
        for file in sorted(files):
            content = w.host.read(file)
            if content is not None:
                yield from self._content(self._path(_name(file)), content)

    def _content(self, path: str, content: host.Content) -> Iterator[str]:
        wide = tuple(value for value in content for _ in range(WIDE))
        try:
            key = stamps(path), wide
        except OSError as error:
            yield f"{path}: {error}; in the double it reads {content}"
            return
        if key not in self._read:
            if wrong := differing(path, wide):
                yield f"{wrong}; in the double it reads {content}"
            else:
                self._read.add(key)


def _name(path: str) -> str:
    return os.path.basename(path)


def _parts(disks: list[dict[str, str]]) -> set[tuple[str, str, str]]:
    return {(d["target"], _name(d["overlay"]), _name(d["image"])) for d in disks}


def _crash(point: str, cut: actions.Cut) -> str:
    return f"{point}:hang" if cut.who == "qemu" else point
