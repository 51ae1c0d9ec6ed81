"""HTTP/1.1 on one stream: h11 for the bytes, and a deadline and a size for everything that a client may do."""

from __future__ import annotations

import contextlib
import json
import select
from email.utils import formatdate
from http import HTTPStatus

import attrs
import h11
import trio

from qmpsnap import errors
from qmpsnap.own import operations

# How long a refused client may go on sending before we hang up. Closing a unix socket with bytes unread
# gives the peer ECONNRESET or EPIPE, and many clients then never read the refusal.
LINGER = 1.0


@attrs.frozen(kw_only=True)
class Limits:
    """What one client may cost. Times in seconds, sizes in bytes."""

    header: float = 5.0  # from a request's first byte to the end of its head
    body: float = 10.0  # from there to the end of its body: 1 MiB takes milliseconds on a unix socket
    write: float = 10.0  # for one piece of a response to be taken
    keep_alive: float = 60.0  # between two requests
    header_bytes: int = 64 * 1024
    body_bytes: int = 1024 * 1024
    # Of all clients together, without the first 16 KiB of each, so that large bodies do not keep small requests out: 750 bodies
    # of 1 MiB would fill a small host's memory.
    bodies_bytes: int = 16 * 1024 * 1024
    small_body_bytes: int = 16 * 1024
    connections: int = 1000  # systemd's default is 1024 files: raise LimitNOFILE= beside it
    connections_per_uid: int = 750  # one user can be refused, and cannot have the others refused
    grace: float = 0.7  # from stop to the last request's end: with 0.8 SIGTERM took 0.93 s on a busy host, and 1 s is the aim


class Budget:
    """What the large bodies of all clients may take together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken = 0

    def grow(self, size: int, more: int) -> None:
        """A body of ``size`` bytes gets more. Raises `TooMuch` where there is no room for them."""
        taken = self._taken + self._counted(size + more) - self._counted(size)
        if taken > self._limits.bodies_bytes:
            raise errors.TooMuch(limit=self._limits.bodies_bytes)
        self._taken = taken

    def end(self, size: int) -> None:
        """A body of that size is no longer kept."""
        self._taken -= self._counted(size)

    def _counted(self, size: int) -> int:
        return max(0, size - self._limits.small_body_bytes)


class Gone(ConnectionError):
    """The client has left, or reads nothing: an OSError, as ASGI wants it from ``send``."""


class Wire:
    """One connection's h11 state and stream."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, limits: Limits, budget: Budget) -> None:
        self.limits = limits
        self.budget = budget
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._whole = True  # no write was cut off in its middle
        self._head_only = False

    @property
    def answered(self) -> bool:
        """Whether a response has been started."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def answering(self) -> bool:
        """Whether a response has been started and not ended."""
        return self._h11.our_state is h11.SEND_BODY

    def next_cycle(self) -> bool:
        """Make ready for another request, or say that there cannot be one."""
        if (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE):
            return False
        self._h11.start_next_cycle()
        return True

    async def request(self, patience: float) -> h11.Request | None:
        """The next request's head, with ``100 Continue`` sent if it wants that; None if no more come.

        ``patience`` is for the first byte. Raises `Error` for what must be refused.
        """
        self._head_only = False
        if not self._h11.trailing_data[0]:
            with trio.move_on_after(patience) as idle:
                self._h11.receive_data(await self._read())
            if idle.cancelled_caught:
                return None
        with trio.move_on_after(self.limits.header):
            event = await self._event()
            return await self._accept(event) if isinstance(event, h11.Request) else None
        raise errors.HttpTimeout(part="head", seconds=self.limits.header)

    async def body(self) -> bytes | None:
        """The next piece of the request's body, None after the last; raises `Error` for what must be refused."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def left(self) -> bool:
        """Wait, after a request's body, until the client has left.

        False if that cannot be known from reading: it has sent another request already, or it has only
        closed its sending side (``printf … | socat``) and waits for the answer.
        """
        return isinstance(await self._event(), h11.ConnectionClosed) and _hung_up(self._stream)

    async def send(self, *events: h11.Event) -> None:
        """Send in one write; the body of an answer to HEAD is left out.

        Raises `Gone` if the client has left or does not read; whatever is sent after that raises it again.
        """
        if not self._whole:
            raise Gone("the client has left")
        # Here a cancellation leaves the stream whole; in the write below it may leave half a piece behind.
        await trio.lowlevel.checkpoint_if_cancelled()
        events = tuple(event for event in events if not (self._head_only and isinstance(event, h11.Data)))
        data = b"".join(self._h11.send(event) or b"" for event in events)
        if not data:
            return await trio.lowlevel.checkpoint()
        self._whole = False
        with trio.move_on_after(self.limits.write):
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Gone("the client has left") from None
            self._whole = True
            return None
        raise Gone(f"the client has read nothing for {self.limits.write:g} seconds")

    async def refuse(self, error: errors.Error) -> None:
        """Answer with an error, and let a client that still sends come to its reading."""
        body = json.dumps({"error": operations.wire_error(error)}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        await self.send(response(error.http, headers), h11.Data(data=body), h11.EndOfMessage())
        await self.linger()

    async def linger(self) -> None:
        """Say that we are done, and throw away what comes until the client is done too, or time is up."""
        with (
            trio.move_on_after(LINGER),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await self._stream.send_eof()
            while await self._stream.receive_some(65536):
                pass

    async def _accept(self, request: h11.Request) -> h11.Request:
        self._head_only = request.method == b"HEAD"
        # h11 minds its limit only while a head is incomplete: one that comes in a single read may be larger.
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self.limits.header_bytes:
            raise errors.HeadTooLarge(limit=self.limits.header_bytes)
        if int(dict(request.headers).get(b"content-length", b"0")) > self.limits.body_bytes:
            raise errors.BodyTooLarge(limit=self.limits.body_bytes)
        if self._h11.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        return request

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self._read())
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise errors.HeadTooLarge(limit=self.limits.header_bytes) from None
            raise errors.BadHttp(reason=str(error)) from None
        return event  # type: ignore[return-value]  # mypy cannot narrow by a sentinel class

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(16384))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""


def response(status: int, headers: list[tuple[bytes, bytes]] | list[tuple[str, str]]) -> h11.Response:
    """The head of a response, dated (RFC 9110 6.6.1) and with the usual words for its status."""
    reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return h11.Response(
        status_code=status, headers=[*headers, ("date", formatdate(usegmt=True))], reason=reason
    )


def _hung_up(stream: trio.abc.Stream) -> bool:
    # A unix socket tells the two apart: POLLHUP needs both directions closed. Elsewhere the end of input is the end.
    if not isinstance(stream, trio.SocketStream):
        return True
    poll = select.poll()
    poll.register(stream.socket.fileno(), 0)
    return any(found & (select.POLLHUP | select.POLLERR) for _fd, found in poll.poll(0))
