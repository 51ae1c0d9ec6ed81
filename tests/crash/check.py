"""What must be true after every crash, once the daemon says that it has recovered. Each function tells what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from tests.crash import world
from tests.lab import qemu


def problems(w: world.World, *, live: bool) -> list[str]:
    """Everything that is wrong: nothing open, nothing left over, nothing lost."""
    listed = dict(w.daemon.must("GET", f"{world.API}/snapshots"))
    found = [*_left_over(w), *_metadata(w, listed), *_snapshots(w, listed), *_orphans(w, listed, live)]
    found += _told(w)
    found += _live(w) if live else _off(w)
    return found


def offline_problems(w: world.World) -> list[str]:
    """The part that can be seen without a daemon and without QEMU. state/tmp is cleaned when the daemon starts."""
    return [*_off(w), *_open(w)]


def _open(w: world.World) -> Iterator[str]:
    if w.journal():
        yield f"the journal holds {w.journal()}"


def _left_over(w: world.World) -> Iterator[str]:
    yield from _open(w)
    if rest := os.listdir(w.daemon_state / "tmp"):
        yield f"state/tmp holds {rest}"
    if rest := [name for name in os.listdir(w.images) if name.startswith(".")]:
        yield f"beside the images lie {rest}"


def _metadata(w: world.World, listed: dict[str, Any]) -> Iterator[str]:
    """What is on disk is what is told, and the next daemon would tell the same."""
    folder = w.daemon_state / "snapshot" / world.NAME
    files = {}
    for name in os.listdir(folder) if folder.is_dir() else []:
        root = ET.fromstring((folder / name).read_text())
        files[name.removesuffix(".xml")] = root.findtext("active") == "1", root.findtext("parent/name") or ""
    told = {s["name"]: (s["current"], s["parent"] or "") for s in listed["snapshots"]}
    if files != told:
        yield f"snapshots on disk are {files}, told are {told}"
    current = [name for name, (is_current, _parent) in files.items() if is_current]
    if len(current) > 1:
        yield f"{current} are all current"
    if (current[0] if current else None) != listed["current"]:
        yield f"current is {current} on disk, told is {listed['current']}"


def _snapshots(w: world.World, listed: dict[str, Any]) -> Iterator[str]:
    writable = set((w.recorded() or {}).values())
    for snapshot in listed["snapshots"]:
        if not snapshot["revertible"]:
            yield f"snapshot {snapshot['name']}: {snapshot['why_not']}"
        for disk in snapshot["disks"]:
            if not os.path.exists(disk["overlay"]):
                yield f"snapshot {snapshot['name']}: its overlay {disk['overlay']} is gone"
            if disk["image"] in writable:
                yield f"snapshot {snapshot['name']}: the guest writes to its image {disk['image']}"
            wanted = w.frozen[snapshot["name"]][disk["target"]]
            if os.path.exists(disk["image"]) and (wrong := w.differing(disk["image"], wanted)):
                yield f"snapshot {snapshot['name']}, {disk['target']}: {wrong}"


def _orphans(w: world.World, listed: dict[str, Any], live: bool) -> Iterator[str]:
    used = {d[key] for s in listed["snapshots"] for d in s["disks"] for key in ("overlay", "image")}
    used |= {file for target in world.TARGETS for file in (w.chain(target) if live else ())}
    used |= set((w.recorded() or {}).values())
    if lost := w.files() - used - w.known - set(w.base.values()):
        yield f"orphans: {sorted(lost)}"


def _told(w: world.World) -> Iterator[str]:
    """`qmpsnap check` finds nothing either: fingerprints and headers are what they should be."""
    for one in w.daemon.must("GET", f"{world.API}/check")["findings"]:
        # What the user has made, and no snapshot took, is an overlay of an image that the guest writes to: rightly said.
        theirs = one["code"] == "shared" and any(f"'{file}'" in one["problem"] for file in w.known)
        if one["severity"] != "notice" and not w.meddled and not theirs:
            yield f"check: {one['where']}: {one['problem']}"


def _live(w: world.World) -> Iterator[str]:
    if not w.qemu.alive:
        yield f"QEMU is dead: {w.qemu.stderr}"
        return
    graph = w.qemu.qmp("x-debug-query-block-graph")
    children = {edge["child"] for edge in graph["edges"]}
    for node in graph["nodes"]:
        if node["type"] == "block-driver" and node["name"].startswith("qs-") and node["id"] not in children:
            yield f"the node {node['name']} is open, and nobody uses it"
    if jobs := w.qemu.qmp("query-jobs"):
        yield f"jobs are left: {jobs}"
    recorded = w.recorded() or {}
    for target in world.TARGETS:
        if recorded.get(target) != w.active(target):
            yield f"{target} is recorded on {recorded.get(target)}, and QEMU writes to {w.active(target)}"
        if wrong := world.differing_in_guest(w, target):
            yield wrong


def _off(w: world.World) -> Iterator[str]:
    recorded = w.recorded() or {}
    for target in world.TARGETS:
        file = recorded.get(target, "")
        if not os.path.exists(file):
            yield f"{target} is recorded on '{file}', which does not exist"
            continue
        if wrong := world.differing(file, w.content[target]):
            yield f"{target}: the newest flushed data are not in the recorded layer: {wrong}"
        try:
            qemu.check(file)
        except qemu.LabError as error:
            yield str(error)
