"""What the first bytes of an image say of it: its format, its size, and which image is below it."""

from __future__ import annotations

import struct

import attrs

from qmpsnap.model import observe

#: How much of an image has to be read: a header and its extensions lie in the first cluster.
HEAD = 65536

_QCOW = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA
# QEMU itself refuses a longer name (block/qcow2.c).
_LONGEST = 1023
#: Formats that can name a backing file and whose headers we do not read: qemu-img is asked.
_OTHERS = {b"QED\0": "qed", b"KDMV": "vmdk", b"COWD": "vmdk", b"# Disk D": "vmdk"}


@attrs.frozen
class Header:
    """``backing`` as the header has it ("" for none); ``size`` in bytes, 0 where it is not known.

    ``format`` is "" for what has no header that we know: raw, or something that has no backing file.
    """

    format: str = ""
    backing: str = ""
    backing_format: str = ""
    size: int = 0


def parse(head: bytes) -> Header:
    """The header at the start of an image (docs/interop/qcow2.txt); one that is cut off or lies has no backing file: QEMU will
    refuse the image."""
    if not head.startswith(_QCOW):
        return Header(next((name for magic, name in _OTHERS.items() if head.startswith(magic)), ""))
    try:
        version, offset, length = struct.unpack_from(">IQI", head, 4)
        size = struct.unpack_from(">Q", head, 24)[0]
        kind = "qcow2" if version > 1 else "qcow"
        if not offset or length > _LONGEST or offset + length > len(head):
            return Header(kind, size=size)
        name = head[offset : offset + length].decode(errors="surrogateescape")
        place = struct.unpack_from(">I", head, 100)[0] if version >= 3 else 72
        return Header(kind, name, _backing_format(head, place, offset) if version > 1 else "", size)
    except struct.error:
        return Header("qcow2")


def longer(head: bytes) -> bool:
    """Whether the header goes on behind ``head``."""
    if not head.startswith(_QCOW) or len(head) < 20:
        return False
    offset, length = struct.unpack_from(">QI", head, 8)
    return bool(len(head) < offset + length <= HEAD)


def _backing_format(head: bytes, place: int, end: int) -> str:
    while place + 8 <= end:
        kind, length = struct.unpack_from(">II", head, place)
        if kind == _BACKING_FORMAT:
            return head[place + 8 : place + 8 + length].decode(errors="replace")
        if not kind:
            break
        place += 8 + (length + 7) // 8 * 8
    return ""


def file_name(name: str) -> str:
    """The file that QEMU opens for ``name``, as it is named there; "" when its protocol is another one (block.c,
    path_has_protocol)."""
    if name.startswith("json:"):
        return observe.storage(name)
    protocol, colon, rest = name.partition(":")
    if not colon or "/" in protocol:
        return name
    return rest if protocol in {"file", "host_device"} else ""
