"""A plan that was cut short, and a fresh look: take it back, or go on from a step.

The journal says what was meant; only what is seen now says how far it came. What an error said is never read (QAPI: the text
"should not be parsed by applications"), nor which command was sent last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from qmpsnap import errors
from qmpsnap.model import chain
from qmpsnap.plan import migration, steps

#: An overlay as it lies on disk. Of ours: ``data`` means that clusters are allocated, so somebody has written to it. Of the
#: user's: ``kept`` or ``touched`` since it was looked at. A touch is taken for a guest's, if QEMU is gone and cannot be asked.
Overlay = Literal["absent", "empty", "data", "foreign", "kept", "touched"]


@attrs.frozen
class Seen:
    """What is there now. ``view`` is None when QEMU is proved to be gone; ``overlays`` are the files that the plan makes or takes.

    ``recorded`` means that the records name a part of the plan's outcome already: an overlay as the layer to boot, or the
    snapshot. ``listed``: its snapshot, which is written last and only when no migration was seen.
    """

    view: chain.View | None
    overlays: Mapping[str, Overlay]
    recorded: bool = False
    listed: bool = False


@attrs.frozen
class Decision:
    """Go on from step ``from_step``, or take everything back when it is None; ``reason`` for the log.

    With ``error`` it goes on without recording its snapshots, and that is how it ends.
    """

    from_step: int | None
    reason: str
    error: errors.Error | None = None


def decide(plan: steps.Plan, seen: Seen) -> Decision:
    """What to do with the plan. ``Corrupt`` where either way could lose data: then nothing is touched."""
    if plan.commit < 0:
        return Decision(0, "metadata only: written again")
    if any(isinstance(step.act, steps.ExpectActive) for step in plan.steps):
        return _create(plan, seen)
    return _pull(plan, seen)


def _create(plan: steps.Plan, seen: Seen) -> Decision:
    layers = {
        target: layer
        for step in plan.steps
        if isinstance(step.act, steps.ExpectActive)
        for target, layer in step.act.overlays.items()
    }
    wanted = {target: layer.file for target, layer in layers.items()}
    written = [file for file, state in seen.overlays.items() if state == "data"]
    if seen.recorded:
        return _unless_migrating(_create_recorded(plan, seen), seen, layers)
    if seen.view is None:
        return _create_off(plan, seen)
    on = {t for t, file in wanted.items() if (d := seen.view.disk(t)) and d.find(file) is not None}
    if on == set(wanted):
        return _unless_migrating(Decision(plan.commit + 1, "QEMU writes to the overlays"), seen, layers)
    if on or written:
        reason = (
            f"QEMU uses {len(on)} of {len(wanted)} overlays, and {', '.join(written) or 'none'} holds data"
        )
        raise errors.Undecided(domain=plan.domain, verb=plan.verb, reason=reason)
    return Decision(None, "QEMU does not use the overlays, and they are empty")


def _unless_migrating(decision: Decision, seen: Seen, layers: Mapping[str, chain.Layer]) -> Decision:
    """The same, but the snapshot is not recorded when a migration is seen first: it may have begun on the layers below.

    One that is listed was seen without.
    """
    reason = migration.unsafe(seen.view) if seen.view and not seen.listed else ""
    if not seen.view or not reason:
        return decision
    return attrs.evolve(decision, error=migration.began(seen.view, layers, reason))


def _create_recorded(plan: steps.Plan, seen: Seen) -> Decision:
    """QEMU was seen on the overlays, and the records say so: without them the next boot would find nothing."""
    if missing := [file for file, state in seen.overlays.items() if state in {"absent", "foreign"}]:
        reason = f"it is recorded already, but {', '.join(missing)} is missing"
        raise errors.Undecided(domain=plan.domain, verb=plan.verb, reason=reason)
    return Decision(plan.commit + 1, "QEMU was on the overlays, and a part of that is recorded")


def _create_off(plan: steps.Plan, seen: Seen) -> Decision:
    written = [file for file, state in seen.overlays.items() if state in {"data", "touched"}]
    missing = [file for file, state in seen.overlays.items() if state in {"absent", "foreign"}]
    if written and missing:
        reason = f"{', '.join(written)} holds data, but {', '.join(missing)} is missing"
        raise errors.Undecided(domain=plan.domain, verb=plan.verb, reason=reason)
    if written:
        return Decision(plan.commit + 1, "QEMU is gone, and had written to the overlays")
    return Decision(None, "QEMU is gone, and had not written to the overlays")


def _pull(plan: steps.Plan, seen: Seen) -> Decision:
    if seen.view is None:
        return Decision(None, "QEMU is gone: the header names its old backing file again")
    start, started = next((n, s.act) for n, s in enumerate(plan.steps) if isinstance(s.act, steps.StartJob))
    job = next((j for j in seen.view.jobs if j.id == started.job), None)
    if job is not None and job.status not in {"aborting", "concluded"}:
        return Decision(start + 1, f"the job is {job.status}")
    expected = next(s.act for s in plan.steps if isinstance(s.act, steps.ExpectBacking))
    if job is None and below(seen.view, expected.file) == expected.base:
        return Decision(plan.commit + 1, "the job is done")
    return Decision(None, "the job has ended, and the chain is as it was")


def below(view: chain.View, file: str) -> str | None:
    """The image right below ``file`` in its chain ("" for none); None when no disk has the file, or what is below it is no file."""
    found = view.by_image(file)
    if found is None:
        return None
    disk, place = found
    return (disk.chain[place + 1].file or None) if place + 1 < len(disk.chain) else ""
