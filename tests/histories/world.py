"""A world in memory: two domains that share a base image, their daemon, their guests, and outsiders; actions change it."""

from __future__ import annotations

from collections.abc import Mapping

from qmpsnap import errors
from qmpsnap.plan import gate, requests
from tests.histories import actions, host, keeper
from tests.histories.actions import Action, Cut

#: Domains and their disks at first: target, and what is below its image.
SHARED, ORIGIN = "shared.qcow2", "origin.qcow2"
DOMAINS = {"a": {"vda": SHARED, "vdb": "", "vdc": ""}, "b": {"vda": SHARED, "vdb": ""}}


class Impossible(Exception):
    """The action makes no sense here: in a history that is being shortened, it is passed over."""


class World:
    """``expected`` is what the guest of each disk last wrote: what its next start must read."""

    def __init__(self, folder: str, disks: Mapping[str, int]) -> None:
        self.host = host.Host(folder)
        self.keeper = keeper.Keeper(self.host, self._passed)
        self.expected: dict[tuple[str, str], host.Content] = {}
        self.first: dict[tuple[str, str], str] = {}
        #: What an outsider has removed, although it was needed.
        self.removed: set[str] = set()
        #: Images that others read through, and that an outsider has made a guest write to.
        self.fouled: set[str] = set()
        #: Guests' disks whose chains an outsider has perhaps changed in the last action.
        self.moved: list[tuple[str, host.Device]] = []
        #: Whether in the last action somebody has written what others read.
        self.meddled = self.ever_meddled = False
        self.refused: Exception | None = None
        #: Points that were passed in the last action, and the death that each cut was.
        self.points: list[str] = []
        self.struck: list[tuple[str, Cut]] = []
        self._cuts: list[Cut] = []
        self._count = 0
        self._domain = ""
        self._create(ORIGIN, "")
        self._create(SHARED, ORIGIN)
        for value, file in enumerate((ORIGIN, SHARED), 1):
            self._fill(file, value, value)
        for n, (name, all_disks) in enumerate(DOMAINS.items()):
            chosen = list(all_disks.items())[: disks[name]]
            for m, (target, below) in enumerate(chosen):
                file = f"{name}-{target}.qcow2"
                self._create(file, below)
                self._fill(file, 10 + 4 * n + m, m)
                self.first[name, target] = file
            self._boot(actions.Boot(name, tuple((t, f"{name}-{t}.qcow2") for t, _below in chosen)))

    def path(self, file: str) -> str:
        return f"{self.host.folder}/{file}" if file else ""

    def _create(self, file: str, backing: str) -> None:
        self.host.create(self.path(file), self.path(backing))

    def _fill(self, file: str, value: int, block: int) -> None:
        image = self.host.images[self.path(file)]
        image.change(blocks={block: value})
        image.flush()

    # --- what is there ---

    def machine(self, name: str) -> host.Machine:
        if name not in self.host.machines:
            raise Impossible
        return self.host.machines[name]

    def device(self, name: str, owner: str) -> host.Device:
        for device in self.machine(name).devices:
            if device.owner == owner:
                return device
        raise Impossible

    def layer(self, name: str, file: str) -> tuple[host.Device, int]:
        for device in self.machine(name).devices:
            for place, node in enumerate(device.chain):
                if node.file == self.path(file):
                    return device, place
        raise Impossible

    def boots(self, name: str, target: str) -> str:
        """The layer that is recorded."""
        disk = self.keeper.recorded(name).disk(target)
        return disk.file if disk else ""

    def broken(self, file: str) -> bool:
        """An outsider has taken away what the image needs."""
        return file in self.removed or self.keeper.graph().missing(file) in self.removed

    def strays(self, name: str, device: host.Device) -> bool:
        """What the guest writes there may be read by others, who do not expect it."""
        return self.strayed(name, device) or device.chain[0].file in self.fouled

    def strayed(self, name: str, device: host.Device) -> bool:
        """The device runs without the recorded layer, or on a former one above it: what the guest writes there is not what the next
        start shall read."""
        disk = self.keeper.recorded(name).disk(device.owner)
        files = [node.file for node in device.chain]
        return disk is None or disk.file not in files or files[0] in disk.was

    # --- deaths ---

    def _passed(self, point: str) -> None:
        self.points.append(point)
        if not self._cuts or self._count < self._cuts[0].at:
            self._count += 1
            return
        cut, self._count = self._cuts.pop(0), 0
        self.struck.append((point, cut))
        if cut.wrote and self._domain in self.host.machines:
            for device in self.host.machines[self._domain].devices:
                self._write(self._domain, device, cut.wrote % host.BLOCKS, cut.wrote)
        if cut.who == "host":
            self.host.cut(header=bool(cut.chance & 1), blocks=bool(cut.chance & 2))
        elif cut.who != "daemon":
            self.host.kill(self._domain, written=bool(cut.chance & 1))
        elif cut.chance & 1 and self._domain in self.host.machines:
            self.host.machines[self._domain].work()  # a job goes on while nobody looks
        if cut.who != "qemu":
            raise keeper.Died

    # --- actions ---

    def do(self, action: Action) -> None:
        """The action, whatever deaths come with it, and the recoveries after them; ``refused`` says why it was not done."""
        self.refused, self.points, self.struck, self.moved, self._count = None, [], [], [], 0
        self.keeper.done = {}
        self._cuts = list(getattr(action, "cuts", ()))
        self.meddled = actions.by_outsider(action)
        self.ever_meddled = self.ever_meddled or self.meddled
        self._domain = getattr(action, "domain", "")
        dead = isinstance(action, actions.Restart)
        try:
            self._do(action)
        except keeper.Died:
            dead = True
        except (errors.Error, Impossible) as error:
            self.refused = error
        while dead:
            try:
                self.keeper.start()
                dead = False
            except keeper.Died:
                pass
        self._cuts = []
        for name in self.host.machines:
            self.keeper.learn(name)

    def _do(self, action: Action) -> None:
        match action:
            case actions.Create():
                specs = [requests.DiskSpec(t, file=self.path(f)) for t, f in action.files]
                chosen = {t for t, _f in action.files}
                view = self.keeper.look(action.domain)
                others = [d.target for d in view.disks if d.target not in chosen] if view else []
                specs += [requests.DiskSpec(target, "no") for target in others]
                self.keeper.submit(
                    action.domain,
                    requests.SnapshotCreate(
                        action.name,
                        disks=tuple(specs),
                        reuse_external=action.reuse,
                        no_metadata=not action.metadata,
                    ),
                )
            case actions.Pull():
                base = self.path(action.base) or None
                self.keeper.submit(action.domain, requests.Pull(self.path(action.top), base))
            case actions.Current():
                self.keeper.submit(action.domain, requests.SetCurrent(action.name))
            case actions.Forget():
                self.keeper.submit(action.domain, requests.Forget(action.name, children=action.children))
            case actions.Trash():
                if self.path(action.file) not in self.host.images:
                    raise Impossible
                gate.check_removal(self.path(action.file), self.keeper.graph())
                self.host.unlink(self.path(action.file))
            case actions.Write():
                device = self.device(action.domain, action.owner)
                self._write(action.domain, device, action.block, action.value)
            case actions.Boot():
                self._boot(action)
            case actions.Off():
                self._off(action)
            case actions.Restart():
                pass
            case _:
                self._outside(action)

    def _write(self, name: str, device: host.Device, block: int, value: int) -> None:
        top = device.chain[0]
        top.cache[block] = value
        top.flush()
        if self.strays(name, device):
            self.meddled = True
            self._meddled()
        else:
            self.expected[name, device.owner] = self.host.machines[name].content(device)

    def _meddled(self, *moved: tuple[str, host.Device]) -> None:
        """Somebody has written what others may read. Guests that run expect what they read now, and so do those that were
        ``moved``: their records must have followed. The others will read what their recorded layers hold now."""
        running = [(name, device) for name, m in self.host.machines.items() for device in m.devices]
        follow = {(n, d.owner): (n, d) for n, d in running if not self.strayed(n, d)}
        follow |= {(name, device.owner): (name, device) for name, device in moved}
        for name, target in self.expected:
            if found := follow.get((name, target)):
                self.expected[name, target] = self.host.machines[found[0]].content(found[1])
            else:
                self.expected[name, target] = self.host.read(self.boots(name, target)) or ()

    def _boot(self, action: actions.Boot) -> None:
        if action.domain in self.host.machines:
            raise Impossible
        if action.launched:
            for owner, file in action.disks:
                recorded = self.boots(action.domain, owner)
                if recorded and recorded != self.path(file):
                    raise Impossible
            self._check_launch(action)
        before = {self.boots(*key) for key in self.expected}
        machine = self.host.boot(action.domain, [(owner, self.path(f)) for owner, f in action.disks])
        if not action.launched:
            self.fouled |= {device.chain[0].file for device in machine.devices} - before
        self.keeper.ready(action.domain)
        if not action.launched:
            self._meddled()
        for device in machine.devices:
            if (action.domain, device.owner) not in self.expected:
                self.expected[action.domain, device.owner] = machine.content(device)

    def _check_launch(self, action: actions.Boot) -> None:
        """As qemu_launch: nothing is booted over an open journal, and no layer that others read through."""
        if self.keeper.open(action.domain):
            raise Impossible
        graph = self.keeper.graph()
        for _owner, file in action.disks:
            harms = [
                h
                for h in graph.hurt(self.path(file))
                if (h.need.kind, h.need.domain) != ("active", action.domain)
            ]
            if harms:
                raise errors.ImageNeeded(file=file, reason=str(harms[0]), format="qcow2")

    def _off(self, action: actions.Off) -> None:
        machine = self.machine(action.domain)
        for node in [] if action.killed else machine.nodes:
            node.flush()
        self.host.kill(action.domain, written=bool(action.chance & 1))
        self.keeper.recover(action.domain)

    # --- outsiders ---

    def _outside(self, action: Action) -> None:
        all_ = [(name, device) for name, m in self.host.machines.items() for device in m.devices]
        self.moved = [(name, device) for name, device in all_ if not self.strayed(name, device)]
        try:
            self._by_hand(action)
        finally:
            for name in self.host.machines:
                self.keeper.learn(name)
            self._meddled(*self.moved)

    def _by_hand(self, action: Action) -> None:
        match action:
            case actions.Overlay():
                if (
                    self.path(action.file) in self.host.images
                    or self.path(action.backing) not in self.host.images
                ):
                    raise Impossible
                self._create(action.file, action.backing)
            case actions.HandSnapshot():
                self._hand_snapshot(action)
            case actions.HandStream():
                device, place = self.layer(action.domain, action.top)
                machine, top = self.machine(action.domain), device.chain[place]
                below = next((n for n in device.chain if n.file == self.path(action.base)), None)
                base = {"base-node": below.name} if below else {}
                self.host.execute(machine, "block-stream", {"job-id": "hand", "device": top.name, **base})
                machine.work()
                machine.finalize(machine.jobs[-1])
                top.flush()
            case actions.HandCommit():
                self._hand_commit(action)
            case actions.HandWrite():
                file = self.path(action.file)
                layers = self.host.layers(file)
                if not layers or self.host.opened(file):
                    raise Impossible
                if any(self.host.opened(layer, writing=True) for layer in layers):
                    raise Impossible
                self._fill(action.file, action.value, action.block)
            case actions.HandRemove():
                recorded = {self.boots(*key) for key in self.expected}
                if self.path(action.file) not in self.host.images or self.path(action.file) in recorded:
                    raise Impossible
                self.host.unlink(self.path(action.file))
                self.removed.add(self.path(action.file))

    def _hand_snapshot(self, action: actions.HandSnapshot) -> None:
        device = self.device(action.domain, action.owner)
        below, file = device.chain[0], self.path(action.file)
        if file in self.host.images:
            raise Impossible
        self.host.create(file, below.file)
        data = {
            "node-name": below.name,
            "snapshot-file": file,
            "snapshot-node-name": f"hand-{len(self.host.images)}",
        }
        arguments = {"actions": [{"type": "blockdev-snapshot-sync", "data": data}]}
        self.host.execute(self.machine(action.domain), "transaction", arguments)

    def _hand_commit(self, action: actions.HandCommit) -> None:
        device, top = self.layer(action.domain, action.top)
        same, base = self.layer(action.domain, action.base)
        target = device.chain[base]
        if same is not device or base <= top or self.host.images.get(target.file) is not target.image:
            raise Impossible
        if self.host.opened(target.file, but=self.machine(action.domain)):
            raise errors.CommandFailed(command="block-commit", reason=f"{target.file} is locked")
        for node in reversed(device.chain[top:base]):
            node.flush()
            target.image.change(blocks={n: v for n, v in enumerate(node.image.blocks) if v is not None})
        target.flush()
        self.machine(action.domain).opened += [node for node in device.chain[top:base] if node.added]
        if not top:
            self.fouled.add(target.file)
        else:
            over = device.chain[top - 1]
            over.image.change(backing=target.file)
            over.flush()
        del device.chain[top:base]
