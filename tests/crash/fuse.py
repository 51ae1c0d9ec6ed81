"""The kernel's side of a `disk.Disk`: requests of /dev/fuse (linux/fuse.h, version 7.31), answered from one thread.

No library lies between: the kernel speaks of nodes by number, and so does the disk, while libfuse's paths would hide which file
has the name after a rename, and keep names that a cut has taken away. Nothing is cached on the kernel's side (all times are 0,
all input and output is direct), so what is true after a cut is seen at once. Locks are left to the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import TypeAlias

import attrs

from tests.crash import disk

_VERSION = (7, 31)
_LARGEST_WRITE = 128 * 1024
_BUFFER = _LARGEST_WRITE + 4096
_LARGE_WRITES = 1 << 5

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_MS_NOSUID_NODEV = 2 | 4

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<QQQQII")

# What fuse_setattr_in says is to be set.
_MODE, _UID, _GID, _SIZE, _MTIME, _MTIME_NOW = 1, 2, 4, 8, 32, 256

# fallocate(2): nothing, keep the size, punch a hole, write zeroes.
_KEEP_SIZE, _PUNCH, _ZERO = 1, 2, 16


def mount(path: str) -> int:
    """A file system is mounted there; whoever reads from the descriptor is asked. Needs root."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _LIBC.mount(b"lossy", path.encode(), b"fuse.lossy", _MS_NOSUID_NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount at {path}")
    return fd


def unmount(path: str) -> bool:
    """It is gone from there, whoever still uses it; whether there was one."""
    return not _LIBC.umount2(path.encode(), _MNT_DETACH)


@attrs.frozen
class Request:
    """One question of the kernel; ``thread`` is the caller's."""

    node: int
    uid: int
    gid: int
    thread: int
    body: bytes

    def fields(self, layout: str) -> tuple[int, ...]:
        return struct.unpack_from(f"<{layout}", self.body)

    def names(self, layout: str = "") -> list[str]:
        rest = self.body[struct.calcsize(f"<{layout}") :]
        return [os.fsdecode(name) for name in rest.split(b"\0")[:-1]]


Handler: TypeAlias = Callable[[Request], bytes]


class Server:
    """Answers for ``tree``. ``may`` is told of every change before it is made, by name and thread, and may raise OSError."""

    def __init__(self, fd: int, tree: disk.Disk, may: Callable[[str, int], None]) -> None:
        self._fd = fd
        self._tree = tree
        self._may = may
        handlers: dict[int, tuple[str, Handler]] = {
            1: ("", self._lookup),
            3: ("", lambda r: self._attributes(r.node)),
            4: ("setattr", self._setattr),
            8: ("create", self._mknod),
            9: ("mkdir", self._mkdir),
            10: ("unlink", self._remove),
            11: ("rmdir", self._remove),
            12: ("rename", lambda r: self._rename(r, "Q")),
            13: ("link", self._link),
            14: ("", lambda r: _OPENED),
            15: ("", self._read),
            16: ("write", self._write),
            17: (
                "",
                lambda r: struct.pack("<5Q10I", *[1 << 24] * 3, *[1 << 20] * 2, 4096, 255, 4096, *[0] * 7),
            ),
            18: ("", lambda r: b""),
            20: ("fsync", self._sync),
            25: ("", lambda r: b""),
            26: ("", self._init),
            27: ("", lambda r: _OPENED),
            28: ("", self._readdir),
            29: ("", lambda r: b""),
            30: ("fsyncdir", self._sync),
            35: ("create", self._create),
            43: ("fallocate", self._fallocate),
            45: ("rename", lambda r: self._rename(r, "QII")),
        }
        self._handlers = handlers

    def serve(self) -> bool:
        """Everything that was asked is answered; false when the file system is no longer mounted."""
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return False
                if error.errno not in {errno.ENOENT, errno.EINTR}:  # the first: whoever asked has been killed
                    raise
                continue
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        _length, opcode, unique, node, uid, gid, thread, _extended, _ = _IN.unpack_from(data)
        if opcode in {2, 36, 38, 42}:  # forget, interrupt, destroy, batch-forget: no answer, or none needed
            return
        name, handler = self._handlers.get(opcode, ("", _unknown))
        number, body = 0, b""
        try:
            if name:
                self._may(name, thread)
            body = handler(Request(node, uid, gid, thread, data[_IN.size :]))
        except OSError as error:
            number = error.errno or errno.EIO
        try:
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -number, unique) + body)
        except OSError as error:
            if error.errno != errno.ENOENT:  # whoever asked has been killed
                raise

    # --- names ---

    def _init(self, request: Request) -> bytes:
        _major, _minor, ahead, _flags = request.fields("4I")
        return struct.pack(
            "<4I2H2I2H8I", *_VERSION, ahead, _LARGE_WRITES, 16, 12, _LARGEST_WRITE, 1, *[0] * 10
        )

    def _lookup(self, request: Request) -> bytes:
        return self._entry(self._tree.lookup(request.node, request.names()[0]))

    def _mknod(self, request: Request) -> bytes:
        return self._make(request, request.fields("I")[0], request.names("4I")[0])

    def _mkdir(self, request: Request) -> bytes:
        return self._make(request, request.fields("I")[0] & 0o7777 | stat.S_IFDIR, request.names("2I")[0])

    def _create(self, request: Request) -> bytes:
        mode = request.fields("2I")[1] & 0o7777 | stat.S_IFREG
        return self._make(request, mode, request.names("4I")[0]) + _OPENED

    def _make(self, request: Request, mode: int, name: str) -> bytes:
        return self._entry(self._tree.make(request.node, name, mode, request.uid, request.gid))

    def _remove(self, request: Request) -> bytes:
        self._tree.remove(request.node, request.names()[0])
        return b""

    def _rename(self, request: Request, layout: str) -> bytes:
        to, *flags = request.fields(layout)
        if any(flags):
            raise OSError(errno.EINVAL, "only a plain rename")
        old, new = request.names(layout)
        self._tree.rename(request.node, old, to, new)
        return b""

    def _link(self, request: Request) -> bytes:
        number = request.fields("Q")[0]
        self._tree.link(number, request.node, request.names("Q")[0])
        return self._entry(number)

    def _readdir(self, request: Request) -> bytes:
        _handle, offset, size = request.fields("QQI")
        entries = list(self._tree.folder(request.node).entries.items())
        found = b""
        for place, (name, number) in enumerate(entries[offset:], offset + 1):
            raw = os.fsencode(name)
            kind = self._tree.node(number).meta.mode >> 12
            row = struct.pack("<QQII", number, place, len(raw), kind) + raw
            row += bytes(-len(row) % 8)
            if len(found) + len(row) > size:
                break
            found += row
        return found

    # --- contents ---

    def _read(self, request: Request) -> bytes:
        _handle, offset, size = request.fields("QQI")
        return bytes(self._tree.file(request.node).data[offset : offset + size])

    def _write(self, request: Request) -> bytes:
        _handle, offset, size = request.fields("QQI")
        self._tree.file(request.node).change(disk.Write(offset, request.body[40 : 40 + size]))
        return struct.pack("<II", size, 0)

    def _sync(self, request: Request) -> bytes:
        self._tree.node(request.node).sync(data_only=bool(request.fields("QI")[1] & 1))
        return b""

    def _fallocate(self, request: Request) -> bytes:
        _handle, offset, length, mode = request.fields("QQQI")
        file = self._tree.file(request.node)
        size = len(file.data)
        if mode & ~(_KEEP_SIZE | _PUNCH | _ZERO):
            raise OSError(errno.EOPNOTSUPP, "only zeroes")
        end = min(offset + length, size) if mode & _KEEP_SIZE else offset + length
        if mode & (_PUNCH | _ZERO) and offset < end:
            file.change(disk.Write(offset, bytes(end - offset)))
        elif end > size:
            file.change(disk.Resize(end))
        return b""

    # --- attributes ---

    def _setattr(self, request: Request) -> bytes:
        valid, _, _, size, _, _, mtime, _, _, nanoseconds, _, mode, _, uid, gid = request.fields(
            "IIQQQQQQIIIIIII"
        )
        node = self._tree.node(request.node)
        if valid & _SIZE:
            self._tree.file(request.node).change(disk.Resize(size))
        meta = node.meta
        if valid & _MODE:
            meta = attrs.evolve(meta, mode=mode)
        if valid & _UID:
            meta = attrs.evolve(meta, uid=uid)
        if valid & _GID:
            meta = attrs.evolve(meta, gid=gid)
        if valid & (_MTIME | _MTIME_NOW):
            when = time.time_ns() if valid & _MTIME_NOW else mtime * 10**9 + nanoseconds
            meta = attrs.evolve(meta, mtime=when)
        node.meta = meta
        return self._attributes(request.node)

    def _attributes(self, number: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attr(number)

    def _entry(self, number: int) -> bytes:
        return _ENTRY.pack(number, 0, 0, 0, 0, 0) + self._attr(number)

    def _attr(self, number: int) -> bytes:
        node = self._tree.node(number)
        size = len(node.data) if isinstance(node, disk.File) else 4096
        seconds, nanoseconds = divmod(node.meta.mtime, 10**9)
        times = (seconds,) * 3 + (nanoseconds,) * 3
        owner = (node.meta.mode, max(node.links, 1), node.meta.uid, node.meta.gid)
        return _ATTR.pack(number, size, -(-size // 512), *times, *owner, 0, 4096, 0)


# Opened without a handle of ours (nodes are enough), past the kernel's cache.
_OPENED = struct.pack("<QII", 0, 1, 0)


def _unknown(request: Request) -> bytes:
    raise OSError(errno.ENOSYS, "not asked for here")
