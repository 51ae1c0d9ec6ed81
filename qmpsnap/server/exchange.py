"""One request and its response, as an ASGI app sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import h11
import structlog
import trio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope

from qmpsnap import errors
from qmpsnap.server import wire
from qmpsnap.server.listen import Peer

log = structlog.get_logger(__name__)

# Nothing happens by these, so nobody needs their handlers once the client has left.
SAFE = (b"GET", b"HEAD")


class Exchange:
    """One request: its ``receive`` and ``send``, and what is done for an app that fails.

    The body is read ahead of the app (its size is limited), so the body's deadline is the client's alone,
    and the client's leaving is seen while the app works.
    """

    def __init__(self, line: wire.Wire, request: h11.Request, peer: Peer | None) -> None:
        self._scope = _scope(request, peer)
        self._wire = line
        self._safe = request.method in SAFE
        self._handler = trio.CancelScope()
        self._unread = bytearray()
        self._size = 0  # of the body so far
        self._body_read = False  # to its end, from the client
        self._body_told = False  # to its end, to the app
        self._left = False  # nothing more comes: the client left, or ``_refusal``
        self._left_told = False
        self._refusal: errors.Error | None = None
        self._news = trio.Event()
        self._event_stream = False
        self._stopping = False

    def stop(self) -> None:
        """End an event stream, now or when it starts: it has no end of its own."""
        self._stopping = True
        if self._event_stream:
            self._handler.cancel()

    async def run(self, app: ASGIApp) -> None:
        """Answer the request by the app, or for it where it fails.

        A GET's handler is cancelled when the client leaves; any other runs to its end. Raises `wire.Gone`.
        """
        try:
            await self._run(app)
        finally:
            self._wire.budget.end(self._size)

    async def _run(self, app: ASGIApp) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            with bugs_logged("request failed", method=self._scope["method"], path=self._scope["path"]):
                await self._call(app)
            if self._wire.answered:  # a client may read its answer only after it has sent the body
                await self._until(lambda: self._body_read or self._left)
            nursery.cancel_scope.cancel()
        if not self._wire.answered:
            if self._refusal or not self._left:
                await self._wire.refuse(self._refusal or errors.InternalError())
        elif self._wire.answering and self._event_stream and self._stopping:
            await self._wire.send(h11.EndOfMessage())
        elif self._refusal:
            await self._wire.linger()

    async def receive(self) -> Message:
        """ASGI's: pieces of the body, then ``http.disconnect`` when the client has left or has its response."""
        await trio.lowlevel.checkpoint()
        await self._until(lambda: bool(self._unread) or self._body_read > self._body_told or self._over)
        if self._unread or self._body_read > self._body_told:
            piece = bytes(self._unread)
            self._unread.clear()
            self._body_told = self._body_read
            return {"type": "http.request", "body": piece, "more_body": not self._body_read}
        self._left_told = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI's: the response's head, then pieces of its body; raises `wire.Gone` if nobody reads them."""
        match message["type"]:
            case "http.response.start":
                await self._start(message["status"], list(message.get("headers", ())))
            case "http.response.body":
                await self._continue(bytes(message.get("body", b"")), message.get("more_body", False))
            case other:
                raise ValueError(f"unexpected ASGI message {other!r}")

    @property
    def _over(self) -> bool:
        return self._left or (self._wire.answered and not self._wire.answering)

    async def _call(self, app: ASGIApp) -> None:
        with self._handler:
            try:
                await app(self._scope, self.receive, self.send)
            except (wire.Gone, ClientDisconnect):
                # Starlette makes a ClientDisconnect of any OSError: a file that is missing, too.
                if not self._left_told:
                    raise
            if not self._wire.answered and not self._left:
                raise RuntimeError("the app returned without an answer")

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        # Starlette answers 500 when it misses the rest of a body; the refusal is the better answer.
        if self._refusal:
            self._left_told = True
            raise wire.Gone("the request was refused")
        self._event_stream = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        if self._stopping:
            headers.append((b"connection", b"close"))
        await self._put(wire.response(status, headers))
        if self._stopping:
            self.stop()

    async def _continue(self, piece: bytes, more: bool) -> None:
        head_only = self._scope["method"] == "HEAD"
        ending = [] if more and not head_only else [h11.EndOfMessage()]
        await self._put(*([h11.Data(data=piece)] if piece else []), *ending)
        if ending:
            self._tell()
        if more and head_only:  # the answer to HEAD is complete: an endless stream must not go on for nobody
            self._left_told = True
            raise wire.Gone("HEAD wants no body")

    async def _put(self, *events: h11.Event) -> None:
        try:
            await self._wire.send(*events)
        except wire.Gone:
            self._left_told = True
            raise

    async def _watch(self) -> None:
        try:
            await self._read_body()
            if not await self._wire.left():
                return
        except errors.Error as error:
            self._refusal = error
        self._left = True
        self._tell()
        if self._safe:
            self._handler.cancel()

    async def _read_body(self) -> None:
        limits = self._wire.limits
        with trio.move_on_after(limits.body):
            while (piece := await self._wire.body()) is not None:
                if self._size + len(piece) > limits.body_bytes:
                    raise errors.BodyTooLarge(limit=limits.body_bytes)
                self._wire.budget.grow(self._size, len(piece))
                self._size += len(piece)
                self._unread += piece
                self._tell()
            self._body_read = True
            return self._tell()
        raise errors.HttpTimeout(part="body", seconds=limits.body)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._news.wait()


@contextlib.contextmanager
def bugs_logged(event: str, **facts: Any) -> Iterator[None]:
    """The supervisor: a bug is logged with its traceback, and ends only what one client asked for."""
    try:
        yield
    except Exception:  # a client must not end the daemon, by whatever bug it finds
        log.exception(event, **facts)


def _scope(request: h11.Request, peer: Peer | None) -> Scope:
    target = request.target
    if b"://" in target.partition(b"?")[0]:  # absolute form, which RFC 9112 3.2.2 has every server accept
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise errors.BadHttp(reason="the path is not UTF-8") from None
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": "http",
        "path": decoded,
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": None,
        "server": None,
        "state": {},
        "extensions": {"peer": peer},
    }
