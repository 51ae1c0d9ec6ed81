"""The HTTP client against a peer that misbehaves in every way a peer can."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpsnap.cli import wire
from tests.cli import peer, world
from tests.cli.conftest import Run, Serve
from tests.cli.world import World

NO_DAEMON = "error: failed to connect to the daemon\nerror: Failed to connect socket to '{path}': {reason}\n"


def test_no_daemon(run: Run, socket_path: Path) -> None:
    """The path, the reason, and what to do."""
    reason = "No such file or directory (is qmpsnapd running? Start it: systemctl start qmpsnapd)"
    assert run("list") == (1, "", NO_DAEMON.format(path=socket_path, reason=reason))


def test_nobody_listens(run: Run, serve: Serve, socket_path: Path) -> None:
    """A socket that a killed daemon left behind."""
    import socket

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path))
    reason = "Connection refused (qmpsnapd does not listen. Start it: systemctl start qmpsnapd)"
    assert run("list") == (1, "", NO_DAEMON.format(path=socket_path, reason=reason))


def test_no_permission(run: Run, serve: Serve, socket_path: Path) -> None:
    """Root may use every socket, so as root the test is nobody for a moment."""
    serve(World())
    socket_path.parent.chmod(0o755)
    socket_path.chmod(0)
    reason = "Permission denied (you may not use this socket: ask for its group, or run as root)"
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert run("list") == (1, "", NO_DAEMON.format(path=socket_path, reason=reason))
    finally:
        os.seteuid(user)


def test_a_path_that_is_no_socket(run: Run, socket_path: Path) -> None:
    long = "/" + "x" * 200
    status, out, err = run("-c", long, "list")
    assert (status, out) == (1, "")
    assert err == NO_DAEMON.format(
        path=long, reason="AF_UNIX path too long (give another socket with --connect)"
    )


BAD_ANSWERS = [
    (peer.Answer(b"<html>"), "internal error: the daemon's answer is not JSON"),
    (peer.Answer(b'{"domains": [}'), "internal error: the daemon's answer is not JSON"),
    (peer.Answer(b"[]"), "internal error: the daemon's answer is not a JSON object"),
    (peer.Answer({"other": 1}), "internal error: the daemon's answer lacks 'domains'"),
    (peer.Answer({"domains": [{"state": "running"}]}), "internal error: the daemon's answer lacks 'id'"),
    (peer.Answer(b"boom", 500), "internal error: the daemon answered 500 without saying why"),
    (peer.Answer({"error": "text"}, 400), "internal error: the daemon answered 400 without saying why"),
    (peer.Answer(b"\xff\xfe", 200), "internal error: the daemon's answer is not JSON"),
    (peer.Hangup(), "lost the connection to the daemon: it closed it before the answer was complete"),
    (
        peer.Hangup(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}"),
        "lost the connection to the daemon: it closed it before the answer was complete",
    ),
    (
        peer.Hangup(b"SSH-2.0-OpenSSH\r\n\r\n"),
        "internal error: what listens on the control socket does not speak HTTP",
    ),
    (
        peer.Hangup(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        "internal error: the daemon's answer has a bad length",
    ),
    (
        peer.Hangup(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
        "internal error: the daemon's answer is too large (99999999999 bytes)",
    ),
    (peer.Hangup(b"x" * 70000), "internal error: the daemon's answer has no end"),
]


@pytest.mark.parametrize(("answer", "line"), BAD_ANSWERS, ids=[line[-40:] for _, line in BAD_ANSWERS])
def test_bad_answers(answer: peer.Answer | peer.Hangup, line: str, run: Run, serve: Serve) -> None:
    """One line, no traceback, whatever comes."""
    serve(lambda request: answer)
    assert run("list") == (1, "\n", f"error: {line}\n")


def test_a_lost_answer_to_a_change_is_unknown(run: Run, serve: Serve) -> None:
    """Whether the daemon did it cannot be told: exit status 2, and no second try by itself."""
    daemon = serve(lambda request: peer.Hangup())
    status, out, err = run("snapshot-create-as", "daisy", "s1", "--disk-only")
    assert (status, out) == (2, "\n")
    assert "error: whether the request was carried out is unknown: look before you repeat it\n" in err
    assert daemon.lines() == ["POST /v1/domains/daisy/snapshots"]


def test_a_body_without_length_ends_with_the_connection(run: Run, serve: Serve) -> None:
    serve(lambda request: peer.Hangup(b'HTTP/1.1 200 OK\r\n\r\n{"domains": []}'))
    assert run("list", "--name") == (0, "\n", "")


def test_a_chunked_body(run: Run, serve: Serve) -> None:
    serve(lambda request: peer.Answer(pieces=[b'{"dom', b'ains": [', b"]}"]))
    assert run("list", "--name") == (0, "\n", "")


def test_an_error_of_the_daemon_ends_with_its_status(run: Run, serve: Serve) -> None:
    serve(lambda request: peer.error("a\nb \x1b[1mc", status=500, kind="incomplete", exit_status=3))
    assert run("list") == (3, "\n", "error: a\\x0ab \\x1b[1mc\n")


def test_names_are_escaped_in_the_path(run: Run, serve: Serve) -> None:
    """Spaces, percent signs, dots and UTF-8 stay inside one segment; a slash cannot."""
    daemon = serve(World())
    run("dominfo", "a b%/é?#")
    run("dominfo", "a b%é?#")
    run("dominfo", "..")
    run("snapshot-info", "daisy", "../x")
    assert daemon.lines() == ["GET /v1/domains/a%20b%25%C3%A9%3F%23", "GET /v1/domains/%2E%2E"]


def test_bytes_that_are_not_utf8_are_refused(run: Run, serve: Serve) -> None:
    daemon = serve(World())
    assert run("dominfo", "\udcff") == (1, "\n", "error: invalid argument: not valid UTF-8\n")
    result = run("snapshot-create-as", "daisy", "\udcff", "--disk-only")
    assert result == (1, "\n", "error: invalid argument: not valid UTF-8\n")
    assert daemon.lines() == []


def test_a_list_of_many_long_names(run: Run, serve: Serve) -> None:
    """An answer of megabytes arrives whole."""
    serve(World(snapshots=[world.snapshot(f"{n:04}" + "x" * 1000) for n in range(3000)]))
    status, out, _ = run("snapshot-list", "daisy", "--name")
    assert (status, out.count("\n")) == (0, 3001)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_server_sent_events_in_any_pieces(size: int) -> None:
    """Events are found wherever the pieces are cut; comments and other fields are skipped."""
    stream = b': hello\n\nevent: operation\ndata: {"a":1}\n\ndata:x\r\ndata: y\r\n\r\ndata: z\n\nid: 7\nretry: 9\n\ndata: cut'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    assert list(wire.server_sent(pieces())) == [b'{"a":1}', b"x\ny", b"z"]
