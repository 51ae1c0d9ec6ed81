"""What must be true after every action, and after the recovery from every death. Each function tells what is not."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qmpsnap import errors
from qmpsnap.model import images
from qmpsnap.plan import check, gate
from tests.histories import actions, host, world

Key = tuple[str, str, str]


@attrs.frozen
class Frozen:
    """A snapshot's disk as it was at its instant."""

    image: str
    content: host.Content


class Watch:
    """Looks at a world after each action.

    What an outsider has changed is no longer held against anybody: ``lost``. What he has written to, and reads as it did, is
    ``alarmed``: its fingerprint is wrong, rightly.
    """

    def __init__(self, seen: world.World) -> None:
        self.world = seen
        self.frozen: dict[Key, Frozen] = {}
        self.lost: set[Key] = set()
        self.alarmed: set[Key] = set()
        self._before = dict(seen.expected)
        self._files_before = {*seen.host.images}
        self._booted = self._recorded()

    def problems(self, action: actions.Action) -> list[str]:
        """What is wrong after the action, which has just been done."""
        graph = self.world.keeper.graph()
        found = [
            *self._journal(),
            *self._snapshots(self.world.meddled),
            *self._active(),
            *self._alone(action),
            *self._acknowledged(action),
            *self._done(action),
            *self._records(),
            *self._files(action, graph),
            *self._gate(graph),
            *self._check(graph),
        ]
        self._before, self._booted = dict(self.world.expected), self._recorded()
        return found

    def _recorded(self) -> dict[tuple[str, str], str]:
        return {key: self.world.boots(*key) for key in self.world.expected}

    def _journal(self) -> Iterator[str]:
        keeper = self.world.keeper
        for name in keeper.domains:
            for ident, plan in keeper.open(name).items():
                if not any(self.world.broken(file) for file in gate.mentions(plan)):
                    yield f"{name}: {ident} is open: {keeper.stuck.get(ident)}"

    def _snapshots(self, meddled: bool) -> Iterator[str]:
        """A listed snapshot reads as at its instant; what an outsider did to it shows in a fingerprint."""
        keeper = self.world.keeper
        taken = [(name, one) for name in keeper.domains for one in keeper.tree(name).ordered()]
        listed = {(n, s.name, part.target): part for n, s in taken for part in s.disks if part.image}
        for key in self.frozen.keys() - listed.keys():
            del self.frozen[key]
        self.lost &= listed.keys()
        self.alarmed &= listed.keys()
        for key, part in listed.items():
            yield from self._snapshot(key, part.image, part.stamp, meddled)

    def _snapshot(self, key: Key, image: str, stamp: str, meddled: bool) -> Iterator[str]:
        w, now = self.world, self.world.host.read(image)
        if key not in self.frozen:
            self.frozen[key] = Frozen(image, self._before.get((key[0], key[2]), ()))
        known = self.frozen[key]
        if image != known.image:
            yield f"{key}: its image was {known.image} and is {image}"
        if key in self.lost:
            return
        if now == known.content:
            if stamp == w.keeper.stamp(image):
                self.alarmed.discard(key)
            elif meddled or w.keeper.stamp(image) == "":
                self.alarmed.add(key)
            elif key not in self.alarmed:
                yield f"{key}: {image} reads as before, and its fingerprint is wrong"
        elif now is None and w.broken(image):
            pass  # and when it can be read again, it must read as it did
        elif not meddled:
            yield f"{key}: {image} reads {now}, and was {known.content}"
        else:
            self.lost.add(key)
            if not self._shown(key):
                yield f"{key}: {image} reads {now}, was {known.content}, and check does not say so"

    def _check(self, graph: images.Graph) -> Iterator[str]:
        """`qmpsnap check` is silent as long as no outsider has meddled."""
        w = self.world
        for name in w.keeper.domains if not w.ever_meddled else ():
            for one in self._findings(name, graph):
                # "shared": an overlay was prepared over the active layer.
                if one.code != "shared":
                    yield f"check {name}: {one.where}: {one.problem}"

    def _shown(self, key: Key) -> bool:
        """Whether `qmpsnap check` says that the snapshot's disk was written to, or cannot be read."""
        where = f"snapshot {key[1]}, {key[2]}"
        findings = self._findings(key[0], self.world.keeper.graph())
        return any(one.where == where and one.code in {"changed", "missing"} for one in findings)

    def _findings(self, name: str, graph: images.Graph) -> list[check.Finding]:
        keeper = self.world.keeper
        return check.findings(check.Seen(keeper.recorded(name), keeper.tree(name), graph, keeper.look(name)))

    def _active(self) -> Iterator[str]:
        """The next start reads what the guest last wrote; so does the guest, unless somebody has started it elsewhere."""
        w = self.world
        for (name, target), content in w.expected.items():
            file = w.boots(name, target)
            machine = w.host.machines.get(name)
            for device in machine.devices if machine else ():
                if device.owner == target and not w.strayed(name, device):
                    if device.chain[0].file != file:
                        yield f"{name} {target}: {file} is recorded, and QEMU writes to {device.chain[0].file}"
                    if content and w.host.machines[name].content(device) != content:
                        yield f"{name} {target}: the guest reads something else"
            now = w.host.read(file)
            if w.keeper.open(name):
                continue  # qemu-launch does not start it
            if not content:  # it could not be read, and perhaps can be again
                w.expected[name, target] = now or ()
            elif now != content and not (now is None and w.broken(file)):
                yield f"{name} {target}: the next start would read {now} in {file}, not {content}"

    def _done(self, action: actions.Action) -> Iterator[str]:
        """What is told to be done is done, and what is told to have failed is not."""
        w = self.world
        for done in w.keeper.done.values():
            if isinstance(action, actions.Pull) and done:
                image = w.host.images.get(w.path(action.top))
                if image is not None and image.backing != w.path(action.base):
                    yield f"{action.top} is said to be pulled, and has {image.backing} below it"
            if isinstance(action, actions.Create):
                files = {file for (name, _t), file in self._recorded().items() if name == action.domain}
                if done == (files == {f for (name, _t), f in self._booted.items() if name == action.domain}):
                    yield f"{action.name} is said to be {'' if done else 'not '}made, and {files} are recorded"

    def _alone(self, action: actions.Action) -> Iterator[str]:
        """A snapshot lets no guest write to an image that others read through."""
        w = self.world
        below = {image.backing for image in w.host.images.values()}
        for key, file in self._recorded().items():
            if isinstance(action, actions.Create) and file != self._booted[key] and file in below:
                yield f"{key}: the guest writes to {file}, which is below another image"

    def _acknowledged(self, action: actions.Action) -> Iterator[str]:
        """By whatever command line a machine is started: the newest layer stays recorded where it is not in the chain."""
        w = self.world
        for name, device in w.moved:
            if w.strayed(name, device):
                yield f"{name} {device.owner}: what was done by hand before our eyes is not followed"
        if not isinstance(action, actions.Boot) or w.refused:
            return
        for device in w.machine(action.domain).devices:
            before, now = self._booted[action.domain, device.owner], w.boots(action.domain, device.owner)
            if before in w.host.images and w.strayed(action.domain, device) and now != before:
                yield f"{action.domain} {device.owner}: {now} is recorded, and the newest layer is {before}"

    def _records(self) -> Iterator[str]:
        w = self.world
        for name in w.keeper.domains:
            tree = w.keeper.tree(name)
            current = [s.name for s in tree.snapshots.values() if s.current]
            if len(current) > 1 and not w.keeper.open(name):
                yield f"{name}: {current} are all current"
            for taken in tree.snapshots.values():
                if taken.parent and taken.parent not in tree.snapshots:
                    yield f"{name}: the parent of {taken.name}, {taken.parent}, is not listed"
            view = w.keeper.look(name)
            for disk, device in zip(view.disks, w.host.machines[name].devices, strict=True) if view else ():
                if disk.target != device.owner:
                    yield f"{name}: {device.owner} is taken for {disk.target}"

    def _files(self, action: actions.Action, graph: images.Graph) -> Iterator[str]:
        """What nobody needs any more is what a pull, a forgotten snapshot or an outsider has left; a create leaves nothing."""
        w, unneeded = self.world, self._unneeded()
        needed = {one.inode for one in graph.needed()}
        for file, image in w.host.images.items():
            if (file in unneeded) == (image.inode in needed):
                yield f"{file} is an orphan by one count only"
        if isinstance(action, actions.Create) and (new := unneeded - self._files_before):
            yield f"orphans: {sorted(new)}"
        self._files_before = {*w.host.images}

    def _roots(self) -> set[str]:
        w = self.world
        found = {w.boots(name, target) for name, target in w.expected}
        for name in w.keeper.domains:
            for taken in w.keeper.tree(name).snapshots.values():
                found |= {file for part in taken.disks for file in (part.image, part.overlay)}
            found |= {file for plan in w.keeper.open(name).values() for file in gate.mentions(plan)}
        return found | {node.file for m in w.host.machines.values() for d in m.devices for node in d.chain}

    def _below(self, files: set[str]) -> set[str]:
        found: set[str] = set()
        todo = [*files]
        while todo:
            file = todo.pop()
            if file in self.world.host.images and file not in found:
                found.add(file)
                todo.append(self.world.host.images[file].backing)
        return found

    def _unneeded(self) -> set[str]:
        return self.world.host.images.keys() - self._below(self._roots())

    def _gate(self, graph: images.Graph) -> Iterator[str]:
        """The gate lets go what is in no chain of anything, whoever has made it, and nothing else."""
        w = self.world
        held = self._below(self._roots()) | {image.backing for image in w.host.images.values()}
        for file in w.host.images:
            try:
                gate.check_removal(file, graph)
                if file in held:
                    yield f"the gate would let go {file}, which is needed"
            except errors.WouldHurt as error:
                if file not in held:
                    yield f"the gate holds {file}, which nobody needs: {error}"
