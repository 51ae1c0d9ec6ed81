"""A client that may misbehave: it sends bytes as told, and reads responses by h11."""

from __future__ import annotations

import json
from typing import Any

import attrs
import h11
import trio

# By the test's clock, and longer than anything the server waits for: a broken test fails, and does not hang.
PATIENCE = 100

HOST = b"Host: qmpsnap\r\n"


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    closes: bool

    @property
    def error(self) -> str:
        """The code of the error that the body tells."""
        return str(json.loads(self.body)["error"]["code"])


class Client:
    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._left_over = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def ask(
        self, target: str = "/", method: str = "GET", body: bytes = b"", head: bytes = b""
    ) -> Answer:
        """One whole request and its answer."""
        length = b"Content-Length: %d\r\n" % len(body) if body or method == "POST" else b""
        await self.send(f"{method} {target} HTTP/1.1\r\n".encode() + HOST + length + head + b"\r\n" + body)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Answer:
        """The next final response; raises `h11.RemoteProtocolError` if the connection ends before its end."""
        reader = self._reader(method)
        head = await self._next(reader)
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := await self._next(reader), h11.Data):
            body += event.data
        self._left_over = reader.trailing_data[0]
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, body, reader.their_state is h11.MUST_CLOSE)

    async def until(self, wanted: bytes) -> bytes:
        """Read raw bytes to the first ``wanted``, and return all up to there."""
        while wanted not in self._left_over:
            more = await self._read()
            assert more, f"the connection ended after {self._left_over!r}"
            self._left_over += more
        seen, found, self._left_over = self._left_over.partition(wanted)
        return seen + found

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        try:
            while more := await self._read():
                self._left_over += more
        except trio.BrokenResourceError:
            pass
        return self._left_over

    async def _read(self) -> bytes:
        with trio.fail_after(PATIENCE):
            return bytes(await self.stream.receive_some(65536))

    def _reader(self, method: str) -> h11.Connection:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "qmpsnap")]))
        reader.send(h11.EndOfMessage())
        if self._left_over:
            reader.receive_data(self._left_over)
        return reader

    async def _next(self, reader: h11.Connection) -> Any:
        while (event := reader.next_event()) is h11.NEED_DATA:
            reader.receive_data(await self._read())
        return event
