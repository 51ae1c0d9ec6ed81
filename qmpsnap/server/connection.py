"""One client's connection."""

from __future__ import annotations

import contextlib

import h11
import trio
from starlette.types import ASGIApp

from qmpsnap import errors
from qmpsnap.server import exchange, wire
from qmpsnap.server.listen import Peer


class Connection:
    """Requests one after the other, until the client or we have enough."""

    def __init__(
        self,
        app: ASGIApp,
        stream: trio.abc.HalfCloseableStream,
        limits: wire.Limits,
        peer: Peer | None,
        budget: wire.Budget,
    ) -> None:
        self._app = app
        self._stream = stream
        self._peer = peer
        self._wire = wire.Wire(stream, limits, budget)
        self._idle = trio.CancelScope()
        self._exchange: exchange.Exchange | None = None
        self._stopping = False

    def stop(self) -> None:
        """Take no more requests; end an event stream, let any other response come to its end."""
        self._stopping = True
        self._idle.cancel()
        if self._exchange:
            self._exchange.stop()

    async def refuse(self, error: errors.Error) -> None:
        """Answer whatever the client wants with this error, and close."""
        with contextlib.suppress(wire.Gone):
            await self._wire.refuse(error)
        await trio.aclose_forcefully(self._stream)

    async def run(self) -> None:
        """Serve until the connection is closed; raises nothing but what trio does to cancel."""
        try:
            with exchange.bugs_logged("connection failed"), contextlib.suppress(wire.Gone):
                await self._serve()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _serve(self) -> None:
        patience = self._wire.limits.header
        try:
            while not self._stopping and (request := await self._request(patience)):
                self._exchange = exchange.Exchange(self._wire, request, self._peer)
                await self._exchange.run(self._app)
                self._exchange = None
                if not self._wire.next_cycle():
                    return
                patience = self._wire.limits.keep_alive
        except errors.Error as error:
            await self._wire.refuse(error)

    async def _request(self, patience: float) -> h11.Request | None:
        with trio.CancelScope() as self._idle:
            return await self._wire.request(patience)
        return None
