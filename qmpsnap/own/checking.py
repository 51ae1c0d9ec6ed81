"""What `check` needs to know of a domain: its state, the image graph, and what qemu-img and qemu-launch say. Blocking."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, images, snapshot
from qmpsnap.own import describe, operations
from qmpsnap.plan import check, gate
from qmpsnap.talk import files, launcher, qemu_img


def seen(
    recorded: domain_xml.RecordedDomain,
    tree: snapshot.Tree,
    graph: images.Graph,
    view: chain.View | None,
    open_ones: Sequence[operations.Operation],
    damaged: Sequence[str],
) -> check.Seen:
    """The facts, but for what takes long to find out: ``corrupt`` and ``refusal`` are asked for by who wants to wait."""
    busy = {file for o in open_ones if o.plan for file in gate.mentions(o.plan)}
    pairs = ((recorded.disk(disk.target), disk) for disk in (view.disks if view else ()))
    return check.Seen(
        recorded=recorded,
        tree=tree,
        graph=graph,
        view=view,
        busy=frozenset(busy),
        drifted=frozenset(disk.target for before, disk in pairs if before and describe.drifted(before, disk)),
        damaged=tuple(damaged),
        open={o.id: o.error["message"] if o.error else "" for o in open_ones},
    )


def with_tools(facts: check.Seen, definition: str, running: bool) -> check.Seen:
    """The facts with what takes longer to find out: what `qemu-img check` says of every image that nobody writes to, and whether
    qemu-launch would start the machine, where it is off and there is a ``definition``."""
    refused = ""
    if os.path.exists(definition) and not running:
        refused = launcher.refusal(facts.recorded.name)
    corrupt, leaks = {}, {}
    for one in facts.graph.of(facts.recorded.name):
        # In a circle of backing files qemu-img never comes to an end (seen on 7.2).
        if one.format != "qcow2" or facts.graph.missing(one.file) or _in_use(one.file, facts):
            continue
        text, lost = _ask(one.file)
        if text and not _in_use(one.file, facts):
            corrupt[one.file] = text
        elif lost:
            leaks[one.file] = lost
    return attrs.evolve(facts, corrupt=corrupt, leaks=leaks, launch=refused)


def _ask(file: str) -> tuple[str, int]:
    """What is broken, in words, and how many clusters are lost."""
    try:
        wrong, lost = qemu_img.check(file, "qcow2")
    except errors.ToolFailed as error:
        return str(error), 0
    return f"qemu-img check finds {wrong} errors" if wrong else "", lost


def _in_use(file: str, facts: check.Seen) -> bool:
    """Somebody writes to the image, or to one that it reads through: qemu-img would be refused the lock."""
    layers = [layer.file for layer in facts.graph.chain(file)]
    return bool(facts.busy & set(layers)) or any(files.opened_for_writing(layer) for layer in layers)
