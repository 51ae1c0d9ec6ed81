"""Recovery of one domain whose QEMU is off, without a daemon: what qemu-launch does before it boots over an open journal."""

from __future__ import annotations

import trio

from qmpsnap import config, errors, paths
from qmpsnap.act import execute
from qmpsnap.model import images as model
from qmpsnap.own import carry, domain, operations
from qmpsnap.talk import images, journal, needs, store


def recover(where: paths.Paths, name: str) -> None:
    """Blocking. Every open operation of the domain is finished or taken back, and the journal is empty.

    The caller holds the state's lock. Raises ``NoMonitor`` when a QEMU may be running, ``Undecided`` and the like when a person
    must look; then nothing was lost, and the machine must not be started.
    """
    trio.run(_recover, where, name)


async def _recover(where: paths.Paths, name: str) -> None:
    home_store = store.Store(where)
    home_store.claim()
    home = carry.Home(
        home_store,
        journal.Journal(where),
        operations.Operations(where.outcomes),
        config.Settings(),
        changed=lambda _name: None,
        graph=lambda: execute.in_thread(_graph, home_store),
    )
    recorded = home_store.domain(name)
    found = domain.Domain(home, name, (recorded and recorded.monitor) or where.monitor(name), recorded)
    await found.load()
    await found.recover_off()
    for operation in found.open:
        message = operation.error["message"] if operation.error else f"it is {operation.state}"
        raise errors.OperationOpen(operation=operation.id, verb=operation.verb, domain=name, reason=message)


def _graph(home_store: store.Store) -> model.Graph:
    found, unknown = needs.of_store(home_store)
    return images.Looker().graph(found, unknown=unknown)
