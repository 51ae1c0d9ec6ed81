"""Changes of everything, to whoever listens: server-sent events. A listener that falls behind is ended, never silently skipped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import trio

# A reader that is this far behind asks again; keeping more would let one stuck client fill the memory.
_KEPT = 1024


def sse(event: str, data: Any) -> bytes:
    """One server-sent event (WHATWG HTML, 9.2)."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


class Bus:
    """Publishes to all who listen at that moment."""

    def __init__(self) -> None:
        self._listeners: list[trio.MemorySendChannel[bytes]] = []

    def publish(self, event: str, data: Any) -> None:
        """Never waits."""
        if not self._listeners:
            return
        line = sse(event, data)
        for listener in self._listeners.copy():
            try:
                listener.send_nowait(line)
            except (trio.WouldBlock, trio.BrokenResourceError):
                listener.close()
                self._listeners.remove(listener)

    async def stream(self) -> AsyncIterator[bytes]:
        """Everything published from now on; begins with a comment, so that a client knows it is heard."""
        send, receive = trio.open_memory_channel[bytes](_KEPT)
        self._listeners.append(send)
        try:
            yield b": listening\n\n"
            async for line in receive:
                yield line
        finally:
            receive.close()
            if send in self._listeners:
                self._listeners.remove(send)
