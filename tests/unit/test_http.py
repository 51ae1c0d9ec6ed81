"""What a client may do, over streams in memory and with a clock that jumps."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import attrs
import h11
import hypothesis
import pytest
import structlog
import trio
import trio.testing
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from trio.testing import MockClock

from qmpsnap.server import wire
from qmpsnap.server.connection import Connection
from qmpsnap.server.http import Limits
from qmpsnap.server.stream import Stream
from tests.unit.http_client import HOST, Client

LIMITS = Limits()


class Joined(Client):
    """A client, and the connection at its other end."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, connection: Connection) -> None:
        super().__init__(stream)
        self.connection = connection


Join = Callable[..., Joined]


@pytest.fixture
def join(nursery: trio.Nursery) -> Join:
    """Connect a client to an app: ``join(app, **Limits)``; ``lockstep=True`` has no buffer to write into."""

    def connect(
        app: ASGIApp, *, lockstep: bool = False, budget: wire.Budget | None = None, **limits: Any
    ) -> Joined:
        pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        found = Limits(**limits)
        connection = Connection(app, ours, found, None, budget or wire.Budget(found))
        nursery.start_soon(connection.run)
        return Joined(theirs, connection)

    return connect


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with method, path and body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await PlainTextResponse(f"{scope['method']} {scope['path']} {body.decode()}")(scope, receive, send)


async def flood(_request: Request) -> Response:
    async def chunks() -> Any:
        while True:
            yield b"x" * 65536

    return Stream(chunks())


class Handler:
    """An app that says where it is, and waits to be told to answer."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.go_on = trio.Event()
        self.ended = trio.Event()
        self.how = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        try:
            await self.go_on.wait()
            self.how = "done"
            await PlainTextResponse("done")(scope, receive, send)
        except trio.Cancelled:
            self.how = "cancelled"
            raise
        except OSError:
            self.how += ", nobody listened"
            raise
        finally:
            self.ended.set()


class EventStream:
    """An app with one event, and then silence."""

    def __init__(self) -> None:
        self.freed = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> Any:
            try:
                yield "data: 1\n\n"
                await trio.sleep_forever()
            finally:
                self.freed.set()

        await Stream(events(), media_type="text/event-stream")(scope, receive, send)


# Ordinary requests


async def test_scope(join: Join) -> None:
    """The app sees the request as ASGI describes it."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await Response()(scope, receive, send)

    await join(app).ask("/v1/domain/a%2Fb%C3%BC?x=1&y=%20", head=b"X-Thing: 7\r\n")
    assert {
        key: seen[0][key] for key in ("type", "method", "path", "raw_path", "query_string", "headers")
    } == {
        "type": "http",
        "method": "GET",
        "path": "/v1/domain/a/bü",
        "raw_path": b"/v1/domain/a%2Fb%C3%BC",
        "query_string": b"x=1&y=%20",
        "headers": [(b"host", b"qmpsnap"), (b"x-thing", b"7")],
    }


async def test_absolute_target(join: Join) -> None:
    """A proxy's form of the target names the same path (RFC 9112 3.2.2)."""
    assert (await join(echo).ask("http://qmpsnap/v1/ping?u=a://b")).body == b"GET /v1/ping "


async def test_post(join: Join) -> None:
    """A body arrives whole, whether its length was declared or not."""
    client = join(echo)
    assert (await client.ask(method="POST", body=b"snap")).body == b"POST / snap"
    await client.send(
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nsn\r\n2\r\nap\r\n0\r\n\r\n"
    )
    assert (await client.answer()).body == b"POST / snap"


@pytest.mark.parametrize(
    ("head", "first", "second", "last"),
    [
        (b"Content-Length: 4\r\n\r\n", b"sn", b"ap", (b"ap", False)),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nsn\r\n", b"0\r\n\r\n", (b"", False)),
    ],
    ids=["length", "chunked"],
)
async def test_body_streams(
    join: Join, head: bytes, first: bytes, second: bytes, last: tuple[bytes, bool]
) -> None:
    """The app reads the first piece before the client has sent the second."""
    pieces: list[tuple[bytes, bool]] = []
    read = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            message = await receive()
            pieces.append((message["body"], message["more_body"]))
            read.set()
        await Response()(scope, receive, send)

    client = join(app)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + head + first)
    await read.wait()
    await client.send(second)
    assert (await client.answer()).status == 200
    assert pieces == [(b"sn", True), last]


async def test_keep_alive(join: Join, autojump_clock: MockClock) -> None:
    """A connection serves again for a minute, then it is closed."""
    client = join(echo)
    assert (await client.ask("/1")).body == b"GET /1 "
    await trio.sleep(LIMITS.keep_alive - 1)
    assert (await client.ask("/2")).body == b"GET /2 "
    start = trio.current_time()
    assert await client.rest() == b""
    assert trio.current_time() - start == LIMITS.keep_alive


async def test_connection_close(join: Join) -> None:
    """A client that wants no second request gets none."""
    client = join(echo)
    answer = await client.ask(head=b"Connection: close\r\n")
    assert answer.closes
    assert await client.rest() == b""


async def test_pipelined(join: Join) -> None:
    """Requests sent at once are answered in their order."""
    client = join(echo)
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(3)))
    assert [(await client.answer()).body for _ in range(3)] == [b"GET /0 ", b"GET /1 ", b"GET /2 "]


async def test_unread_body_keeps_alive(join: Join) -> None:
    """A body that the app did not want is read away, and the connection serves on."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 404)(scope, receive, send)

    client = join(refuse)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\n")
    assert (await client.answer()).status == 404
    await client.send(b"snap")
    assert (await client.ask()).status == 404


async def test_head(join: Join) -> None:
    """HEAD has the headers of GET, no body, and leaves the connection usable."""
    client = join(echo)
    answer = await client.ask(method="HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "7", b"")
    assert (await client.ask()).body == b"GET / "


async def test_head_of_stream(join: Join) -> None:
    """HEAD of an endless stream ends."""
    client = join(Starlette(routes=[Route("/", flood)]))
    assert (await client.ask(method="HEAD")).body == b""
    assert (await client.ask(method="HEAD")).status == 200


async def test_expect(join: Join) -> None:
    """A client that asks first is told to go on."""
    client = join(echo)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"snap")
    assert (await client.answer()).body == b"POST / snap"


async def test_expect_too_much(join: Join) -> None:
    """A client that asks first whether it may send 1 GB is told not to."""
    client = join(echo)
    await client.send(
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await client.answer()).status == 413


async def test_upgrade_is_ignored(join: Join) -> None:
    """``curl --http2`` is answered in HTTP/1.1."""
    client = join(echo)
    assert (await client.ask(head=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")).status == 200
    assert (await client.ask()).status == 200


# Clients that send what they should not


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1 or so\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nsnap\r\n",
        b"\r\n\r\n",
    ],
    ids=["tls", "version", "http0.9", "no-host", "not-utf8", "length", "chunk", "empty"],
)
async def test_garbage(join: Join, autojump_clock: MockClock, garbage: bytes) -> None:
    """What is not HTTP is refused, and the connection closed."""
    client = join(echo)
    await client.send(garbage)
    answer = await client.answer()
    assert (answer.status, answer.error, answer.closes) == (400, "bad-http", True)
    assert await client.rest() == b""


async def test_error_shape(join: Join, autojump_clock: MockClock) -> None:
    """A refusal of ours has the shape that docs/control-protocol.md gives every error."""
    client = join(echo)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1048577\r\n\r\n")
    assert json.loads((await client.answer()).body) == {
        "error": {
            "code": "body-too-large",
            "kind": "refused",
            "message": "the request's body is larger than 1048576 bytes",
            "status": 1,
            "facts": {"limit": 1048576},
        }
    }


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("size", [70_000, 200_000])
async def test_head_too_large(join: Join, autojump_clock: MockClock, size: int, ends: bool) -> None:
    """A head over 64 KiB is refused, whether it comes to an end or not."""
    client = join(echo)
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * size + (b"\r\n\r\n" if ends else b""))
    answer = await client.answer()
    assert (answer.status, answer.error, answer.closes) == (431, "head-too-large", True)


async def test_head_just_too_large(join: Join, autojump_clock: MockClock) -> None:
    """The limit is exact for a head that came in one read, too."""
    client = join(echo, header_bytes=1000)
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 1000 + b"\r\n\r\n")
    assert (await client.answer()).status == 431


async def test_body_declared_too_large(join: Join, autojump_clock: MockClock) -> None:
    """A declared 1 GB is refused before the app hears of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("called")

    client = join(app)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 100_000)
    answer = await client.answer()
    assert (answer.status, answer.error, answer.closes) == (413, "body-too-large", True)
    assert await client.rest() == b""
    await client.send(b"x")  # we listen on for a moment, so that the client comes to its reading
    await trio.sleep(wire.LINGER + 0.1)
    with pytest.raises(trio.BrokenResourceError):
        await client.send(b"x")


async def test_body_without_end(join: Join, autojump_clock: MockClock) -> None:
    """Chunks that never end are refused at 1 MiB, while they come."""
    client = join(echo, lockstep=True)
    poured = 0

    async def pour() -> None:
        nonlocal poured
        while True:
            await client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            poured += 4096

    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    async with trio.open_nursery() as pouring:
        pouring.start_soon(pour)
        answer = await client.answer()
        pouring.cancel_scope.cancel()
    assert (answer.status, answer.error) == (413, "body-too-large")
    assert poured < LIMITS.body_bytes + 65536


async def test_body_without_end_unread(join: Join, autojump_clock: MockClock) -> None:
    """An app that answers without reading an endless body has answered, and the connection is closed."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 404)(scope, receive, send)

    client = join(app, body_bytes=1000)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    assert (await client.answer()).status == 404
    await client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    assert await client.rest() == b""
    await client.send(b"x")  # not reset yet: we listen on for a moment


LINES = [
    "GET / HTTP/1.1",
    "POST /v1 HTTP/1.1",
    "HEAD * HTTP/1.0",
    "CONNECT q:1 HTTP/1.1",
    "Host: qmpsnap",
    "Content-Length: 3",
    "Content-Length: 3, 4",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Upgrade: x",
    "Connection: close",
    "",
    "3\r\nabc",
    "0\r\n",
]
PIECES = st.sampled_from([f"{line}\r\n".encode() for line in LINES]) | st.binary(max_size=8)


@hypothesis.given(st.lists(PIECES, max_size=12), st.booleans())
def test_anything(pieces: list[bytes], leaves: bool) -> None:
    """Whatever comes in, no bug shows and the connection ends."""
    ours, theirs = trio.testing.memory_stream_pair()
    clock = MockClock(autojump_threshold=0)

    async def client() -> None:
        connection = Connection(echo, ours, LIMITS, None, wire.Budget(LIMITS))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            for piece in pieces:
                with contextlib.suppress(trio.BrokenResourceError):
                    await theirs.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            if leaves:
                await theirs.aclose()

    with structlog.testing.capture_logs() as logs:
        trio.run(client, clock=clock)
    assert logs == []


# Clients that are slow


async def test_bodies_together(join: Join, autojump_clock: MockClock) -> None:
    """What all clients send at once is limited; a small body is no part of it, and what has ended makes room."""
    limits = Limits(body_bytes=100, bodies_bytes=100, small_body_bytes=20)
    budget = wire.Budget(limits)
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n"
    first, second, third = (join(echo, budget=budget, **attrs.asdict(limits)) for _ in range(3))
    await first.send(head + b"x" * 99)
    await trio.testing.wait_all_tasks_blocked()
    await second.send(head + b"x" * 99)
    answer = await second.answer()
    assert (answer.status, answer.error, answer.closes) == (503, "too-much", True)
    assert (await third.ask("/", "POST", b"y" * 20)).status == 200
    await first.send(b"x")
    assert (await first.answer()).status == 200
    assert (await third.ask("/", "POST", b"y" * 100)).status == 200


async def test_slow_head(join: Join, autojump_clock: MockClock) -> None:
    """A head that trickles is cut off 5 seconds after its first byte."""
    client = join(echo)
    start = trio.current_time()
    await client.send(b"GET / HTTP/1.1\r\n" + HOST)
    async with trio.open_nursery() as trickling:

        @trickling.start_soon
        async def trickle() -> None:
            while True:
                await trio.sleep(1)
                await client.send(b"X: y\r\n")

        answer = await client.answer()
        trickling.cancel_scope.cancel()
    assert (answer.status, answer.error) == (408, "http-timeout")
    assert trio.current_time() - start == LIMITS.header


async def test_silent(join: Join, autojump_clock: MockClock) -> None:
    """Who connects and says nothing is hung up on."""
    start = trio.current_time()
    assert await join(echo).rest() == b""
    assert trio.current_time() - start == LIMITS.header


async def test_slow_body(join: Join, autojump_clock: MockClock) -> None:
    """A body that trickles is cut off after 10 seconds."""
    client = join(Starlette(routes=[Route("/", read_json, methods=["POST"])]))
    start = trio.current_time()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n")
    async with trio.open_nursery() as trickling:

        @trickling.start_soon
        async def trickle() -> None:
            while True:
                await trio.sleep(1)
                await client.send(b" ")

        answer = await client.answer()
        trickling.cancel_scope.cancel()
    assert (answer.status, answer.error) == (408, "http-timeout")
    assert trio.current_time() - start == LIMITS.body


async def read_json(request: Request) -> Response:
    return JSONResponse(await request.json())


async def test_stuck_reader(join: Join, autojump_clock: MockClock) -> None:
    """Who stops reading a flood is dropped 10 seconds later, and the app's ``send`` raises OSError."""
    how: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            how.append(str(error))
        try:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError as error:
            how.append(str(error))
            raise

    client = join(app, lockstep=True)
    start = trio.current_time()
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await client.until(b"xxx\r\n10000\r\nx")
    await trio.sleep(LIMITS.write + 1)
    assert how == ["the client has read nothing for 10 seconds", "the client has left"]
    with pytest.raises(h11.RemoteProtocolError):
        await client.answer()
    assert trio.current_time() - start == LIMITS.write + 1


# Clients that leave


@pytest.mark.parametrize(
    "part", [b"GE", b"GET / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\nsn"]
)
async def test_half_a_request(part: bytes) -> None:
    """A request that breaks off ends the connection, and is no bug."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(part)
    await theirs.aclose()
    with structlog.testing.capture_logs() as logs:
        app = Starlette(routes=[Route("/", read_json, methods=["POST"])])
        await Connection(app, ours, LIMITS, None, wire.Budget(LIMITS)).run()
    assert logs == []


async def test_get_is_cancelled(join: Join) -> None:
    """Nobody waits for the answer to a GET: its handler is cancelled."""
    handler = Handler()
    client = join(handler)
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await handler.entered.wait()
    await client.stream.aclose()
    await handler.ended.wait()
    assert handler.how == "cancelled"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_post_goes_on(join: Join, method: str) -> None:
    """What a client began goes on without it."""
    handler = Handler()
    client = join(handler)
    await client.send(f"{method} / HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    await handler.entered.wait()
    await client.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not handler.ended.is_set()
    handler.go_on.set()
    await handler.ended.wait()
    assert handler.how == "done, nobody listened"


async def test_disconnect_is_told(join: Join) -> None:
    """An app that asks is told when the client has left, after the body."""
    told: list[Any] = []
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.extend([await receive(), await receive()])
        ended.set()

    client = join(app)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"\r\n")
    await trio.testing.wait_all_tasks_blocked()
    await client.stream.aclose()
    await ended.wait()
    assert told == [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]


async def test_event_stream_is_freed(join: Join) -> None:
    """Events come as they happen, and their source is freed when the client has left."""
    events = EventStream()
    client = join(events)
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert b"text/event-stream" in await client.until(b"data: 1\n\n")
    assert not events.freed.is_set()
    await client.stream.aclose()
    await events.freed.wait()


# Apps that fail


async def test_bug(join: Join, autojump_clock: MockClock) -> None:
    """A bug is logged with its traceback; the client learns no more than that it happened."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret")

    client = join(app)
    with structlog.testing.capture_logs() as logs:
        answer = await client.ask("/v1/x")
        await client.rest()
    assert (answer.status, answer.error, b"secret" in answer.body) == (500, "internal", False)
    assert logs == [
        {"event": "request failed", "log_level": "error", "exc_info": True, "method": "GET", "path": "/v1/x"}
    ]


async def test_bug_in_response(join: Join) -> None:
    """A response that breaks off is not made to look complete."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    client = join(app)
    with structlog.testing.capture_logs() as logs, pytest.raises(h11.RemoteProtocolError):
        await client.ask()
    assert [entry["event"] for entry in logs] == ["request failed"]


async def test_starlette_bug(join: Join) -> None:
    """Starlette answers a bug by itself and raises it again: it is logged, and the connection lives."""

    async def handler(_request: Request) -> Response:
        raise ZeroDivisionError

    client = join(Starlette(routes=[Route("/", handler)]))
    with structlog.testing.capture_logs() as logs:
        assert (await client.ask()).status == 500
        assert (await client.ask()).status == 500
    assert [entry["event"] for entry in logs] == ["request failed"] * 2


async def test_oserror_is_a_bug(join: Join, autojump_clock: MockClock) -> None:
    """An OSError of the app's own is not taken for a client that left, as Starlette takes it."""

    async def handler(_request: Request) -> Response:
        async def lines() -> Any:
            yield "1"
            raise FileNotFoundError

        return StreamingResponse(lines())

    client = join(Starlette(routes=[Route("/", handler)]))
    with structlog.testing.capture_logs() as logs, pytest.raises(h11.RemoteProtocolError):
        await client.ask()
    assert [entry["event"] for entry in logs] == ["request failed"]


async def test_no_answer(join: Join, autojump_clock: MockClock) -> None:
    """An app that returns without an answer has a bug."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    with structlog.testing.capture_logs() as logs:
        assert (await join(app).ask()).status == 500
    assert [entry["event"] for entry in logs] == ["request failed"]


async def test_leaving_is_no_bug(join: Join) -> None:
    """Nothing is logged for a client that leaves in the middle of anything."""
    handler = Handler()
    with structlog.testing.capture_logs() as logs:
        for request in (b"GET", b"POST"):
            client = join(Starlette(routes=[Route("/", read_json, methods=["POST"]), Route("/f", flood)]))
            await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n")
            await client.stream.aclose()
            client = join(handler)
            await client.send(request + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
            await client.stream.aclose()
        handler.go_on.set()
        await trio.testing.wait_all_tasks_blocked()
    assert logs == []


# The end


async def test_stop_idle(join: Join, autojump_clock: MockClock) -> None:
    """Between requests a connection ends at once."""
    client = join(echo)
    await client.ask()
    await trio.testing.wait_all_tasks_blocked()
    client.connection.stop()
    start = trio.current_time()
    assert await client.rest() == b""
    assert trio.current_time() == start


async def test_stop_in_flight(join: Join) -> None:
    """A request in flight is answered, says that it was the last, and is."""
    handler = Handler()
    client = join(handler)
    await client.send(2 * (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"))
    await handler.entered.wait()
    client.connection.stop()
    handler.go_on.set()
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")
    assert await client.rest() == b""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_stop_event_stream(join: Join, when: str) -> None:
    """An event stream, running or about to run, is ended as complete: the client may trust what it has."""
    events = EventStream()
    entered, go_on = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await go_on.wait()
        await events(scope, receive, send)

    client = join(app)
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await entered.wait()
    if when == "before":
        client.connection.stop()
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    if when == "after":
        client.connection.stop()
    assert (await client.answer()).status == 200
    assert await client.rest() == b""


async def test_file(join: Join) -> None:
    """Starlette's file responses work, whose reads are in threads."""
    client = join(FileResponse(__file__))
    assert b"Starlette's file responses" in (await client.ask()).body
