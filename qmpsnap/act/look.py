"""Observing a machine: one consistent View from its monitor.

A look asks for names and edges (3.4 ms at depth 200) and reuses what it knows of every node it has met; only when the graph has
changed in a way that is not ours does it ask for everything (75 ms at depth 200: facts/qemu.md G).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import trio

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, names, observe
from qmpsnap.talk import monitor, process

#: What query-migrate says when no migration is under way.
_AT_REST = frozenset({"", "none", "completed", "failed", "cancelled"})

# Two queries are not one: a pair between which somebody else changed a chain is taken again.
_LOOKS = 5

_STATUS = ("query-status", "query-migrate")

#: The cheap look, in this order.
_CHEAP = (
    *_STATUS,
    "query-block-jobs",
    "x-debug-query-block-graph",
)


class Observer:
    """Looks at one QEMU over one monitor; ``known`` gives the recorded disks."""

    def __init__(
        self, domain: str, link: monitor.Monitor, known: Callable[[], Sequence[domain_xml.RecordedDisk]]
    ) -> None:
        self._domain = domain
        self._link = link
        self._known = known
        self._devices: dict[str, observe.Device] = {}
        self._graph: observe.Graph | None = None
        self._disks: tuple[chain.Disk, ...] = ()
        self.process = process.look(link.peer_pid)

    @property
    def disks(self) -> tuple[chain.Disk, ...]:
        """The disks as they were at the last look."""
        return self._disks

    async def look(self, *, fresh: bool = False) -> chain.View:
        """What is there now; ``fresh`` trusts no memory.

        ``Disconnected`` when the link ends; ``CommandFailed`` when QEMU refuses a query.
        """
        # One write, one wait. Jobs before nodes: one that ends in between is missing in the graph, never the other way round.
        status, migration, block_jobs, edges = await self._link.execute_all(*_CHEAP)
        all_jobs = await self._link.execute("query-jobs") if block_jobs else []
        graph = await self._settle(edges, {}, fresh=fresh)
        found = self._view(status, migration, graph.nodes)
        return attrs.evolve(found, jobs=observe.jobs(block_jobs, all_jobs, graph))

    async def look_at_blocks(self, expected: Mapping[str, chain.Layer] | None = None) -> chain.View:
        """The part of a look that follows a step of ours: all but the jobs, at a third of its price.

        ``expected`` layers of ours may have come on top, by target. A migration that began before the step had ended is seen
        here: it is still there, or it has ended and left its status.
        """
        status, migration, edges = await self._link.execute_all(*_STATUS, _CHEAP[-1])
        graph = await self._settle(edges, expected or {})
        return self._view(status, migration, graph.nodes)

    async def look_at_status(self) -> chain.View:
        """Status and migration alone, for who is about to act; disks are those of the last look."""
        status, migration = await self._link.execute_all(*_STATUS)
        return self._view(status, migration, frozenset())

    def _view(self, status: observe.Reply, migration: observe.Reply, nodes: frozenset[str]) -> chain.View:
        return chain.View(
            domain=self._domain,
            status=status["status"],
            migrating=migration.get("status", "") not in _AT_REST,
            disks=self._disks,
            nodes=nodes,
        )

    async def _settle(
        self, edges: observe.Reply, expected: Mapping[str, chain.Layer], *, fresh: bool = False
    ) -> observe.Graph:
        """``_disks`` are those of the graph."""
        graph = observe.graph(edges)
        if fresh or not self._recognise(graph, expected):
            self._disks = await self._everything()
        self._graph = graph
        return graph

    def _recognise(self, graph: observe.Graph, expected: Mapping[str, chain.Layer]) -> bool:
        """The disks are known without asking: nothing changed, or exactly the expected layers came on top."""
        before = self._graph
        if before is None:
            return False
        if (graph.edges, graph.nodes) == (before.edges, before.nodes):
            return True
        pushed = []
        for disk in self._disks:
            layer = expected.get(disk.target)
            if layer is not None and disk.chain and layer.node not in before.nodes:
                if graph.backing(layer.node) != disk.active.node:
                    return False
                disk = attrs.evolve(disk, chain=(layer, *disk.chain))
            pushed.append(disk)
        ours = {layer.node for layer in expected.values()}
        storage = {child for parent, role, child in graph.edges if parent in ours and role == "file"}
        covered = {disk.active.node for disk in self._disks if disk.chain}
        moved = any(child not in covered for _parent, _role, child in before.edges - graph.edges)
        if moved or graph.nodes - before.nodes - ours - storage or before.nodes - graph.nodes:
            return False
        self._disks = tuple(pushed)
        return True

    async def _everything(self) -> tuple[chain.Disk, ...]:
        for _attempt in range(_LOOKS):
            block, stats = await self._link.execute_all("query-block", "query-blockstats")
            if observe.consistent(block, stats):
                break
        else:
            raise errors.Unexpected(reason="query-block and query-blockstats go on showing different chains")
        for qdev in observe.plugged(block):
            if qdev not in self._devices:
                self._devices[qdev] = await self._device(qdev)
        known = tuple(self._known())
        # In a thread: resolving links of file names may wait for storage.
        return await trio.to_thread.run_sync(
            observe.disks,
            block,
            stats,
            self._devices,
            known,
            self.process.command,
            self._canonical,
            abandon_on_cancel=True,
        )

    def _canonical(self, name: str) -> str:
        """QEMU's file name as an absolute one of this host; "" for what is no file here (a deleted one, too)."""
        if not name or "://" in name:
            return ""
        path = os.path.normpath(os.path.join(self.process.cwd, name))
        if not names.is_device(path):  # a volume's name stays, the number of its device node does not
            path = os.path.realpath(path)
        return path if os.path.exists(path) else ""

    async def _device(self, qdev: str) -> observe.Device:
        """The type of a device, by QOM path or by id: virtio's qdev is a path, that of scsi and ide an id (facts/qemu.md 19)."""
        path = qdev if qdev.startswith("/") else f"/machine/peripheral/{qdev}"
        try:
            kind = await self._property(path, "type")
            if not kind.startswith("ide-"):
                return observe.Device(kind)
            bus = await self._property(path, "parent_bus")
            return observe.Device(kind, await self._property(os.path.dirname(bus), "type"))
        except errors.CommandFailed:
            # An object that is not there, or has no such property: no disk that we know how to handle.
            return observe.Device("")

    async def _property(self, path: str, name: str) -> str:
        value: Any = await self._link.execute("qom-get", {"path": path, "property": name})
        return str(value)
