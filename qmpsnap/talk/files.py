"""Acts on files that are whole or did not happen, and durable when they return. Blocking: called from worker threads.

Durable means: written, fsynced, renamed, directory fsynced. Every durable act passes a named crash point.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Sequence

import attrs

from qmpsnap import errors, faults
from qmpsnap.model import chain


@contextlib.contextmanager
def _named(act: str, file: str) -> Iterator[None]:
    """An OSError becomes one line that says what could not be done, to which file, and why."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise errors.FileFailed(act=act, file=file, reason=reason) from error


@attrs.frozen
class Write:
    """A file to be replaced: its path, its new content, its mode."""

    path: str
    content: bytes
    mode: int = 0o600


def sync(path: str) -> None:
    """What was written to the file or directory is on disk; its name in its directory need not be."""
    with _named("flush", path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def flush_data(path: str) -> None:
    """The file's dirty pages are on disk (fdatasync): they belong to the inode, whoever has written them."""
    with _named("flush", path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def replace(writes: Sequence[Write], tmp: str) -> None:
    """Each file holds its new content, durable, in the order given; on failure those not yet reached hold their old one.

    ``tmp`` is a directory of the same file system: a half-written file never has a name that somebody reads.
    """
    staged = []
    for write in writes:
        with _named("write", write.path):
            staged.append(_write_new(write, tmp))
    for n, (name, write) in enumerate(zip(staged, writes, strict=True), 1):
        with _named("write", write.path):
            os.makedirs(os.path.dirname(write.path), mode=0o755, exist_ok=True)
            os.rename(name, write.path)
        faults.point(f"renamed-{n}")
    for folder in dict.fromkeys(os.path.dirname(write.path) for write in writes):
        sync(folder)
    faults.point("synced")


def _write_new(write: Write, tmp: str) -> str:
    fd, name = tempfile.mkstemp(dir=tmp)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(write.content)
        os.fchmod(fd, write.mode)
        os.fsync(fd)
    except OSError:
        os.unlink(name)
        raise
    finally:
        os.close(fd)
    return name


def remove(path: str) -> None:
    """The file is gone, durable; that it was not there is as good."""
    with _named("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    folder = os.path.dirname(path)
    if os.path.isdir(folder):
        sync(folder)


def make_folder(path: str, mode: int) -> None:
    """The directory exists, durable."""
    with _named("create", path):
        if not os.path.isdir(path):
            os.makedirs(path, mode=mode, exist_ok=True)
            _sync_folder(path)


def canonical(path: str) -> str:
    """The path with the symbolic links of its directory resolved: the name itself may not exist yet."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def fact(path: str) -> chain.FileFact:
    """What lies at ``path``; nothing is created, but where something could be is found out by asking the kernel."""
    path = canonical(path)
    folder = os.path.dirname(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        reason = _cannot_create(path, folder)
        kind = "other" if os.path.islink(path) else "absent"
        return chain.FileFact(path, kind, reason)  # type: ignore[arg-type]  # both are kinds
    except OSError as error:
        return chain.FileFact(path, "unreachable", os.strerror(error.errno or 0))
    kinds = {stat.S_IFREG: "file", stat.S_IFBLK: "block", stat.S_IFDIR: "directory"}
    return chain.FileFact(path, kinds.get(stat.S_IFMT(status.st_mode), "other"))  # type: ignore[arg-type]  # all are kinds


def _cannot_create(path: str, folder: str) -> str:
    """Why no file can be created there, as the kernel would say it."""
    if not os.path.isdir(folder):
        return os.strerror(errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT)
    if len(os.path.basename(path).encode(errors="surrogateescape")) > os.pathconf(folder, "PC_NAME_MAX"):
        return os.strerror(errno.ENAMETOOLONG)
    if not os.access(folder, os.W_OK | os.X_OK):
        return os.strerror(errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES)
    return ""


def opened_for_writing(path: str) -> bool:
    """Somebody has the image open read-write: QEMU and qemu-img then hold a lock on byte 101 (facts/qemu.md I).

    A question to the kernel (F_OFD_GETLK): nothing is taken. A file that is not there is not open.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.FileFailed(act="read", file=path, reason=error.strerror) from error
    try:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
        answer = fcntl.fcntl(fd, F_OFD_GETLK, query)
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


# fcntl(2): open file description locks; Python names them since 3.9 only where the C library does.
F_OFD_GETLK = 36


def lock(path: str) -> int:
    """A lock that no second process can hold, until this one ends; the descriptor is to be kept.

    ``AlreadyRunning`` names the state directory; the file stays, unlocked, when the process dies however it dies.
    """
    with _named("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise errors.StateInUse(folder=os.path.dirname(path)) from error
    return fd
