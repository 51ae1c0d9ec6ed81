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
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    with contextlib.ExitStack() as opened:
        staged = {write.path: _stage(write, tmp, opened) for write in writes}
        _sync_all({path: fd for path, (fd, _name) in staged.items()}, "write")
        for n, write in enumerate(writes, 1):
            with _named("write", write.path):
                os.makedirs(os.path.dirname(write.path), mode=0o755, exist_ok=True)
                os.rename(staged.pop(write.path)[1], write.path)
            faults.point(f"renamed-{n}")  # by place, not by name: the journal's holds the operation's id
        folders = {}
        for folder in dict.fromkeys(os.path.dirname(write.path) for write in writes):
            with _named("flush", folder):
                folders[folder] = fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
        _sync_all(folders, "flush")
    faults.point("synced")


def _stage(write: Write, tmp: str, opened: contextlib.ExitStack) -> tuple[int, str]:
    """A file with the content, not yet on disk; open until ``opened`` is closed, and gone by then unless it was renamed."""
    with _named("write", write.path):
        fd, name = tempfile.mkstemp(dir=tmp)
        opened.callback(_unstage, fd, name)
        with open(fd, "wb", closefd=False) as file:
            file.write(write.content)
        os.fchmod(fd, write.mode)
    return fd, name


def _unstage(fd: int, name: str) -> None:
    try:
        # Its name may be another's by now, where it was renamed. What cannot be removed goes at the next start.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(name)):
                os.unlink(name)
    finally:
        os.close(fd)


def _sync_all(opened: Mapping[str, int], act: str) -> None:
    """The files or directories, by name, are on disk.

    All at once: a flush commits all that the file system has pending, and who waits for one at the same time shares it. Three
    files and their two directories took 5 ms instead of 19 on a busy disk, 1.4 instead of 3.0 on a quiet one.
    """
    if not opened:
        return
    failures: dict[str, OSError] = {}

    def flush(name: str, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            failures[name] = error

    (*others, last) = opened.items()
    # Daemons: a disk that hangs must not hold up the end of the process.
    threads = [threading.Thread(target=flush, args=one, daemon=True) for one in others]
    for thread in threads:
        thread.start()
    flush(*last)
    for thread in threads:
        thread.join()
    for name in opened:
        if name in failures:
            with _named(act, name):
                raise failures[name]


def remove(path: str) -> None:
    """The file is gone, durable; that it was not there is as good."""
    with _named("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    folder = os.path.dirname(path)
    if os.path.isdir(folder):
        sync(folder)


# Directories whose names this process has flushed. That one is there says nothing: a flush may have failed, or an earlier process
# died, right after it was made.
_flushed: set[str] = set()


def make_folder(path: str, mode: int) -> None:
    """The directory exists, durable."""
    with _named("create", path):
        if not os.path.isdir(path):
            _flushed.discard(path)
            os.makedirs(path, mode=mode, exist_ok=True)
    # Where we may not even look, somebody else has made it (systemd, say).
    if path not in _flushed and os.access(os.path.dirname(path), os.R_OK):
        _sync_folder(path)
        _flushed.add(path)


def check_room(folder: str, room: int) -> None:
    """``FileFailed`` unless the file system can be written to and has ``room`` bytes left for us, as far as it can tell."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    with _named("write to", folder):
        free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
        if found.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "")
        if found.f_blocks and free * found.f_frsize < room:
            raise OSError(errno.ENOSPC, "")


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
    return chain.FileFact(path, kinds.get(stat.S_IFMT(status.st_mode), "other"), stamp=_stamp(status))  # type: ignore[arg-type]  # all are kinds


def _stamp(status: os.stat_result) -> str:
    """Changes with every write to the file, and not when QEMU opens and closes it (facts/qemu.md 32)."""
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def fingerprint(status: os.stat_result) -> str:
    """Another one once somebody has written to the image (facts/qemu.md 32); the same for a copy that keeps the times, so that a
    restored backup is taken for what it is."""
    return f"{status.st_size}:{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""


def fingerprint_of(path: str) -> str:
    """``fingerprint`` of what lies at ``path``; "" when nothing does."""
    try:
        return fingerprint(os.stat(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.FileFailed(act="read", file=path, reason=error.strerror) from error


def frozen_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """``fingerprint`` of images that are written to no more, durable: QEMU's own flush leaves the time of the last write to chance
    (fdatasync(2)), and after a power cut an older one would pass for a change. Those that are not there are left out."""
    found: dict[str, int] = {}
    with contextlib.ExitStack() as opened:
        for path in dict.fromkeys(paths):
            with _named("flush", path), contextlib.suppress(FileNotFoundError):
                found[path] = fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
        _sync_all(found, "flush")
        return {path: fingerprint(os.fstat(fd)) for path, fd in found.items()}


def check_stamp(path: str, stamp: str) -> None:
    """``FileFailed`` when the file is not as it was when it was looked at."""
    if fact(path).stamp != stamp:
        raise errors.FileFailed(act="use", file=path, reason="it has been changed meanwhile")


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
    return _locked(path, 101, 1)


def opened(path: str) -> bool:
    """Somebody has the image open at all: readers hold locks on other bytes, the last of them on 203 (facts/qemu.md I)."""
    return _locked(path, 100, 104)


def _locked(path: str, start: int, length: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.FileFailed(act="read", file=path, reason=error.strerror) from error
    try:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(fd, F_OFD_GETLK, query)
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


# fcntl(2): open file description locks; Python names them since 3.9 only where the C library does.
F_OFD_GETLK = 36


def lock(path: str) -> int:
    """A lock that no second process can hold, until this one ends; the descriptor is to be kept.

    ``StateInUse`` names the state directory; the file stays, unlocked, when the process dies however it dies.
    """
    with _named("open", path):
        # For reading: nothing is written to it, and a file system that has become read-only can still be locked.
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise errors.StateInUse(folder=os.path.dirname(path)) from error
    return fd
