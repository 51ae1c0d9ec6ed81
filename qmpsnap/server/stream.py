"""A streamed response that cleans up after itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Send


class Stream(StreamingResponse):
    """Starlette's, whose generator is closed when the response ends, however it ends.

    Starlette (1.10) leaves one that stopped at a ``yield`` to the garbage collector, and trio cannot await its
    cleaning up from there. Raises `TypeError` for what is not an async generator.
    """

    async def stream_response(self, send: Send) -> None:
        if not isinstance(self.body_iterator, AsyncGenerator):
            raise TypeError("Stream needs an async generator")
        async with contextlib.aclosing(self.body_iterator):
            await super().stream_response(send)
