"""Whether QEMU owns its images now: what every verb asks before it begins, and again where it can still turn back.

QEMU 7.2 refuses nothing here (facts/lab.md 16): a transaction passes on the destination of a migration, on its source while it
runs, and after it, and so does ``job-finalize``. The destination goes on with the layers that it was started on. What cannot be
seen from here is a destination that was started before and is migrated to later: it must be started on the newest layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qmpsnap import errors
from qmpsnap.model import chain
from qmpsnap.plan import steps

#: Statuses in which QEMU owns its images.
SAFE = frozenset(
    {
        "running",
        "paused",
        "prelaunch",
        "io-error",
        "debug",
        "watchdog",
        "suspended",
        "guest-panicked",
        "internal-error",
    }
)


def unsafe(view: chain.View) -> str:
    """Why no chain of this machine may be changed now; "" when one may."""
    if view.migrating:
        return "a migration is under way"
    return "" if view.status in SAFE else f"its status is {view.status}"


def check(view: chain.View, act: str) -> None:
    """``WrongStatus`` unless QEMU owns its images; ``act`` is what cannot be done now ("snapshotted")."""
    if reason := unsafe(view):
        raise errors.WrongStatus(domain=view.domain, act=act, reason=reason)


def began(view: chain.View, overlays: Mapping[str, chain.Layer], reason: str) -> errors.MigrationBegan:
    """What to say when the overlays are on top and a migration began before we had seen so."""
    ours = ", ".join(layer.file for layer in overlays.values())
    theirs = ", ".join(layer.backing for layer in overlays.values())
    return errors.MigrationBegan(domain=view.domain, reason=reason, overlays=ours, below=theirs)


def without_snapshots(plan: steps.Plan) -> steps.Plan:
    """The plan recording the active layers alone: the image below is not a frozen state once a destination may write to it."""
    kept = []
    for step in plan.steps:
        act = step.act
        if isinstance(act, steps.Record):
            act = attrs.evolve(act, snapshots={}, current="")
        kept.append(attrs.evolve(step, act=act))
    return attrs.evolve(plan, steps=tuple(kept))
