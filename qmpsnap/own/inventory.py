"""Every domain of this host: who defines it, who started it, who attached it; each with a task of its own."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable

import attrs
import structlog
import trio

from qmpsnap import config, errors
from qmpsnap.act import execute
from qmpsnap.model import domain_xml, names
from qmpsnap.own import carry, domain, imaging, operations, records, sources, trashcan
from qmpsnap.talk import journal, store

_log = structlog.stdlib.get_logger(__name__)

# Definitions and machines come and go as files; looking costs three directory listings.
_SCAN_EVERY = 1.0


class Inventory:
    """The domains by name. ``changed`` is told the name of every domain that changed."""

    def __init__(self, home_store: store.Store, settings: config.Settings) -> None:
        self._store = home_store
        self.operations = operations.Operations(home_store.paths.outcomes)
        self._watchers: list[Callable[[str], None]] = []
        self.domains: dict[str, domain.Domain] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._sources = sources.Sources(home_store)  # reads the disk, once, before anybody is served
        self._next_id = 0
        self._nursery: trio.Nursery | None = None
        self._home = carry.Home(
            home_store,
            journal.Journal(home_store.paths),
            self.operations,
            settings,
            self._changed,
            lambda: self.imaging.graph(),
        )
        self.imaging = imaging.Imaging(self.domains, self._sources, settings)
        self.trash = trashcan.Trashcan(
            self._home,
            self.imaging.look,
            recorded=lambda: [domain.recorded for domain in self.domains.values()],
            operations=lambda: [one.id for domain in self.domains.values() for one in domain.open],
        )

    def watch(self, watcher: Callable[[str], None]) -> None:
        self._watchers.append(watcher)

    def get(self, name: str) -> domain.Domain:
        """The domain by its name, UUID or id, as virsh takes it; or ``NoDomain``."""
        if name in self.domains:
            return self.domains[name]
        for found in self.domains.values():
            if name in {found.recorded.uuid, str(found.id)}:
                return found
        raise errors.NoDomain(domain=name)

    def definition(self, name: str) -> str:
        """Where the definition of the domain would be."""
        return self._store.paths.definition_file(name)

    def _changed(self, name: str) -> None:
        found = self.domains.get(name)
        if found is not None and found.id is None and found.link.machine is not None:
            self._next_id += 1
            found.id = self._next_id
        for watcher in self._watchers:
            watcher(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Every domain runs in a task of its own; started when the journals of all known ones are loaded, so that whoever
        asks for an operation of an earlier daemon finds it."""
        async with trio.open_nursery() as self._nursery:
            await self._scan()
            self._nursery.start_soon(self.trash.run)
            task_status.started()
            while True:
                await trio.sleep(_SCAN_EVERY)
                await self._scan()

    async def _scan(self) -> None:
        monitors = await execute.in_thread(self._sources.monitors)
        async with trio.open_nursery() as starting:
            for name, path in monitors.items():
                known = self.domains.get(name)
                if known is not None and known.link.path != path and not known.open:
                    self._scopes.pop(name).cancel()  # its definition names another monitor now
                    known = None
                if known is None:
                    starting.start_soon(self._start, name, path, self._sources.recorded.get(name))

    async def _start(
        self, name: str, monitor: str, recorded: domain_xml.RecordedDomain | None
    ) -> domain.Domain:
        assert self._nursery is not None
        found = self.domains[name] = domain.Domain(self._home, name, monitor, recorded)
        scope = self._scopes[name] = trio.CancelScope()
        await self._nursery.start(self._run, found, scope, name=f"domain {name}")
        return found

    async def _run(
        self,
        found: domain.Domain,
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """A bug in one domain is logged with its traceback and does not end the others: it begins anew, from its journal."""
        with scope:
            while True:
                try:
                    await found.run(task_status)
                except Exception:  # noqa: BLE001, RUF100 - the supervisor: what gets here is a bug, and it is logged
                    _log.exception("Domain failed", domain=found.name)
                if not found.loaded:
                    task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(_SCAN_EVERY)
                found = self.domains[found.name] = domain.Domain(
                    self._home, found.name, found.link.path, found.recorded
                )

    async def attach(self, name: str, monitor: str, agent: str) -> domain.Domain:
        """The machine at ``monitor`` is a domain from now on, over restarts too. The socket must be there, whoever listens: a path
        mistyped would only ever show a machine that is off."""
        names.check(name, "domain")
        if not monitor.startswith("/"):
            raise errors.MonitorDenied(path=monitor, reason="its path must be absolute")
        known = self.domains.get(name)
        if known is not None:
            raise errors.DomainExists(domain=name, monitor=known.link.path)
        for other in self.domains.values():
            if posixpath.normpath(other.link.path) == posixpath.normpath(monitor):
                raise errors.DomainExists(domain=other.name, monitor=monitor)
        await execute.in_thread(_check_socket, monitor)
        before = await execute.in_thread(self._store.domain, name)
        recorded = attrs.evolve(before or records.blank(name), monitor=monitor, agent=agent)
        await execute.in_thread(self._store.record, name, recorded, {})
        self._sources.add(recorded)
        found = await self._start(name, monitor, recorded)
        await found.link.wait_settled(self._home.settings.greeting_timeout + 1)
        if found.link.stranger:
            await self._drop(name)
            if before is not None:
                await execute.in_thread(self._store.record, name, before, {})
            raise errors.Foreign(path=monitor, name=found.link.stranger)
        return found

    async def detach(self, name: str) -> None:
        """The domain is no longer joined, and what was recorded of its disks is forgotten. Refused while it has snapshots, or
        operations that have not ended, or is not ours to forget."""
        found = self.get(name)
        if found.records.bad:
            raise found.records.bad
        if len(found.tree):
            raise errors.HasSnapshots(domain=name, count=len(found.tree))
        for operation in found.open:
            raise errors.OperationOpen(
                operation=operation.id, verb=operation.verb, domain=name, reason=f"it is {operation.state}"
            )
        await self._drop(name)

    async def _drop(self, name: str) -> None:
        self._scopes.pop(name).cancel()
        del self.domains[name]
        self._sources.remove(name)
        await execute.in_thread(self._store.forget, name)


def _check_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise errors.MonitorDenied(path=path, reason="it is not a socket")
    except OSError as error:
        raise errors.MonitorDenied(path=path, reason=os.strerror(error.errno or 0)) from error
