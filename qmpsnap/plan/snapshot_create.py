"""snapshot-create: one view and one request become overlays, one transaction, and metadata.

What a crash leaves after each step, and what recovery does:

* overlays made, no transaction: empty files that nobody uses; they are removed.
* transaction sent: the look decides. Its nodes are on top: finish. They are not: remove the overlays. QEMU is gone: an overlay
  that holds data was in use, finish; empty ones hold nothing, remove.
* look done, records missing: finish. Until then qemu-launch waits for the journal, so that no boot uses the layer below.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, names, snapshot, snapshot_xml
from qmpsnap.plan import migration, requests, steps
from qmpsnap.plan import names as made

#: libvirt's limit (facts/libvirt.md 12); QEMU itself goes on, but opens every image at each start.
DEEPEST = 200

# How QEMU's node options must be written; an overlay made by snapshot-sync loses these two (facts/qemu.md 14).
_LOST = ("native", "io_uring")


@attrs.frozen
class Choice:
    """A disk that will be snapshotted and the overlay that was asked for, before anybody has looked at the file."""

    disk: chain.Disk
    file: str


def choose(
    view: chain.View, tree: snapshot.Tree, request: requests.SnapshotCreate, now: int
) -> tuple[str, list[Choice]]:
    """The snapshot's name and its disks; refusals that need no look at files. ``now`` is the time in epoch seconds."""
    name = names.check(request.name or str(now), "snapshot")
    names.check_text(request.description, "description", lines=True)
    if not request.no_metadata and name in tree.snapshots:
        raise errors.SnapshotExists(name=name)
    migration.check(view, "snapshotted")
    specs = _specs(view, request.disks)
    chosen = []
    for disk in view.disks:
        spec = specs.get(disk.target)
        if (spec is None and disk.skipped) or (spec is not None and spec.snapshot == "no"):
            continue
        chosen.append(_choice(disk, spec or requests.DiskSpec(disk.target), name, view))
    if not chosen:
        raise errors.NothingSelected()
    return name, chosen


def _specs(view: chain.View, specs: Iterable[requests.DiskSpec]) -> dict[str, requests.DiskSpec]:
    found: dict[str, requests.DiskSpec] = {}
    for spec in specs:
        if view.disk(spec.target) is None:
            raise errors.NoDisk(target=spec.target)
        if spec.target in found:
            raise errors.DiskTwice(target=spec.target)
        found[spec.target] = spec
    return found


def _choice(disk: chain.Disk, spec: requests.DiskSpec, name: str, view: chain.View) -> Choice:
    if disk.skipped or disk.refused:
        raise errors.DiskUnsupported(target=disk.target, reason=disk.refused or disk.skipped)
    if spec.driver != "qcow2":
        raise errors.FormatUnsupported(target=disk.target, format=spec.driver)
    if view.job_of(disk):
        raise errors.DiskBusy(target=disk.target)
    if len(disk.chain) >= DEEPEST:
        raise errors.ChainTooDeep(target=disk.target, limit=DEEPEST)
    if not spec.file and names.is_device(disk.active.file):
        raise errors.CannotCreate(
            file=disk.active.file,
            reason=f"no file beside a block device; name one with --diskspec {disk.target},file=FILE",
        )
    file = spec.file or names.overlay_file(disk.active.file, name)
    if not file.startswith("/"):
        raise errors.FileRelative(file=file)
    return Choice(disk, names.check_text(file, "file"))


def plan(
    view: chain.View,
    tree: snapshot.Tree,
    domain: domain_xml.RecordedDomain,
    request: requests.SnapshotCreate,
    *,
    operation: str,
    now: int,
    facts: Mapping[str, chain.FileFact],
    way: Literal["auto", "blockdev"],
) -> steps.Plan:
    """The whole work, or a refusal; ``facts`` are keyed by the files of ``choose``, ``operation`` is never used twice."""
    name, chosen = choose(view, tree, request, now)
    overlays = [_Overlay.of(n, c, facts[c.file], operation, way) for n, c in enumerate(chosen)]
    _check_files(overlays, request.reuse_external)
    work = [o.take() if request.reuse_external else o.make() for o in overlays]
    work.append(steps.Step("sync", steps.SyncFiles(tuple(o.disk.active.file for o in overlays))))
    work += [o.add() for o in overlays if o.blockdev]
    work.append(
        steps.Step("transaction", steps.Command("transaction", {"actions": [o.action() for o in overlays]}))
    )
    work.append(steps.Step("look", steps.ExpectActive({o.disk.target: o.layer for o in overlays})))
    commit = len(work) - 1
    metadata = None if request.no_metadata else _metadata(name, request, view, tree, domain, overlays, now)
    work.append(
        steps.Step(
            "record",
            steps.Record(
                active={o.disk.target: (o.file, "qcow2") for o in overlays},
                snapshots={name: snapshot_xml.build(metadata)} if metadata else {},
                current=name if metadata else "",
                fresh=True,
            ),
        )
    )
    targets = tuple(o.disk.target for o in overlays)
    return steps.Plan("snapshot-create", view.domain, tuple(work), commit, targets, {"name": name})


@attrs.frozen
class _Overlay:
    disk: chain.Disk
    fact: chain.FileFact
    node: str
    temp: str
    blockdev: bool

    @classmethod
    def of(cls, n: int, choice: Choice, fact: chain.FileFact, operation: str, way: str) -> _Overlay:
        options = choice.disk.options
        lost = options.detect_zeroes != "off" or options.aio in _LOST
        temp = made.temp(fact.path, operation, n)
        return cls(choice.disk, fact, made.node(operation, n), temp, lost or way == "blockdev")

    @property
    def file(self) -> str:
        return self.fact.path

    @property
    def layer(self) -> chain.Layer:
        below = self.disk.active
        return chain.Layer(self.node, "qcow2", self.file, below.size, below.file)

    def make(self) -> steps.Step:
        below = self.disk.active
        act = steps.MakeOverlay(self.file, self.temp, below.file, below.format, below.size, below.file)
        undo = steps.RemoveOverlay(self.file, self.temp, below.file)
        return steps.Step(f"overlay-{self.disk.target}", act, undo)

    def take(self) -> steps.Step:
        return steps.Step(f"overlay-{self.disk.target}", steps.TakeOverlay(self.file, self.fact.stamp))

    def add(self) -> steps.Step:
        options = self.disk.options
        cache = {"direct": options.direct, "no-flush": options.no_flush}
        storage: dict[str, Any] = {"driver": "file", "filename": self.file, "cache": cache}
        image: dict[str, Any] = {"driver": "qcow2", "node-name": self.node, "cache": cache, "backing": None}
        if options.aio:
            storage["aio"] = options.aio
        if options.discard:
            storage["discard"] = image["discard"] = options.discard
        image |= {"detect-zeroes": options.detect_zeroes, "file": storage}
        undo = steps.Command("blockdev-del", {"node-name": self.node}, absent_ok=True)
        return steps.Step(f"open-{self.disk.target}", steps.Command("blockdev-add", image), undo)

    def action(self) -> dict[str, Any]:
        below = self.disk.active.node
        if self.blockdev:
            return {"type": "blockdev-snapshot", "data": {"node": below, "overlay": self.node}}
        data = {
            "node-name": below,
            "snapshot-file": self.file,
            "snapshot-node-name": self.node,
            "format": "qcow2",
            "mode": "existing",
        }
        return {"type": "blockdev-snapshot-sync", "data": data}


def _check_files(overlays: list[_Overlay], reuse: bool) -> None:
    seen: dict[str, str] = {}
    for overlay in overlays:
        target, fact = overlay.disk.target, overlay.fact
        if fact.path in seen:
            raise errors.FileTwice(first=seen[fact.path], target=target, file=fact.path)
        seen[fact.path] = target
        if fact.kind == "unreachable" or (fact.kind == "absent" and fact.reason and not reuse):
            raise errors.CannotCreate(file=fact.path, reason=fact.reason)
        if reuse:
            _check_reuse(overlay)
        elif fact.kind == "block":
            raise errors.CannotCreate(
                file=fact.path, reason="it is a block device, which is not supported yet"
            )
        elif fact.kind != "absent":
            raise errors.FileExists(target=target, file=fact.path)


def _check_reuse(overlay: _Overlay) -> None:
    fact, below = overlay.fact, overlay.disk.active
    if fact.kind == "absent":
        raise errors.ReuseMissing(target=overlay.disk.target, file=fact.path)
    if fact.kind != "file" or fact.format != "qcow2":
        reason = "it is no qcow2 image"
    elif posixpath.normpath(posixpath.join(posixpath.dirname(fact.path), fact.backing)) != below.file:
        reason = f"its backing file is '{fact.backing or 'none'}', not '{below.file}'"
    elif fact.size != below.size:
        reason = f"it has {fact.size} bytes, the disk has {below.size}"
    elif fact.data:
        reason = "it holds data already, and the guest's disk would change under it"
    else:
        return
    raise errors.ReuseUnfit(target=overlay.disk.target, file=fact.path, reason=reason)


def _metadata(
    name: str,
    request: requests.SnapshotCreate,
    view: chain.View,
    tree: snapshot.Tree,
    domain: domain_xml.RecordedDomain,
    overlays: list[_Overlay],
    now: int,
) -> snapshot.Snapshot:
    """The snapshot: its disks name the new overlays, its ``<domain>`` the images that hold the state."""
    state = domain.on({d.target: (d.active.file, d.active.format) for d in view.disks if d.chain})
    # Former and frozen layers, and disks that are not there, are the domain's; in every snapshot they would make files grow.
    there = (d for d in state.disks if view.disk(d.target))
    state = attrs.evolve(state, disks=tuple(attrs.evolve(d, was=()) for d in there), layers=())
    made_by = {o.disk.target: o for o in overlays}
    disks = []
    for disk in view.disks:
        overlay = made_by.get(disk.target)
        if overlay is None:
            disks.append(snapshot.SnapshotDisk(disk.target))
        else:
            below = overlay.disk.active
            disks.append(snapshot.SnapshotDisk(disk.target, overlay.file, "qcow2", below.file, below.format))
    return snapshot.Snapshot(
        name=name,
        creation_time=now,
        description=request.description,
        parent=tree.current.name if tree.current else "",
        disks=tuple(disks),
        current=True,
        domain=domain_xml.build(state),
    )
