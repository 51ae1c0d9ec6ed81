"""Serving on real unix sockets: making them, who may connect, who connected, and the end."""

from __future__ import annotations

import grp
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qmpsnap import errors
from qmpsnap.server import http, listen
from tests.unit.http_client import HOST, Client
from tests.unit.test_http import EventStream, Handler, echo, flood

Start = Callable[..., Awaitable[trio.Event]]
Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "api.sock"


@pytest.fixture
def start(nursery: trio.Nursery, path: Path) -> Start:
    """Serve an app on ``path``: ``await start(app, **Limits)``; gives the event that stops it."""

    async def serve(app: ASGIApp, **limits: Any) -> trio.Event:
        stop = trio.Event()
        listener = listen.listen(path, 0o600)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await http.serve(
                app, [listener], limits=http.Limits(**limits), stop=stop, task_status=task_status
            )

        await nursery.start(run)
        return stop

    return serve


@pytest.fixture
async def connect(path: Path) -> AsyncIterator[Connect]:
    """Connect a client to the server on ``path``; it leaves at the end."""
    clients: list[Client] = []

    async def one() -> Client:
        clients.append(Client(await trio.open_unix_socket(str(path))))
        return clients[-1]

    yield one
    for client in clients:
        await trio.aclose_forcefully(client.stream)


def answers(path: Path) -> bool:
    """Whether something listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


# Making the socket


@pytest.mark.parametrize("mask", [0, 0o077])
def test_mode_and_group(path: Path, mask: int) -> None:
    """The socket has its mode and group, whatever the umask is; the lock beside it is nobody else's."""
    umask = os.umask(mask)
    try:
        with listen.listen(path, 0o660, group=os.getgid()).socket:
            found = path.lstat()
            assert stat.S_ISSOCK(found.st_mode)
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
            assert sorted(os.listdir(path.parent)) == ["api.sock", "api.sock.lock"]
            assert stat.S_IMODE(path.with_suffix(".sock.lock").stat().st_mode) == 0o600
    finally:
        os.umask(umask)


def test_group_name(path: Path) -> None:
    """A group goes by its name, too; an unknown one is said to be so."""
    with listen.listen(path, 0o660, group=grp.getgrgid(os.getgid()).gr_name).socket:
        assert path.stat().st_gid == os.getgid()
    with pytest.raises(errors.ListenFailed, match="there is no group 'nobody-has-it'"):
        listen.listen(path, 0o660, group="nobody-has-it")


def test_ready_before_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the path appears, mode and group are set and a client is not refused."""
    seen: list[tuple[int, bool]] = []
    rename = os.rename

    def look(new: str, final: str) -> None:
        assert not path.exists()
        seen.append((stat.S_IMODE(os.stat(new).st_mode), answers(Path(new))))
        rename(new, final)

    monkeypatch.setattr(os, "rename", look)
    with listen.listen(path, 0o640).socket:
        assert seen == [(0o640, True)]


def test_second_daemon(path: Path) -> None:
    """A socket that answers is another daemon's, and stays."""
    with listen.listen(path, 0o600).socket:
        with pytest.raises(errors.AlreadyRunning) as caught:
            listen.listen(path, 0o600)
        assert str(caught.value) == f"cannot listen on {path}: another daemon answers there"
        assert answers(path)


def test_busy_daemon(path: Path) -> None:
    """One whose queue is full is alive, too."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as queued:
        busy.bind(str(path))
        busy.listen(0)
        queued.connect(str(path))
        with pytest.raises(errors.AlreadyRunning):
            listen.listen(path, 0o600)


def test_stale_sockets(path: Path) -> None:
    """What a killed daemon left, at any moment of its start, is replaced."""
    for left in (path, Path(f"{path}.new")):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(left))
    with listen.listen(path, 0o600).socket:
        assert answers(path)
    with listen.listen(path, 0o600).socket:
        assert answers(path)


@pytest.mark.parametrize("name", ["api.sock", "api.sock.new"])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_not_a_socket(path: Path, name: str, kind: str) -> None:
    """What is not a socket is never removed."""
    other = path.with_name(name)
    if kind == "file":
        other.write_text("precious")
    elif kind == "link":
        other.symlink_to("nowhere")
    else:
        other.mkdir()
    before = other.lstat()
    with pytest.raises(errors.NotASocket, match="is not a socket, so it is left alone"):
        listen.listen(path, 0o600)
    assert other.lstat().st_ino == before.st_ino


def test_datagram_socket(path: Path) -> None:
    """A socket of another kind is somebody's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(errors.ListenFailed, match="may be in use"):
            listen.listen(path, 0o600)
    assert path.exists()


def test_path_too_long(short_dir: Path) -> None:
    """A path that no sockaddr holds is refused by its length; the longest that fits works."""
    fits = short_dir / ("x" * (listen.LONGEST - len(str(short_dir)) - 1))
    with listen.listen(fits, 0o600).socket:
        assert answers(fits)
    with pytest.raises(errors.ListenFailed, match="the path has 104 bytes, and a socket's can have 103"):
        listen.listen(f"{fits}x", 0o600)


def test_no_directory(path: Path) -> None:
    """What the kernel says is told with the path."""
    with pytest.raises(errors.ListenFailed) as caught:
        listen.listen(path / "deeper", 0o600)
    assert str(caught.value) == f"cannot listen on {path}/deeper: No such file or directory"


def test_two_start_at_once(path: Path) -> None:
    """Of two daemons that find the same stale socket, one wins and the other learns of it."""
    for _ in range(50):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
        won: list[trio.SocketListener] = []
        lost: list[errors.AlreadyRunning] = []
        at_once = threading.Barrier(2)

        def start(
            at_once: threading.Barrier = at_once,
            won: list[trio.SocketListener] = won,
            lost: list[errors.AlreadyRunning] = lost,
        ) -> None:
            at_once.wait()
            try:
                won.append(listen.listen(path, 0o600))
            except errors.AlreadyRunning as error:
                lost.append(error)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 1)
        with won[0].socket:
            assert answers(path)


# Sockets that systemd made


def test_activation_by_a_parent(path: Path) -> None:
    """A process that finds listeners at fd 3 and 4, as systemd passes them, serves on them by name."""
    program = f"""
import os, sys, socket
rw, ro = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
for sock, name in ((rw, {str(path)!r}), (ro, {str(path) + "-ro"!r})):
    sock.bind(name)
    sock.listen()
fds = [os.dup(sock.fileno()) for sock in (rw, ro)]
os.dup2(fds[0], 3), os.dup2(fds[1], 4)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "rw:ro"}}
sys.path.insert(0, {os.getcwd()!r})
from qmpsnap.server import listen
found = listen.activated(os.environ)
print({{name: [one.socket.getsockname() for one in some] for name, some in found.items()}})
print([key for key in os.environ if key.startswith("LISTEN_")], os.get_inheritable(3))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{{'rw': ['{path}'], 'ro': ['{path}-ro']}}", "[] False"]


async def test_activated_listener_serves(connect: Connect, path: Path, nursery: trio.Nursery) -> None:
    """A passed listener serves as one of ours does; one without a name is called unknown."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        fd = os.dup(sock.fileno())
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    found = listen.activated(environ, first=fd)
    await nursery.start(http.serve, echo, found["unknown"])
    assert (await (await connect()).ask()).body == b"GET / "
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}],
)
def test_activation_of_others(environ: dict[str, str]) -> None:
    """Variables that are meant for another process give nothing."""
    assert listen.activated(environ) == {}
    assert environ == {}


@pytest.mark.parametrize("kind", ["pipe", "tcp", "connected", "closed"])
def test_activation_unfit(kind: str) -> None:
    """What is no listening unix socket is refused: over TCP nobody has a uid."""
    tcp = socket.create_server(("127.0.0.1", 0))
    one, other = socket.socketpair()
    reader, writer = os.pipe()
    spare = os.dup(reader)
    os.close(spare)
    fd = {"pipe": reader, "tcp": tcp.fileno(), "connected": one.fileno(), "closed": spare}[kind]
    try:
        with pytest.raises(errors.ListenFailed, match=f"cannot listen on passed fd {fd} \\(rw\\): "):
            listen.activated(
                {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rw"}, first=fd
            )
    finally:
        for end in (reader, writer):
            os.close(end)
        for sock in (tcp, one, other):
            sock.close()


# Who connected


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    peer = scope["extensions"]["peer"]
    await JSONResponse([peer.pid, peer.uid, peer.gid, sorted(peer.groups)])(scope, receive, send)


async def test_peer(connect: Connect, start: Start, path: Path) -> None:
    """The app knows which process asks."""
    stop = await start(who)
    groups = sorted({os.getgid(), *os.getgroups()})
    answer = await (await connect()).ask()
    assert answer.body == JSONResponse([os.getpid(), os.getuid(), os.getgid(), groups]).body
    stop.set()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("count", "known"), [(3, 3), (300, 0)])
async def test_peer_of_another_user(start: Start, path: Path, count: int, known: int) -> None:
    """Another user has its own uid and groups; beyond 256, which Python cannot read, only the primary one."""
    stop = await start(who)
    os.chmod(path, 0o666)
    os.chmod(path.parent, 0o755)
    program = f"""
import os, socket
os.setgroups(range(5000, {5000 + count})), os.setgid(4000), os.setuid(4001)
sock = socket.socket(socket.AF_UNIX)
sock.connect({str(path)!r})
sock.sendall(b"GET / HTTP/1.1\\r\\nHost: q\\r\\nConnection: close\\r\\n\\r\\n")
print(os.getpid(), sock.makefile().read())
"""
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    pid, _, text = done.stdout.decode().partition(" ")
    expected = bytes(JSONResponse([int(pid), 4001, 4000, [4000, *range(5000, 5000 + known)]]).body).decode()
    assert text.endswith(expected + "\n")
    stop.set()


# Many clients


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of 500 connections: a shell's usual limit is 1024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_500_at_once(many_files: None, connect: Connect, start: Start, path: Path) -> None:
    """500 clients are served at the same time: none is answered before the last is in the app."""
    inside = 0
    all_in = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal inside
        inside += 1
        if inside == 500:
            all_in.set()
        await all_in.wait()
        await Response()(scope, receive, send)

    stop = await start(app)
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await (await connect()).ask()).status)

    async with trio.open_nursery() as asking:
        for _ in range(500):
            asking.start_soon(ask)
    assert statuses == [200] * 500
    stop.set()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("connections", "too many connections"),
        ("connections_per_uid", f"too many connections of uid {os.getuid()}"),
    ],
)
async def test_too_many(connect: Connect, start: Start, path: Path, limit: str, message: str) -> None:
    """One connection too many is told so; when another has left there is room."""
    stop = await start(echo, **{limit: 2})
    first, second = await connect(), await connect()
    assert [(await client.ask()).status for client in (first, second)] == [200, 200]
    third = await connect()
    answer = await third.ask()
    assert (answer.status, answer.error, answer.closes) == (503, "too-many-connections", True)
    assert message.encode() + b'"' in answer.body
    await second.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert (await (await connect()).ask()).status == 200
    stop.set()


async def test_refusals_are_few(connect: Connect, start: Start, path: Path) -> None:
    """Who is told does not cost more than a few sockets: the others are hung up on."""
    stop = await start(echo, connections=0)
    clients = [await connect() for _ in range(http.REFUSALS + 3)]
    await trio.testing.wait_all_tasks_blocked()
    told = [await client.rest() for client in clients]
    assert [bool(text) for text in told] == [True] * http.REFUSALS + [False] * 3
    stop.set()


async def test_refused_client_reads_why(connect: Connect, start: Start, path: Path) -> None:
    """A client still sending when it is refused reads the refusal, not a reset connection."""
    stop = await start(echo)
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10000000\r\n\r\n" + b"x" * 100_000)
    for _ in range(20):
        await client.send(b"x" * 100_000)
    assert (await client.answer()).status == 413
    stop.set()


async def test_half_closed_client(connect: Connect, start: Start, path: Path) -> None:
    """``printf … | socat`` closes its sending side and waits: it is answered."""
    handler = Handler()
    stop = await start(handler)
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await client.stream.send_eof()
    await trio.testing.wait_all_tasks_blocked()
    handler.go_on.set()
    assert (await client.answer()).body == b"done"
    stop.set()


async def test_client_that_leaves(connect: Connect, start: Start, path: Path) -> None:
    """On a real socket, too, a GET is cancelled when its client has left."""
    handler = Handler()
    stop = await start(handler)
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await handler.entered.wait()
    await client.stream.aclose()
    await handler.ended.wait()
    assert handler.how == "cancelled"
    stop.set()


async def test_client_that_leaves_its_answer_unread(connect: Connect, start: Start, path: Path) -> None:
    """Closing with bytes unread resets the connection (ECONNRESET): that is leaving too, and no bug."""
    stop = await start(echo)
    client = await connect()
    with structlog.testing.capture_logs() as logs:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert logs == []
    stop.set()


# The end


async def test_accepted_too_late() -> None:
    """A connection that was accepted while the server stopped is closed."""
    server = http._Server(echo, http.DEFAULTS)
    server.stop()
    ours, theirs = trio.socket.socketpair()
    async with trio.SocketStream(ours) as stream, trio.SocketStream(theirs) as client:
        with trio.fail_after(1):
            await server.handle(stream)
        await stream.aclose()
        assert await client.receive_some() == b""


async def app_of_all(scope: Scope, receive: Receive, send: Send) -> None:
    """A flood, an event stream, a request that never ends and one that ends soon."""
    response: Any
    match scope["path"]:
        case "/flood":
            response = await flood(None)  # type: ignore[arg-type]  # it looks at nothing
        case "/events":
            response = EventStream()
        case "/never":
            response = Handler()
        case "/soon":
            await trio.sleep(0.2)
            response = PlainTextResponse("soon")
        case _:
            response = Response()
    await response(scope, receive, send)


async def test_end_in_a_second(connect: Connect, path: Path) -> None:
    """Whatever clients do, the server ends in less than a second; what ended in time is answered."""
    listener = listen.listen(path, 0o600)
    asked: dict[str, Client] = {}
    async with trio.open_nursery() as serving:
        await serving.start(http.serve, app_of_all, [listener])
        for what in ("/flood", "/events", "/never", "/soon", "/idle"):
            asked[what] = await connect()
            await asked[what].send(f"GET {what} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
        await asked["/events"].until(b"data: 1\n\n")
        await asked["/idle"].answer()
        start = time.monotonic()
        serving.cancel_scope.cancel()
    assert 0.2 < time.monotonic() - start < 1
    assert not answers(path)
    assert (await asked["/soon"].answer()).body == b"soon"
    assert await asked["/events"].rest() == b"\r\n0\r\n\r\n"
    assert await asked["/idle"].rest() == b""
    assert await asked["/never"].rest() == b""


async def test_end_at_once(connect: Connect, start: Start, path: Path) -> None:
    """Where nothing is in flight the end takes no grace."""
    stop = await start(echo)
    client = await connect()
    await client.ask()
    begin = time.monotonic()
    stop.set()
    assert await client.rest() == b""
    assert time.monotonic() - begin < http.DEFAULTS.grace / 2


async def test_stop_event_answers_in_flight(connect: Connect, start: Start, path: Path) -> None:
    """The stop event ends serving as a cancellation does, and nobody new gets in."""
    handler = Handler()
    stop = await start(handler)
    client = await connect()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"\r\n")
    await handler.entered.wait()
    stop.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not answers(path)
    handler.go_on.set()
    assert (await client.answer()).body == b"done"
    assert await client.rest() == b""
