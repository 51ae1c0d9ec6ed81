"""blockpull: a layer takes in the layers between it and a base.

"Pull complete" must mean durable, and QEMU's own does not: killed after BLOCK_JOB_COMPLETED it lost the pulled data in 10 of 10
runs, because the header drops the backing file before the tables are flushed (facts/qemu.md 2). So the job is held in PENDING,
flushed, proved from outside, and only then finalized.

What a crash leaves after each step, and what recovery does:

* job started, running or PENDING, QEMU alive: the job is found by its id and followed again.
* QEMU gone before the end: the header names the old backing file (nothing happened) or the new one; the new one is taken back with
  ``qemu-img rebase -u``, which loses nothing, because the layers below are still there (79 of 79: facts/qemu.md 3).
* finalized: the look shows the base below the layer; what is left is closing nodes.
"""

from __future__ import annotations

import re
from typing import Any

from qmpsnap import errors
from qmpsnap.model import chain
from qmpsnap.plan import names as made
from qmpsnap.plan import requests, steps


def plan(view: chain.View, request: requests.Pull, *, operation: str) -> steps.Plan:
    """The whole work, or a refusal. A layer that has nothing to take in gives a plan without steps."""
    disk, top = find(view, request.disk)
    base = _base(disk, top, request.base)
    if view.job_of(disk):
        raise errors.DiskBusy(target=disk.target)
    layers = disk.chain[top + 1 : base]
    if disk.read_only:
        raise errors.DiskReadOnly(target=disk.target)
    work = _steps(disk, top, base, operation, request.bandwidth) if layers else ()
    return steps.Plan(
        verb="block-pull",
        domain=view.domain,
        steps=tuple(work),
        commit=3 if layers else -1,
        targets=(disk.target,),
        result={"disk": disk.target},
        detach=1,
    )


def find(view: chain.View, name: str) -> tuple[chain.Disk, int]:
    """The disk and the place in its chain that ``vda``, ``vda[1]`` or an image's path names."""
    disk = view.disk(name)
    if disk is not None and disk.chain:
        return disk, 0
    if found := view.by_image(name):
        return found
    if match := re.fullmatch(r"(\w+)\[(\d+)\]", name):
        disk, place = view.disk(match[1]), int(match[2])
        if disk is not None and place < len(disk.chain):
            return disk, place
    raise errors.NoDiskInDomain(disk=name)


def _base(disk: chain.Disk, top: int, name: str | None) -> int:
    """The place of the base in the chain; one past the end for none."""
    if name is None:
        return len(disk.chain)
    if match := re.fullmatch(rf"{re.escape(disk.target)}\[(\d+)\]", name):
        place = int(match[1])
        if not top < place < len(disk.chain):
            raise errors.NoIndex(index=match[1], target=disk.target)
        return place
    found = disk.find(name)
    if found is None or found <= top:
        raise errors.NotInChain(base=name, top=disk.chain[top].file, target=disk.target)
    return found


def _steps(disk: chain.Disk, top: int, base: int, operation: str, speed: int) -> tuple[steps.Step, ...]:
    job, layer = made.job(operation), disk.chain[top]
    below = disk.chain[base].node if base < len(disk.chain) else ""
    arguments: dict[str, Any] = {
        "job-id": job,
        "device": layer.node,
        # PENDING survives our absence (design rule 7). auto-dismiss stays on: an undismissed stream is what kills 7.2 (rule 10).
        "auto-finalize": False,
        "on-error": "report",
    }
    if below:
        arguments["base-node"] = below
    if speed:
        arguments["speed"] = speed
    pulled = disk.chain[top + 1 : base]
    ours = tuple(n.node for n in pulled if n.node.startswith(made.PREFIX))
    rescue = steps.RebaseBack(layer.file, pulled[0].file, pulled[0].format)
    settled = steps.Settle(layer.file, layer.format, len(pulled))
    finalize = steps.Command("job-finalize", {"id": job}, absent_ok=True)
    lowest = disk.chain[base].file if base < len(disk.chain) else ""
    work = [
        steps.Step("start", steps.StartJob(job, "block-stream", arguments), steps.CancelJob(job)),
        steps.Step("copied", steps.AwaitJob(job, "pending")),
        steps.Step("settle", settled),
        steps.Step("finalize", finalize, rescue),
        steps.Step("ended", steps.AwaitJob(job, "ended")),
        steps.Step("look", steps.ExpectBacking(layer.file, lowest)),
        # The header that finalize has written is in the page cache: it is acknowledged only when it is on disk.
        steps.Step("flush", steps.Settle(layer.file, layer.format, 0)),
    ]
    if ours:
        work.append(steps.Step("close", steps.DropNodes(ours)))
    return tuple(work)
