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
from qmpsnap.model import chain, domain_xml, snapshot
from qmpsnap.plan import migration, requests, steps
from qmpsnap.plan import names as made


def plan(
    view: chain.View,
    request: requests.Pull,
    *,
    operation: str,
    tree: snapshot.Tree,
    recorded: domain_xml.RecordedDomain,
    stamp: str,
) -> steps.Plan:
    """The whole work, or a refusal. A layer that has nothing to take in gives a plan without steps.

    ``stamp`` is the fingerprint of the layer that takes in. Where it is a frozen one, it reads as before, but its bytes are others
    afterwards: the new fingerprint is recorded, unless the old one was wrong already.
    """
    migration.check(view, "pulled")
    disk, top = find(view, request.disk)
    base = _base(disk, top, request.base)
    if view.job_of(disk):
        raise errors.DiskBusy(target=disk.target)
    layers = disk.chain[top + 1 : base]
    if disk.read_only:
        raise errors.DiskReadOnly(target=disk.target)
    work = _steps(disk, top, base, operation, request.bandwidth) if layers else ()
    holds = _holds(disk.chain[top].file, tree, stamp)
    frozen = any(one.file == disk.chain[top].file and one.stamp == stamp for one in recorded.layers)
    if work and (holds or frozen):
        marked = steps.Fingerprint(disk.chain[top].file, holds)
        work = (steps.Step("before", marked, marked), *work, steps.Step("fingerprint", marked))
    at = {step.name: n for n, step in enumerate(work)}
    return steps.Plan(
        verb="block-pull",
        domain=view.domain,
        steps=work,
        commit=at.get("finalize", -1),
        targets=(disk.target,),
        result={"disk": disk.target},
        detach=at.get("copied", -1),
    )


def _holds(file: str, tree: snapshot.Tree, stamp: str) -> tuple[str, ...]:
    """Snapshots whose state is in the file, and whose fingerprint of it is right."""
    return tuple(
        taken.name
        for taken in tree.ordered()
        if any(part.image == file and part.stamp == stamp != "" for part in taken.disks)
    )


def find(view: chain.View, name: str) -> tuple[chain.Disk, int]:
    """The disk and the place in its chain that ``vda``, ``vda[1]`` or an image's path names."""
    disk = view.disk(name)
    if disk is not None and disk.chain:
        return disk, 0
    if found := view.by_image(name):
        return found
    if match := re.fullmatch(r"(\w+)\[([0-9]+)\]", name):
        disk, place = view.disk(match[1]), _place(match[2])
        if disk is not None and place < len(disk.chain):
            return disk, place
    raise errors.NoDiskInDomain(disk=name)


def _place(digits: str) -> int:
    """The number, or one beyond every chain: Python refuses to read 5000 digits."""
    return int(digits) if len(digits) < 10 else 10**9


def _base(disk: chain.Disk, top: int, name: str | None) -> int:
    """The place of the base in the chain; one past the end for none."""
    if name is None:
        return len(disk.chain)
    if match := re.fullmatch(rf"{re.escape(disk.target)}\[([0-9]+)\]", name):
        place = _place(match[1])
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
