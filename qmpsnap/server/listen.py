"""Unix sockets to serve on: made here, or passed by systemd; and who is at the other end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator, MutableMapping

import attrs
import trio

from qmpsnap import errors

# sockaddr_un holds 108 bytes with the final NUL. A socket is bound as PATH.new and then renamed.
NEW = ".new"
LONGEST = 107 - len(NEW)

# Non-blocking clients get EAGAIN from a full queue, so it has room for a burst of them.
BACKLOG = 1024

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python 3.11 has no name for it
FIRST_FD = 3  # SD_LISTEN_FDS_START in sd-daemon.h


@attrs.frozen
class Peer:
    """The process that connected, as it was at that moment: its pid serves the log, never a permission."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer(sock: trio.socket.SocketType) -> Peer:
    """Who connected to this unix socket, by the kernel's word.

    Python reads at most 1024 bytes of an option, so somebody in more than 256 groups has only the primary one.
    """
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        packed = b""
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{len(packed) // 4}I", packed)) | {gid})


def listen(path: str | os.PathLike[str], mode: int, group: str | int | None = None) -> trio.SocketListener:
    """A listener on ``path``, which has its mode and group from the moment that it can be seen.

    A socket that nobody answers (left by a crash) is replaced in one step; the file stays when the listener
    closes, for the next start to replace. Raises `AlreadyRunning`, `NotASocket` or `ListenFailed`; then
    whatever was at ``path`` is untouched. ``PATH.lock`` keeps two daemons that start at once apart.
    """
    where = os.fspath(path)
    if (length := len(os.fsencode(where))) > LONGEST:
        reason = f"the path has {length} bytes, and a socket's can have {LONGEST}"
        raise errors.ListenFailed(path=where, reason=reason)
    gid = _gid(where, group) if isinstance(group, str) else group
    try:
        with _lock(f"{where}.lock"):
            if _is_socket(where):
                _refuse_live(where)
            return _adopt(_bind(where, mode, gid))
    except OSError as error:
        raise errors.ListenFailed(path=where, reason=error.strerror) from error


def activated(
    environ: MutableMapping[str, str], first: int = FIRST_FD
) -> dict[str, list[trio.SocketListener]]:
    """The listeners that systemd passed to this process, by their ``FileDescriptorName=``.

    The variables are removed, so that no child takes them for its own; empty when they were not meant for us.
    Raises `ListenFailed` for one that is not a listening unix stream socket: on any other, nobody has a uid.
    """
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    listeners: dict[str, list[trio.SocketListener]] = {}
    for fd in range(first, first + int(count)):
        name, _, names = names.partition(":")
        listeners.setdefault(name or "unknown", []).append(_passed(fd, name))  # "unknown" as systemd has it
    return listeners


def _gid(path: str, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise errors.ListenFailed(path=path, reason=f"there is no group '{group}'") from None


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    # Nobody else can open it, so nobody else can hold it; a daemon holds it for the few calls below.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_socket(path: str) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise errors.NotASocket(path=path)
    return True


def _refuse_live(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        match probe.connect_ex(path):
            case errno.ECONNREFUSED | errno.ENOENT:
                return
            case 0 | errno.EAGAIN:  # EAGAIN: its queue is full, so it is alive and busy
                raise errors.AlreadyRunning(path=path)
            case other:
                reason = f"what is there may be in use ({os.strerror(other)})"
                raise errors.ListenFailed(path=path, reason=reason)


def _bind(path: str, mode: int, gid: int | None) -> socket.socket:
    new = path + NEW
    if _is_socket(new):
        os.unlink(new)  # a crash between bind and rename; under our lock nobody is at it now
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.bind(new)
        undo.callback(os.unlink, new)
        if gid is not None:
            os.chown(new, -1, gid)
        os.chmod(new, mode)
        sock.listen(BACKLOG)  # until here a connect is refused, whatever the mode was
        os.rename(new, path)
        undo.pop_all()
    return sock


def _passed(fd: int, name: str) -> trio.SocketListener:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise errors.ListenFailed(path=f"passed fd {fd} ({name})", reason=error.strerror) from error
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listening:
        sock.detach()
        reason = "not a listening unix stream socket"
        raise errors.ListenFailed(path=f"passed fd {fd} ({name})", reason=reason)
    sock.set_inheritable(False)
    return _adopt(sock)


def _adopt(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
