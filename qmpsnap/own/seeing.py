"""Facts that planners and recovery need and that only a look at files can give. Blocking: called from worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterable

import attrs

from qmpsnap import errors
from qmpsnap.model import chain
from qmpsnap.plan import recovery, steps
from qmpsnap.talk import files, qemu_img, store


def file_facts(names: Iterable[str], *, headers: bool) -> dict[str, chain.FileFact]:
    """What lies at each path; with ``headers`` also what the images there say of themselves."""
    facts = {name: files.fact(name) for name in names}
    return {name: _with_header(fact) if headers else fact for name, fact in facts.items()}


def _with_header(fact: chain.FileFact) -> chain.FileFact:
    if fact.kind != "file":
        return fact
    try:
        info = qemu_img.info(fact.path)
    except errors.ToolFailed:
        return fact
    backing = info.get("full-backing-filename", "")
    return attrs.evolve(fact, format=info["format"], backing=backing, size=info["virtual-size"])


def overlays(plan: steps.Plan) -> dict[str, recovery.Overlay]:
    """How each overlay that the plan makes or takes lies on disk."""
    found: dict[str, recovery.Overlay] = {}
    for act in (step.act for step in plan.steps):
        if isinstance(act, steps.MakeOverlay):
            found[act.file] = qemu_img.overlay_state(act.file, act.backing)
        elif isinstance(act, steps.TakeOverlay):
            fact = files.fact(act.file)
            found[act.file] = (
                "absent" if fact.kind == "absent" else "kept" if fact.stamp == act.stamp else "touched"
            )
    return found


def recorded(home_store: store.Store, plan: steps.Plan) -> bool:
    """Whether a part of what the plan records is on disk: a layer of its own as the one to boot, or its snapshot.

    The files are asked, not the memory: a record that failed in the middle has changed only them.
    """
    acts = [step.act for step in plan.steps if isinstance(step.act, steps.Record)]
    domain = home_store.domain(plan.domain) if any(act.active for act in acts) else None
    boots = {d.target: d.file for d in domain.disks} if domain else {}
    return any(
        any(boots.get(target) == file for target, (file, _format) in act.active.items())
        or any(os.path.exists(home_store.paths.snapshot_file(plan.domain, name)) for name in act.snapshots)
        for act in acts
    )


def images(plan: steps.Plan) -> set[str]:
    """Images that a QEMU carrying out the plan has open read-write."""
    found: set[str] = set()
    for step in plan.steps:
        if isinstance(step.act, steps.MakeOverlay):
            found |= {step.act.file, step.act.backing}
        elif isinstance(step.act, steps.TakeOverlay | steps.Settle):
            found.add(step.act.file)
    return found
