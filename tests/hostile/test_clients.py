"""Clients of the control API that misbehave, many at once, against the whole daemon with a real machine."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.hostile.conftest import memory
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import MIB
from tests.lab.qmp import PATIENCE

pytestmark = requires.requires_qemu

HOST = b"Host: q\r\n"

#: Bodies of all clients together (16 MiB, each piece kept up to twice), and some 100 KiB for each of 500 connections.
AT_MOST = (2 * 16 + 50) * MIB


@pytest.fixture(scope="module")
def many_files() -> Iterator[None]:
    """Room for both ends: a shell's usual limit is 1024; the daemon inherits it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def daemon(many_files: None) -> Iterator[Daemon]:
    """A daemon with the machine ``rose``."""
    folder = Path(tempfile.mkdtemp(prefix="qc-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        found = stack.enter_context(running())
        image = qemu.image(folder / "rose.qcow2", 4 * MIB)
        drive = f"file={image},format=qcow2,if=virtio"
        vm = stack.enter_context(qemu.Machine(folder / "m", ["-drive", drive]))
        found.ok("attach", "rose", vm.monitor_path)
        yield found


class Crowd:
    """Connections that stay open, until the end of the test."""

    def __init__(self, daemon: Daemon, stack: contextlib.ExitStack) -> None:
        self._path = str(daemon.socket)
        self._stack = stack

    def join(self, data: bytes) -> socket.socket:
        """One more, that has sent this, or as much of it as was taken."""
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(PATIENCE)
        sock.connect(self._path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        return sock


@pytest.fixture
def crowd(daemon: Daemon) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd(daemon, stack)


def post(path: bytes, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST /v1%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path, HOST, size, body)


HEALTH = b"GET /v1/health HTTP/1.1\r\n" + HOST + b"\r\n"

#: What each of them sends, and then never reads.
CROWD = {
    "nothing": b"",
    "half a head": b"GET /v1/domains HTTP/1.1\r\nX: ",
    "a head that is nearly too large": b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000,
    "half a body": post(b"/domains/rose/snapshots", b'{"name": "half', 1000),
    "events": b"GET /v1/events HTTP/1.1\r\n" + HOST + b"\r\n",
    "large answers": (b"GET /v1/openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 100,
    "nonsense after a request": HEALTH + b"\0\xff nonsense\r\n" * 100,
    "a body without end": HEALTH + post(b"/domains", b"x", 2**40),
}


def _works(daemon: Daemon, name: str) -> None:
    made = daemon.ok("snapshot-create-as", "rose", name, "--disk-only")
    assert made == f"Domain snapshot {name} created\n"
    assert name in daemon.ok("snapshot-list", "rose", "--name")


def test_500_at_once_while_a_snapshot_is_made(daemon: Daemon, crowd: Crowd) -> None:
    """Every way to be a nuisance, 500 of them together: snapshots are made and lists are shown."""
    before = memory(daemon.pid)["VmRSS"]
    with daemon.spawn("snapshot-create-as", "rose", "meanwhile", "--disk-only") as process:
        for _round in range(63):
            for data in CROWD.values():
                crowd.join(data)
        assert process.communicate(timeout=PATIENCE) == (b"Domain snapshot meanwhile created\n", b"")
    _works(daemon, "with-500")
    assert memory(daemon.pid)["VmHWM"] < before + AT_MOST
    assert "Traceback" not in daemon.log


def test_large_bodies_together(daemon: Daemon, crowd: Crowd) -> None:
    """Bodies that are each just allowed, and never end: not all of them are kept, and small ones are read."""
    before = memory(daemon.pid)["VmHWM"]
    joined = [crowd.join(post(b"/domains", b"x" * (MIB - 1), MIB)) for _one in range(100)]
    told = joined[-1].recv(65536)
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b'"too-much"' in told
    assert daemon.api("POST", "/domains", {"name": "x"}).error["code"] == "bad-request"
    _works(daemon, "with-100")
    assert memory(daemon.pid)["VmHWM"] < before + AT_MOST
    assert daemon.ok("list", "--name") == "rose\n\n"


def test_who_hangs_up_in_the_middle(daemon: Daemon, crowd: Crowd) -> None:
    """A request that was cut does nothing; one that was whole is carried out, though nobody waits for it."""
    whole = post(b"/domains/rose/snapshots", b'{"name": "whole"}')
    for end in range(1, len(whole) - 1, 7):
        crowd.join(whole[:end]).close()
    _works(daemon, "after-the-cut")
    assert daemon.api("GET", "/domains/rose/snapshots/whole").status == 404
    crowd.join(whole).close()
    daemon.until("rose", lambda _domain: daemon.api("GET", "/domains/rose/snapshots/whole").status == 200)
    assert "Traceback" not in daemon.log


SNAPSHOTS, PULL, DOMAINS = b"/domains/rose/snapshots", b"/domains/rose/pull", b"/domains"
HUGE = b"9" * 5000

BODIES: list[tuple[bytes, bytes]] = [
    (SNAPSHOTS, b"[" * 100_000),
    (SNAPSHOTS, b'{"a":' * 100_000),
    (SNAPSHOTS, b'{"name": "\\ud800"}'),
    (SNAPSHOTS, b'{"name": "a\\u0000b"}'),
    (SNAPSHOTS, b'{"name": "' + b"n" * 500_000 + b'"}'),
    (SNAPSHOTS, b'{"disks": [{"target": "\\udfff"}]}'),
    (SNAPSHOTS, b'{"disks": [{"target": "vda", "file": "/tmp/\\u0000"}]}'),
    (SNAPSHOTS, b'{"disks": [{"target": "vda", "file": "/tmp/\\ud800"}]}'),
    (SNAPSHOTS, b'{"disks": [{"target": "vda", "file": "/' + b"f" * 500_000 + b'"}]}'),
    (SNAPSHOTS, b'{"disks": ' + b"[" + b"{}," * 100_000 + b"{}]}"),
    (SNAPSHOTS, b"{" + b",".join(b'"k%d": 1' % n for n in range(50_000)) + b"}"),
    (SNAPSHOTS, b'{"disks": "vda"}'),
    (SNAPSHOTS, b'{"dry_run": 1}'),
    (SNAPSHOTS, b'{"reuse_external": null}'),
    (SNAPSHOTS, b'{"name": NaN}'),
    (SNAPSHOTS, b"NaN"),
    (SNAPSHOTS, b'"x"'),
    (SNAPSHOTS, "\N{SNOWMAN}".encode("utf-16")),
    (PULL, b'{"disk": "vda", "bandwidth": NaN}'),
    (PULL, b'{"disk": "vda", "bandwidth": 1e999}'),
    (PULL, b'{"disk": "vda", "bandwidth": -1}'),
    (PULL, b'{"disk": "vda", "bandwidth": true}'),
    (PULL, b'{"disk": "vda", "bandwidth": 9223372036854775808}'),
    (PULL, b'{"disk": "vda", "bandwidth": %b}' % HUGE),
    (PULL, b'{"disk": "\\ud800"}'),
    (PULL, b'{"disk": "\\u0000"}'),
    (PULL, b'{"disk": "vda[%b]"}' % HUGE),
    (PULL, b'{"disk": "vda", "base": "\\u0000"}'),
    (PULL, b'{"disk": "vda", "base": "vda[%b]"}' % HUGE),
    (PULL, b'{"disk": "vda", "base": "vda[\\u0663]"}'),
    (DOMAINS, b'{"name": "x", "monitor": "/\\u0000"}'),
    (DOMAINS, b'{"name": "x", "monitor": "/\\ud800"}'),
    (DOMAINS, b'{"name": "x", "monitor": "/' + b"m" * 500_000 + b'"}'),
    (DOMAINS, b'{"name": "../x", "monitor": "/dev/null"}'),
    (DOMAINS, b'{"name": "\\ud800", "monitor": "/dev/null"}'),
    (b"/orphans/remove", b'{"files": ["\\u0000"]}'),
    (b"/orphans/remove", b'{"files": ["/\\ud800"]}'),
    (b"/orphans/remove", b'{"files": ["/\\u0000"]}'),
]

PATHS = [
    b"/v1/domains/%00",
    b"/v1/domains/%ff",
    b"/v1/domains/" + b"d" * 60_000,
    b"/v1/domains/rose/snapshots/%00",
    b"/v1/domains/rose/snapshots/" + b"s" * 60_000 + b"/xml",
    b"/v1/operations/" + b"o" * 60_000,
    b"/v1/operations/%00",
    b"/v1/operations/%d9%a3",
    b"/v1/operations/..%2f..%2fstate",
    b"/v1/domains/rose?x=%ff",
    b"/v1/domains/rose/check?full=%ff",
    b"/v1/trash/%00/restore",
]


def _answer(sock: socket.socket) -> tuple[int, bytes]:
    data = b""
    while more := sock.recv(65536):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda value: ascii(value)[:40])
def test_bodies_of_nonsense(daemon: Daemon, crowd: Crowd, path: bytes, body: bytes) -> None:
    """Each is refused in one line that has no megabytes, and is no bug of ours."""
    data = post(path + b"?wait=true", body).replace(HOST, HOST + b"Connection: close\r\n")
    status, raw = _answer(crowd.join(data))
    error = json.loads(raw)["error"]
    assert 400 <= status < 500, error
    assert error["code"] != "internal"
    assert "\n" not in error["message"]
    assert len(error["message"]) < 10_000
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("path", PATHS, ids=lambda value: ascii(value)[:40])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"\xf0"])
def test_paths_of_nonsense(daemon: Daemon, crowd: Crowd, method: bytes, path: bytes) -> None:
    request = b"%b %b HTTP/1.1\r\n%bConnection: close\r\n\r\n" % (method, path, HOST)
    status, raw = _answer(crowd.join(request))
    assert 200 <= status < 500, raw
    assert b'"internal"' not in raw
    assert len(raw) < 200_000
    assert "Traceback" not in daemon.log


def test_everything_works_in_the_end(daemon: Daemon) -> None:
    _works(daemon, "in-the-end")
    assert daemon.ok("list", "--name") == "rose\n\n"
    assert list((daemon.root / "state/journal/rose").glob("*")) == []
