"""The daemon in memory: real planners, gate, recovery, codec and XML over the double of the host.

It is what own.domain, own.carry and act.execute are to a real host, without waiting: each step between two points where everything
may stop. ``Died`` ends the daemon; what it had in memory is gone, because there is none: all is read anew from ``files``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, images, snapshot, snapshot_xml
from qmpsnap.own import describe
from qmpsnap.plan import (
    codec,
    gate,
    metadata,
    migration,
    pull,
    recovery,
    requests,
    snapshot_create,
    steps,
)
from tests.histories import host

NOW = 1_700_000_000


class Died(Exception):
    """The daemon is gone."""


@functools.lru_cache(4096)
def _domain(text: str) -> domain_xml.RecordedDomain:
    return domain_xml.parse(text, "")


@functools.lru_cache(4096)
def _snapshot(text: str) -> snapshot.Snapshot:
    return snapshot_xml.parse(text, "")


@functools.lru_cache(4096)
def _tree(texts: tuple[str, ...]) -> snapshot.Tree:
    return snapshot.Tree.of(_snapshot(text) for text in texts)


class Keeper:
    """``files`` is the state directory: (kind, domain, name) to text. ``point`` is told of every place where a crash may be."""

    def __init__(self, lab: host.Host, point: Callable[[str], None]) -> None:
        self.host = lab
        self.files: dict[tuple[str, str, str], str] = {}
        self.stuck: dict[str, errors.Error] = {}
        self._witnessed: dict[str, tuple[host.Machine, dict[str, str]]] = {}
        #: How each operation has ended.
        self.done: dict[str, bool] = {}
        self._point = point
        self._operations = 0

    # --- what lies on disk ---

    def recorded(self, name: str) -> domain_xml.RecordedDomain:
        text = self.files.get(("domain", name, ""))
        return _domain(text) if text else domain_xml.RecordedDomain(name, f"uuid-{name}")

    def tree(self, name: str) -> snapshot.Tree:
        found = {n: text for (kind, d, n), text in self.files.items() if (kind, d) == ("snapshot", name)}
        return _tree(tuple(found[n] for n in sorted(found)))

    def open(self, name: str) -> dict[str, steps.Plan]:
        """The journal: plans that have begun and not ended."""
        found = {n: text for (kind, d, n), text in self.files.items() if (kind, d) == ("journal", name)}
        return {ident: codec.load(json.loads(found[ident])) for ident in sorted(found)}

    @property
    def domains(self) -> list[str]:
        return [name for kind, name, _n in self.files if kind == "domain"]

    def graph(self) -> images.Graph:
        """As own.inventory and talk.images have it; every image lies in one directory."""
        needs = [need for name in self.domains for need in self._needs(name)]
        found = {file: self._found(file) for file in self.host.images}
        for file in [*(need.file for need in needs), *(one.backing for one in found.values())]:
            if file and file not in found:
                found[file] = images.Found(file, None)
        return images.Graph(found, tuple(needs))

    def _found(self, file: str) -> images.Found:
        image = self.host.images[file]
        backing_format = "qcow2" if image.backing else ""
        identity = images.Identity("file", 1, image.inode)
        return images.Found(file, identity, "qcow2", image.backing, backing_format, stamp=self.stamp(file))

    def _needs(self, name: str) -> Iterator[images.Need]:
        yield from images.needs_of(self.recorded(name), self.tree(name))
        view = self.look(name)
        for disk in view.disks if view else ():
            for layer in (layer for layer in disk.chain if layer.file):
                yield images.Need("open", layer.file, name, disk.target, layer.format)
        for ident, plan in self.open(name).items():
            for file in sorted(gate.mentions(plan)):
                yield images.Need("operation", file, name, ident)

    def stamp(self, file: str) -> str:
        image = self.host.images.get(file)
        return f"{image.inode}:{image.stamp}" if image else ""

    # --- what people ask for ---

    def look(self, name: str) -> chain.View | None:
        machine = self.host.machines.get(name)
        return machine.view(name, self.recorded(name).disks, self.host.images) if machine else None

    def learn(self, name: str) -> None:
        """The look that follows a connection, and every request for QEMU."""
        view = self.look(name)
        if view is not None:
            recorded, machine = self.recorded(name), self.host.machines[name]
            before, files = self._witnessed.get(name, (machine, {}))
            files = files if before is machine else {}
            new = describe.unmarked(recorded, self.tree(name), view)
            layers = (
                *recorded.layers,
                *(domain_xml.FrozenLayer(file, s) for file in new if (s := self.stamp(file))),
            )
            now = attrs.evolve(recorded, disks=describe.disks(recorded, view, files), layers=layers)
            if now != recorded:
                self.files["domain", name, ""] = domain_xml.build(now)
            self._witness(name)

    def _witness(self, name: str) -> None:
        """The layers that QEMU is on are remembered for as long as both live."""
        view, machine = self.look(name), self.host.machines.get(name)
        if view is not None and machine is not None:
            before, files = self._witnessed.get(name, (machine, {}))
            now = {disk.target: disk.active.file for disk in view.disks}
            self._witnessed[name] = machine, {**(files if before is machine else {}), **now}

    def submit(self, name: str, request: requests.Request) -> None:
        """The request is carried out, or refused by its error; ``Died`` when the daemon has died of it."""
        for ident, plan in self.open(name).items():
            reason = str(self.stuck[ident])
            raise errors.OperationOpen(operation=ident, verb=plan.verb, domain=name, reason=reason)
        self._operations += 1
        ident = f"op{self._operations:03}"
        plan = self._plan(name, request, ident)
        if not plan.steps:
            return
        self.files["journal", name, ident] = json.dumps(codec.dump(plan))
        self._point("journal/renamed-1")
        self._carry(name, ident, plan, 0)

    def _plan(self, name: str, request: requests.Request, ident: str) -> steps.Plan:
        if isinstance(request, requests.SetCurrent):
            return metadata.set_current(name, self.tree(name), request)
        if isinstance(request, requests.Forget):
            return metadata.forget(name, self.tree(name), request)
        assert not isinstance(request, requests.Accept)
        view = self.look(name)
        if view is None:
            raise errors.NotRunning(domain=name)
        self.learn(name)
        plan = (
            self._pull(view, request, ident)
            if isinstance(request, requests.Pull)
            else self._create(view, request, ident)
        )
        for target in plan.targets:
            disk = view.disk(target)
            if disk is not None:
                describe.check_drift(self.recorded(name), disk)
        gate.check(plan, self.graph())
        return plan

    def _pull(self, view: chain.View, request: requests.Pull, ident: str) -> steps.Plan:
        disk, place = pull.find(view, request.disk)
        stamp = self.stamp(disk.chain[place].file)
        return pull.plan(
            view,
            request,
            operation=ident,
            tree=self.tree(view.domain),
            recorded=self.recorded(view.domain),
            stamp=stamp,
        )

    def _create(self, view: chain.View, request: requests.SnapshotCreate, ident: str) -> steps.Plan:
        tree, recorded = self.tree(view.domain), self.recorded(view.domain)
        _name, chosen = snapshot_create.choose(view, tree, request, NOW)
        facts = {choice.file: self._fact(choice.file) for choice in chosen}
        return snapshot_create.plan(
            view, tree, recorded, request, operation=ident, now=NOW, facts=facts, way="auto"
        )

    def _fact(self, file: str) -> chain.FileFact:
        image = self.host.images.get(file)
        if image is None:
            return chain.FileFact(file, "absent")
        return chain.FileFact(file, "file", "", self.stamp(file), "qcow2", image.backing, host.SIZE)

    # --- carrying out: own.carry ---

    def _carry(self, name: str, ident: str, plan: steps.Plan, start: int) -> None:
        machine = self.host.machines.get(name)
        if machine is None and plan.targets and start <= plan.commit:
            self.recover(name)  # QEMU has died since it was looked at
            return
        try:
            for step in plan.steps[start:]:
                self._step(plan, step, machine)
            self._end(name, ident, done=True)
        except errors.Disconnected:
            self.recover(name)
        except errors.Error as error:
            try:
                decision = self._decide(name, plan)
            except errors.Error as second:
                self.stuck[ident] = second
                return
            if decision.from_step is None or decision.from_step <= plan.commit:
                self._take_back(name, ident, plan)
                raise
            self.stuck[ident] = error

    def _end(self, name: str, ident: str, *, done: bool) -> None:
        self.done[ident] = done
        del self.files["journal", name, ident]
        self._point("journal/ended")

    def _take_back(self, name: str, ident: str, plan: steps.Plan) -> None:
        graph, kept = self.graph(), set()
        for file in gate.abandons(plan):
            try:
                gate.check_removal(file, graph, but={ident})
            except errors.WouldHurt:
                kept.add(file)
        for step in plan.undo:
            if not (isinstance(step.act, steps.RemoveOverlay) and step.act.file in kept):
                self._step(plan, step, self.host.machines.get(name))
        self._end(name, ident, done=False)

    def start(self) -> None:
        """The daemon starts: it knows what is on disk, looks at every machine, and settles what is open."""
        self._witnessed = {}
        for name in self.domains:
            self.ready(name)

    def ready(self, name: str) -> None:
        """The machine answers, or is known to be off."""
        self.recover(name)
        self.learn(name)

    def recover(self, name: str) -> None:
        """Everything that is open is finished or taken back; what cannot be is ``stuck``, and says why."""
        for ident, plan in self.open(name).items():
            self.stuck.pop(ident, None)
            try:
                decision = self._decide(name, plan)
                if decision.from_step is None:
                    self._take_back(name, ident, plan)
                else:
                    self._carry(name, ident, plan, decision.from_step)
            except errors.Disconnected:
                self.recover(name)
            except errors.Error as error:
                if ("journal", name, ident) in self.files:  # else it was taken back
                    self.stuck[ident] = error

    def _decide(self, name: str, plan: steps.Plan) -> recovery.Decision:
        overlays: dict[str, recovery.Overlay] = {}
        for act in (step.act for step in plan.steps):
            if isinstance(act, steps.MakeOverlay):
                overlays[act.file] = self._overlay(act.file, act.backing)
            elif isinstance(act, steps.TakeOverlay):
                now = self.stamp(act.file)
                overlays[act.file] = "absent" if not now else "kept" if now == act.stamp else "touched"
        acts = [step.act for step in plan.steps if isinstance(step.act, steps.Record)]
        boots = {disk.target: disk.file for disk in self.recorded(name).disks}
        listed = any(("snapshot", name, taken) in self.files for act in acts for taken in act.snapshots)
        on = any(boots.get(target) == file for act in acts for target, (file, _format) in act.active.items())
        seen = recovery.Seen(self.look(name) if plan.targets else None, overlays, listed or on, listed)
        return recovery.decide(plan, seen)

    def _overlay(self, file: str, backing: str) -> recovery.Overlay:
        image = self.host.images.get(file)
        if image is None:
            return "absent"
        if image.backing != backing:
            return "foreign"
        return "empty" if all(block is None for block in image.blocks) else "data"

    # --- acts: act.execute ---

    def _step(self, plan: steps.Plan, step: steps.Step, machine: host.Machine | None) -> None:
        at = f"{plan.verb}/{step.name}"
        self._point(f"{at}/before")
        self._act(step.act, plan.domain, machine, at)
        self._point(f"{at}/after")

    def _act(self, act: steps.Act, name: str, machine: host.Machine | None, at: str) -> None:
        images_ = self.host.images
        match act:
            case steps.MakeOverlay():
                if act.file in images_:
                    raise errors.CannotCreateFile(file=act.file, reason="File exists")
                self.host.create(act.file, act.backing)
            case steps.RemoveOverlay():
                if self._overlay(act.file, act.backing) == "empty" and not self.host.opened(
                    act.file, writing=True
                ):
                    self.host.unlink(act.file)
            case steps.TakeOverlay():
                if self.stamp(act.file) != act.stamp:
                    raise errors.FileFailed(act="use", file=act.file, reason="it has been changed meanwhile")
            case steps.SyncFiles():
                for file in act.files:
                    if file not in images_:
                        raise errors.FileFailed(act="flush", file=file, reason="No such file or directory")
                    images_[file].flush()
            case steps.Record():
                self._record(act, name, at)
            case steps.Fingerprint():
                self._fingerprint(act, name, at)
            case steps.RebaseBack():
                if machine is None and act.backing in images_:
                    self._rebase_back(act)
            case _ if machine is not None:
                if not machine.alive:
                    raise errors.Disconnected(reason="QEMU is gone")
                self._act_in_qemu(act, name, machine)
            case _:
                pass  # QEMU is gone, and with it every node and job of ours

    def _rebase_back(self, act: steps.RebaseBack) -> None:
        image = self.host.images.get(act.file)
        if image is not None and image.backing != act.backing:
            image.change(backing=act.backing)
            image.flush()

    def _act_in_qemu(self, act: steps.Act, name: str, machine: host.Machine) -> None:
        view = machine.view(name, self.recorded(name).disks, self.host.images)
        match act:
            case steps.Command():
                self._command(act, machine)
            case steps.ExpectActive():
                for target, layer in act.overlays.items():
                    disk = view.disk(target)
                    if disk is None or disk.active.file != layer.file:
                        raise errors.Unexpected(reason=f"{target} does not write to {layer.file}")
                if reason := migration.unsafe(view):
                    raise errors.Unexpected(reason=reason)
            case steps.StartJob():
                self.host.execute(machine, act.execute, act.arguments)
            case steps.AwaitJob():
                machine.work()
                if any(job.id == act.job for job in machine.jobs) == (act.until == "ended"):
                    raise errors.JobFailed(reason=f"job {act.job}")
            case steps.CancelJob():
                cancel = steps.Command("job-cancel", {"id": act.job}, absent_ok=True)
                self._command(cancel, machine)
            case steps.Settle():
                self._settle(act, machine)
            case steps.ExpectBacking():
                if recovery.below(view, act.file) != act.base:
                    raise errors.Unexpected(reason=f"{act.file} has another image below it")
            case steps.DropNodes():
                for node in act.nodes:
                    self._command(steps.Command("blockdev-del", {"node-name": node}, absent_ok=True), machine)

    def _command(self, act: steps.Command, machine: host.Machine) -> None:
        try:
            self.host.execute(machine, act.execute, act.arguments)
        except errors.CommandFailed:
            there = {node.name for node in machine.nodes} | {job.id for job in machine.jobs}
            if not act.absent_ok or there & {act.arguments.get("node-name"), act.arguments.get("id")}:
                raise

    def _settle(self, act: steps.Settle, machine: host.Machine) -> None:
        found = next(
            (d.chain[n:] for d in machine.devices for n, one in enumerate(d.chain) if one.file == act.file),
            None,
        )
        if found is None:
            raise errors.Unexpected(reason=f"no disk has {act.file}")
        top, *below = found
        top.flush()
        if act.file not in self.host.images or (act.pulled and self.host.layers(act.file) is None):
            # The proof comes from outside, by the names in the headers.
            raise errors.ToolFailed(tool="qemu-img map", reason=f"a layer of {act.file} is missing")
        for node in below[: act.pulled]:
            for mine, theirs in zip(top.image.blocks, node.image.blocks, strict=True):
                if mine is None and theirs is not None:
                    raise errors.Unexpected(reason=f"{act.file} still needs the layers below it")

    # --- records: own.domain, talk.store ---

    def _record(self, act: steps.Record, name: str, at: str) -> None:
        tree = self.tree(name)
        written = {taken: _snapshot(text) for taken, text in act.snapshots.items()}
        if act.fresh:
            written = self._fingerprinted(written)
        else:
            known = {t: tree.snapshots[t] for t in written if t in tree.snapshots}
            stamps = {t: {d.target: d.stamp for d in s.disks if d.stamp} for t, s in known.items()}
            written = {t: snapshot_xml.stamped(s, stamps.get(t, {})) for t, s in written.items()}
        after = {n: s for n, s in {**tree.snapshots, **written}.items() if n not in act.remove}
        for taken, value in after.items():
            wanted = taken == act.current if act.current else value.current
            if value.current != wanted:
                written[taken] = attrs.evolve(value, current=wanted)
        ordered = dict(sorted(written.items(), key=lambda item: item[0] != act.current))
        recorded = self.recorded(name).on(act.active) if act.active else None
        if act.remove:
            recorded = self._still_frozen(recorded or self.recorded(name), tree, act.remove)
        self._write(name, recorded, ordered, at, act.remove)
        self._witness(name)

    def _still_frozen(
        self, recorded: domain_xml.RecordedDomain, tree: snapshot.Tree, forgotten: Collection[str]
    ) -> domain_xml.RecordedDomain:
        gone = (tree.snapshots[taken] for taken in forgotten if taken in tree.snapshots)
        more = {d.image: domain_xml.FrozenLayer(d.image, d.stamp) for s in gone for d in s.disks if d.stamp}
        layers = {one.file: one for one in recorded.layers} | more
        there = tuple(one for one in layers.values() if one.file in self.host.images)
        return attrs.evolve(recorded, layers=there)

    def _fingerprint(self, act: steps.Fingerprint, name: str, at: str) -> None:
        recorded, tree, stamp = self.recorded(name), self.tree(name), self.stamp(act.file)
        held = {n: tree.snapshots[n] for n in act.snapshots if n in tree.snapshots}
        written = self._fingerprinted(held, act.file)
        layers = tuple(attrs.evolve(o, stamp=stamp) if o.file == act.file else o for o in recorded.layers)
        now = attrs.evolve(recorded, layers=layers)
        if (written, now) != (held, recorded):
            self._write(name, now, written, at)

    def _fingerprinted(
        self, taken: Mapping[str, snapshot.Snapshot], file: str = ""
    ) -> dict[str, snapshot.Snapshot]:
        found = {}
        for name, value in taken.items():
            parts = [d for d in value.disks if d.image and (not file or d.image == file)]
            found[name] = snapshot_xml.stamped(value, {d.target: self.stamp(d.image) for d in parts})
        return found

    def _write(
        self,
        name: str,
        recorded: domain_xml.RecordedDomain | None,
        taken: Mapping[str, snapshot.Snapshot],
        at: str,
        removed: Collection[str] = (),
    ) -> None:
        """File after file, each of them whole: a crash leaves the first of them."""
        writes = [(("domain", name, ""), domain_xml.build(recorded))] if recorded else []
        writes += [(("snapshot", name, n), snapshot_xml.build(value)) for n, value in taken.items()]
        for n, (key, text) in enumerate(writes, 1):
            self.files[key] = text
            self._point(f"{at}/renamed-{n}")
        for n, gone in enumerate(removed, 1):
            self.files.pop(("snapshot", name, gone), None)
            self._point(f"{at}/removed-{n}")
