"""Facts that planners and recovery need and that only a look at files can give. Blocking: called from worker threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, snapshot, snapshot_xml
from qmpsnap.plan import recovery, steps
from qmpsnap.talk import files, qemu_img, store


def file_facts(names: Iterable[str], *, headers: bool) -> dict[str, chain.FileFact]:
    """What lies at each path; with ``headers`` also what the images there say of themselves."""
    facts = {name: files.fact(name) for name in names}
    return {name: _with_header(fact) if headers else fact for name, fact in facts.items()}


def _with_header(fact: chain.FileFact) -> chain.FileFact:
    if fact.kind != "file":
        return fact
    # Its user has just made it, and qemu-img flushes nothing: what is built on it must be on disk before the intent is.
    files.sync(fact.path)
    files.sync(os.path.dirname(fact.path))
    try:
        info = qemu_img.info(fact.path)
    except errors.ToolFailed:
        return fact
    form, backing = info["format"], info.get("full-backing-filename", "")
    holds = form == "qcow2" and qemu_img.holds_data(fact.path)
    return attrs.evolve(fact, format=form, backing=backing, size=info["virtual-size"], data=holds)


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
    return listed(home_store, plan) or any(
        boots.get(target) == file for act in acts for target, (file, _format) in act.active.items()
    )


def listed(home_store: store.Store, plan: steps.Plan) -> bool:
    """Whether a snapshot that the plan records is on disk."""
    names = [name for step in plan.steps if isinstance(step.act, steps.Record) for name in step.act.snapshots]
    return any(os.path.exists(home_store.paths.snapshot_file(plan.domain, name)) for name in names)


def fingerprinted(taken: Mapping[str, snapshot.Snapshot], file: str = "") -> dict[str, snapshot.Snapshot]:
    """The snapshots with the fingerprints that the images of their states (``file`` only, if it is given) have now."""
    parts = {
        name: {d.target: d.image for d in value.disks if d.image and (not file or d.image == file)}
        for name, value in taken.items()
    }
    stamps = files.frozen_fingerprints(image for some in parts.values() for image in some.values())
    return {
        name: snapshot_xml.stamped(value, {t: stamps.get(image, "") for t, image in parts[name].items()})
        for name, value in taken.items()
    }


def frozen(names: Iterable[str]) -> list[domain_xml.FrozenLayer]:
    """The images with their fingerprints; without those that have none. A block device has no time of change, and an image that
    we may not read keeps nobody from a snapshot: `check` says that it is unknown."""
    found = []
    for name in names:
        with contextlib.suppress(errors.FileFailed):
            stamps = files.frozen_fingerprints([name])
            found += [domain_xml.FrozenLayer(file, stamp) for file, stamp in stamps.items() if stamp]
    return found


def there(layers: Iterable[domain_xml.FrozenLayer]) -> list[domain_xml.FrozenLayer]:
    """Those of the layers whose files have not been removed."""
    return [one for one in layers if os.path.exists(one.file)]


def frozen_again(layers: tuple[domain_xml.FrozenLayer, ...], file: str) -> tuple[domain_xml.FrozenLayer, ...]:
    """The layers, with the fingerprint that ``file`` has now."""
    again = (frozen([one.file]) if one.file == file else [one] for one in layers)
    return tuple(one for some in again for one in some)


def images(plan: steps.Plan) -> set[str]:
    """Images that a QEMU carrying out the plan has open read-write."""
    found: set[str] = set()
    for step in plan.steps:
        if isinstance(step.act, steps.MakeOverlay):
            found |= {step.act.file, step.act.backing}
        elif isinstance(step.act, steps.TakeOverlay | steps.Settle):
            found.add(step.act.file)
    return found
