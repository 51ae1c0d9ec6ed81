"""Facts that planners and recovery need and that only a look at files can give. Blocking: called from worker threads."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from qmpsnap import errors
from qmpsnap.model import chain
from qmpsnap.plan import recovery, steps
from qmpsnap.talk import files, qemu_img


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
    """How each overlay that the plan makes lies on disk."""
    made = (step.act for step in plan.steps if isinstance(step.act, steps.MakeOverlay))
    return {act.file: qemu_img.overlay_state(act.file, act.backing) for act in made}


def images(plan: steps.Plan) -> set[str]:
    """Images that a QEMU carrying out the plan has open read-write."""
    found: set[str] = set()
    for step in plan.steps:
        if isinstance(step.act, steps.MakeOverlay):
            found |= {step.act.file, step.act.backing}
        elif isinstance(step.act, steps.Settle):
            found.add(step.act.file)
    return found
