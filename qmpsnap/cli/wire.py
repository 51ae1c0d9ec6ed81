"""HTTP/1.1 on a socket: one request out, the bytes of one answer in."""

from __future__ import annotations

import errno
import socket
import time

from qmpsnap.cli.failure import DeadlinePassed, Failure, Lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The daemon answers at once or with 202; one that says nothing for this long hangs, and the user should know.
ANSWER_TIMEOUT = 60.0
# 200 snapshots of 4 disks with long paths are below 1 MiB; anything much larger is not our daemon.
MAX_BODY = 64 << 20
MAX_HEAD = 64 << 10


class Stream:
    """Bytes of one answer, read from a socket."""

    def __init__(self, sock: socket.socket, deadline: float | None = None) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers, names in lower case."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if not parts[0].startswith("HTTP/1.") or len(parts) < 2 or not parts[1].isdecimal():
            raise Failure("internal error: what listens on the control socket does not speak HTTP")
        pairs = (line.partition(":") for line in lines[1:])
        return int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    def body(self, headers: dict[str, str]) -> Iterator[bytes]:
        """The body in pieces, as they come."""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunks()
        return self._plain(headers.get("content-length"))

    def _plain(self, length: str | None) -> Iterator[bytes]:
        if length is not None:
            yield self._exactly(_count(length, 10))
            return
        while piece := self._buffer or self._receive(ends=True):
            self._buffer = b""
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := _count(self._until(b"\r\n").decode("latin-1").partition(";")[0], 16):
            yield self._exactly(size)
            self._exactly(2)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            if len(self._buffer) > MAX_HEAD:
                raise Failure("internal error: the daemon's answer has no end")
            self._buffer += self._receive()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        pieces = [self._buffer]
        have = len(self._buffer)
        while have < size:
            pieces.append(self._receive())
            have += len(pieces[-1])
        data = b"".join(pieces)
        self._buffer = data[size:]
        return data[:size]

    def _receive(self, *, ends: bool = False) -> bytes:
        if self._deadline is not None:
            self._sock.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            data = self._sock.recv(65536)
        except TimeoutError as e:
            if self._deadline is not None:
                raise DeadlinePassed from e
            raise Lost(f"the daemon did not answer for {ANSWER_TIMEOUT:.0f} seconds") from e
        except OSError as e:
            raise Lost(f"lost the connection to the daemon: {e.strerror}") from e
        if not data and not ends:
            raise Lost("lost the connection to the daemon: it closed it before the answer was complete")
        return data


def server_sent(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The ``data`` of each event in a stream of server-sent events; comments and other fields are skipped."""
    buffer = b""
    data: list[bytes] = []
    for piece in pieces:
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            field, _, value = text.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not text and data:
                yield b"\n".join(data)
                data = []


def send(
    sock: socket.socket, method: str, target: str, body: bytes | None, accept: str = "application/json"
) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: qmpsnap\r\nAccept: {accept}\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    elif method != "GET":
        head += "Content-Length: 0\r\n"
    try:
        sock.sendall(head.encode("ascii") + b"\r\n" + (body or b""))
    except OSError as e:
        # A server that refuses early (too large, shutting down) has answered already: the answer says more.
        if e.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise Lost(f"lost the connection to the daemon: {e.strerror}") from e


def _count(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError as e:
        raise Failure("internal error: the daemon's answer has a bad length") from e
    if not 0 <= number <= MAX_BODY:
        raise Failure(f"internal error: the daemon's answer is too large ({number} bytes)")
    return number
