"""The HTTP server: who may connect, and how it ends.

::

    serve ── accepts ──> Connection ── one after the other ──> Exchange ──> app
    (here)               (connection.py)                  (exchange.py)
                                            Wire (wire.py): h11, deadlines, sizes

Own, because the trio server that exists waits for ever for a client that does not read, has no deadline for
a request and no peer credentials (hypercorn 0.18, measured: SIGTERM did not end it in 20 s).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import trio
from starlette.types import ASGIApp

from qmpsnap import errors
from qmpsnap.server import listen
from qmpsnap.server.connection import Connection
from qmpsnap.server.wire import Budget, Limits

__all__ = ["DEFAULTS", "Limits", "serve"]

DEFAULTS = Limits()

# How many clients beyond the limit are told so at once; any more are closed without a word.
REFUSALS = 16


async def serve(
    app: ASGIApp,
    listeners: Sequence[trio.SocketListener],
    *,
    limits: Limits = DEFAULTS,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the app on these unix sockets until ``stop`` is set or we are cancelled.

    Then, either way: the listeners are closed, idle connections too, event streams end, requests in flight have
    ``limits.grace`` seconds, and what is left is cut off. ``scope["extensions"]["peer"]`` is a `listen.Peer`.
    """
    server = _Server(app, limits)
    async with trio.open_nursery() as nursery:
        connections: trio.Nursery = await nursery.start(server.hold)
        try:
            async with trio.open_nursery() as accepting:
                accept = functools.partial(
                    trio.serve_listeners, server.handle, list(listeners), handler_nursery=connections
                )
                await accepting.start(accept)
                task_status.started()
                await (trio.Event() if stop is None else stop).wait()
                accepting.cancel_scope.cancel()
        finally:
            server.stop()


class _Server:
    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._served: dict[Connection, int] = {}  # and by which uid
        self._refused = 0
        self._budget = Budget(limits)
        self._stopping = trio.Event()

    async def hold(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Keep the connections' nursery, out of reach of the caller's cancellation while the grace lasts."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            task_status.started(nursery)
            await self._stopping.wait()
            nursery.cancel_scope.deadline = trio.current_time() + self._limits.grace

    def stop(self) -> None:
        self._stopping.set()
        for connection in self._served:
            connection.stop()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one client, or refuse it."""
        if self._stopping.is_set():
            return
        peer = listen.peer(stream.socket)
        connection = Connection(self._app, stream, self._limits, peer, self._budget)
        if refusal := self._refusal(peer.uid):
            await self._refuse(connection, refusal)
            return
        self._served[connection] = peer.uid
        try:
            await connection.run()
        finally:
            del self._served[connection]

    async def _refuse(self, connection: Connection, refusal: errors.Error) -> None:
        if self._refused >= REFUSALS:
            return
        self._refused += 1
        try:
            await connection.refuse(refusal)
        finally:
            self._refused -= 1

    def _refusal(self, uid: int) -> errors.Error | None:
        if len(self._served) >= self._limits.connections:
            return errors.TooManyConnections(whose="")
        if sum(user == uid for user in self._served.values()) >= self._limits.connections_per_uid:
            return errors.TooManyConnections(whose=f" of uid {uid}")
        return None
