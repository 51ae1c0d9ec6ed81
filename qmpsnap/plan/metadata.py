"""Changes of metadata alone: another current snapshot, snapshots forgotten. No image is touched."""

from __future__ import annotations

import attrs

from qmpsnap.model import snapshot, snapshot_xml
from qmpsnap.plan import requests, steps


def set_current(domain: str, tree: snapshot.Tree, request: requests.SetCurrent) -> steps.Plan:
    """The marker moves to another snapshot, as `virsh snapshot-current DOMAIN NAME` moves it."""
    tree.get(request.name)
    record = steps.Record(active={}, snapshots={}, current=request.name)
    return _plan("snapshot-current", domain, record, request.name)


def forget(domain: str, tree: snapshot.Tree, request: requests.Forget) -> steps.Plan:
    """The metadata goes; children that stay are given to the parent, and so is the marker of the current snapshot."""
    gone = tree.get(request.name)
    below = [s.name for s in tree.descendants(gone.name)]
    removed = below if request.children_only else [*below, gone.name] if request.children else [gone.name]
    heir = gone.name if request.children_only else tree.parent(gone.name)
    adopted = {
        s.name: snapshot_xml.build(attrs.evolve(s, parent=heir))
        for s in tree.children(gone.name)
        if s.name not in removed
    }
    current = tree.current
    moved = heir if current is not None and current.name in removed else ""
    # Children first: a parent that is missing makes libvirt's tree print nothing (facts/libvirt.md 22).
    record = steps.Record(
        active={},
        snapshots=adopted,
        current=moved,
        remove=tuple(reversed(removed)) if request.children else tuple(removed),
    )
    return _plan("snapshot-delete", domain, record, gone.name)


def _plan(verb: str, domain: str, record: steps.Record, name: str) -> steps.Plan:
    return steps.Plan(verb, domain, (steps.Step("record", record),), commit=-1, result={"name": name})
