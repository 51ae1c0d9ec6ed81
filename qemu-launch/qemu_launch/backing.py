"""What an image's header says is below it.

Read here and not by `qemu-img info`: a start looks at the chains of every domain on the host, a process for each image would
take 16 ms (measured), and of a chain with a missing link qemu-img shows nothing at all. Other formats than qcow2 are asked of it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator

import attrs

from qemu_launch import images, prefix
from qmpsnap import errors
from qmpsnap.model import observe
from qmpsnap.talk import qemu_img

_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA
# QEMU itself refuses a longer name (block/qcow2.c); a header with its extensions lies in the first cluster.
_LONGEST = 1023
_HEAD = 65536


@attrs.frozen
class Link:
    """An image of a chain; ``format`` is "" where nothing but the image itself would tell."""

    file: str
    format: str
    identity: prefix.Identity


def identity(file: str) -> prefix.Identity | None:
    """What the name leads to; None where nothing is, or nothing that could hold an image."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    if stat.S_ISBLK(status.st_mode):
        return prefix.Identity("block", status.st_rdev, 0)
    return prefix.Identity("file", status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def chain(file: str, form: str) -> Iterator[Link]:
    """The image and those below it, top first, as far as they are there. ``FileFailed`` for one that cannot be read."""
    seen: set[prefix.Identity] = set()
    while (found := identity(file)) is not None and found not in seen:
        seen.add(found)
        yield Link(file, form, found)
        file, form = _below(file, form)


def _below(file: str, form: str) -> tuple[str, str]:
    if form == "raw":
        return "", ""
    try:
        with open(file, "rb") as image:
            head = image.read(_HEAD)
    except OSError as error:
        raise errors.FileFailed(act="read", file=file, reason=os.strerror(error.errno or 0)) from error
    if head.startswith(_MAGIC):
        name, form = parse(head)
    elif form in {"", "qcow2"}:
        return "", ""
    else:
        answer = qemu_img.info(file)
        name, form = answer.get("backing-filename", ""), answer.get("backing-filename-format", "")
    name = observe.storage(name) if name.startswith("json:") else images.file_name(name)
    # Relative to the image's directory, as QEMU takes it.
    return (os.path.join(os.path.dirname(file), name), form) if name else ("", "")


def parse(head: bytes) -> tuple[str, str]:
    """Backing file and its format in the start of a qcow2 image; ("", "") for none (docs/interop/qcow2.txt)."""
    try:
        version, offset, size = struct.unpack_from(">IQI", head, 4)
        place = struct.unpack_from(">I", head, 100)[0] if version >= 3 else 72
        if not offset or size > _LONGEST:
            return "", ""
        name = head[offset : offset + size].decode(errors="surrogateescape")
        while place + 8 <= offset:
            kind, length = struct.unpack_from(">II", head, place)
            if kind == _BACKING_FORMAT:
                return name, head[place + 8 : place + 8 + length].decode(errors="replace")
            if not kind:
                break
            place += 8 + (length + 7) // 8 * 8
    except struct.error:  # a header that is cut off: QEMU will refuse the image
        return "", ""
    return name, ""
