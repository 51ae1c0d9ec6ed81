"""From a request and a look to a plan: which files have to be looked at, and which planner is asked. Nothing is done."""

from __future__ import annotations

import time

from qmpsnap import config
from qmpsnap.act import execute
from qmpsnap.model import chain
from qmpsnap.own import records, seeing
from qmpsnap.plan import pull, requests, snapshot_create, steps
from qmpsnap.talk import files


async def decide(
    view: chain.View,
    known: records.Records,
    request: requests.SnapshotCreate | requests.Pull,
    operation: str,
    settings: config.Settings,
) -> steps.Plan:
    """The plan for a change of disks, or a refusal."""
    if isinstance(request, requests.Pull):
        return await _pull(view, known, request, operation)
    return await _create(view, known, request, operation, settings.overlay)


async def _pull(
    view: chain.View, known: records.Records, request: requests.Pull, operation: str
) -> steps.Plan:
    disk, place = pull.find(view, request.disk)
    stamp = await execute.in_thread(files.fingerprint_of, disk.chain[place].file)
    return pull.plan(view, request, operation=operation, tree=known.tree, recorded=known.domain, stamp=stamp)


async def _create(
    view: chain.View,
    known: records.Records,
    request: requests.SnapshotCreate,
    operation: str,
    way: config.OverlayWay,
) -> steps.Plan:
    now = int(time.time())
    if not request.no_metadata:
        await known.check_snapshots(request.name)
    _name, chosen = snapshot_create.choose(view, known.tree, request, now)
    names = [choice.file for choice in chosen]
    facts = await execute.in_thread(lambda: seeing.file_facts(names, headers=request.reuse_external))
    return snapshot_create.plan(
        view, known.tree, known.domain, request, operation=operation, now=now, facts=facts, way=way
    )
