"""check --accept: a person has looked, and takes what is there for right."""

from __future__ import annotations

from qmpsnap.plan import check, steps


def plan(seen: check.Seen) -> steps.Plan:
    """The layers that run become the recorded ones, and images that were written to get their fingerprints anew.

    Nothing else that ``check`` finds can be put right by a record. Without anything to accept the plan has no steps.
    """
    active = {}
    for target in sorted(seen.drifted):
        disk = seen.view.disk(target) if seen.view else None
        if disk is not None and disk.chain:
            active[target] = (disk.active.file, disk.active.format)
    work = [steps.Step("record", steps.Record(active, snapshots={}))] if active else []
    for file in _written(seen):
        holding = tuple(
            taken.name
            for taken in seen.tree.ordered()
            if any(d.stamp and seen.graph.same(d.image, file) for d in taken.disks)
        )
        work.append(steps.Step("fingerprint", steps.Fingerprint(file, holding)))
    accepted = [*active, *(s.act.file for s in work if isinstance(s.act, steps.Fingerprint))]
    return steps.Plan("accept", seen.recorded.name, tuple(work), commit=-1, result={"accepted": accepted})


def _written(seen: check.Seen) -> list[str]:
    files = {d.image for s in seen.tree.snapshots.values() for d in s.disks if d.stamp}
    files |= {one.file for one in seen.recorded.layers}
    there = (seen.graph.found.get(file) for file in sorted(files - seen.busy))
    known = check.Fingerprints(seen.recorded, seen.tree, seen.graph)
    return [one.file for one in there if one and known.wrong(one)]
