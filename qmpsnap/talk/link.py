"""A monitor's unix socket: to reach it, to see who else uses it, to move whole lines."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import socket
import struct

import structlog
import trio

from qmpsnap import errors, faults
from qmpsnap.talk import wire

# Half a line would corrupt the session, so a write is shielded from cancellation, and a write without
# an end would hold up a shutdown. QEMU 7.2 takes 3 s to read a command of 512 KiB (facts/qemu.md G).
WRITE_TIMEOUT = 30.0

CHUNK = 256 * 1024  # a 10 MB answer in 40 reads, not 160

_BUSY = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_GONE = {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR}

_log = structlog.stdlib.get_logger(__name__)
_level = logging.getLogger(__name__)  # asked first: no line is rendered that nobody reads


class Link:
    """A connected socket, as lines. One task may receive while another sends."""

    def __init__(self, path: str, sock: socket.socket, *, line_limit: int, write_timeout: float) -> None:
        self.path = path
        self.peer_pid = _peer_pid(sock)
        self._address: object = sock.getpeername()
        faults.connection(sock)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._splitter = wire.Splitter(line_limit)
        self._lines: collections.deque[bytes] = collections.deque()
        self._write_timeout = write_timeout
        self._why = ""

    async def receive(self) -> bytes:
        """Return the next line; nothing is lost if this is cancelled. Waits only if none is at hand.

        Raises Disconnected at the end of the stream, MonitorGarbage for a line over the limit.
        """
        while not self._lines:
            try:
                chunk = await self._stream.receive_some(CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise errors.Disconnected(reason=_cause(error)) from None
            if not chunk:
                where = " within a message" if self._splitter.unfinished else ""
                raise errors.Disconnected(reason=self._why or f"QEMU closed it{where}")
            self._lines += self._splitter.feed(chunk)
        line = self._lines.popleft()
        if _level.isEnabledFor(logging.DEBUG):
            _log.debug("<-- " + wire.excerpt(line, 400), monitor=self.path)
        return line

    async def send(self, line: bytes) -> None:
        """Write a line whole, even if cancelled meanwhile.

        If that fails the line may have been read in part, so the link is shut down: `receive` still
        returns what QEMU had said before (its answer to `quit`, say), then raises Disconnected.
        """
        if _level.isEnabledFor(logging.DEBUG):
            _log.debug("--> " + wire.excerpt(line[:-1], 400), monitor=self.path)
        with trio.move_on_after(self._write_timeout, shield=True) as scope:
            try:
                await self._stream.send_all(line)
            except trio.BrokenResourceError:
                pass
            except trio.ClosedResourceError:
                return
            else:
                return
        if scope.cancelled_caught:
            self._why = f"QEMU read nothing for {self._write_timeout:g} s"
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket at once; whoever receives gets Disconnected, and what was not read is let go."""
        self._stream.socket.close()
        self._lines.clear()

    def other_is_served(self) -> bool:
        """Whether the server has accepted a client while we still wait to be accepted.

        The kernel shows accepted connections of a listening path as state 03, queued ones as 02.
        It cannot tell whose they are; nobody accepted, or nobody queued, means that we are not held up
        by another client but by a server that hangs.
        """
        rows = [row.split(maxsplit=7) for row in _unix_sockets(self.peer_pid)]
        return {"02", "03"} <= {row[5] for row in rows if len(row) == 8 and row[7] == self._address}


def open_link(path: str | os.PathLike[str], *, line_limit: int, write_timeout: float) -> Link:
    """Connect to a monitor's socket, at once or not at all.

    Raises MonitorBusy, MonitorGone or MonitorDenied; then no descriptor is left open.
    """
    # Not trio's connect: it takes EAGAIN (backlog full) for "in progress" and returns a socket that is
    # not connected (facts/stack.md, pitfall 1). A unix socket never is in progress.
    name = os.fspath(path)
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(name)
        return Link(name, sock, line_limit=line_limit, write_timeout=write_timeout)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _reason(name, error) from None


def _reason(path: str, error: OSError) -> errors.Error:
    if error.errno == errno.EAGAIN:
        return errors.MonitorBusy(path=path, reason="its queue of waiting clients is full")
    reason = error.strerror or str(error)  # "AF_UNIX path too long" has no number
    if error.errno in _BUSY:
        return errors.MonitorBusy(path=path, reason=reason)
    if error.errno in _GONE:
        return errors.MonitorGone(path=path, reason=reason)
    return errors.MonitorDenied(path=path, reason=reason)


def _unix_sockets(pid: int) -> list[str]:
    """Return the kernel's table as that process sees it: it may live in another network namespace."""
    for table in (f"/proc/{pid}/net/unix", "/proc/net/unix"):
        with contextlib.suppress(OSError), open(table, encoding="utf-8", errors="surrogateescape") as rows:
            return rows.read().split("\n")
    return []


def _peer_pid(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid


def _cause(error: BaseException) -> str:
    if isinstance(error, trio.ClosedResourceError):
        return "qmpsnap closed it"
    cause = error.__cause__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else "connection broken"
