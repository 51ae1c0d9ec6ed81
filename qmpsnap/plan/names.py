"""Names that a plan gives to what it makes in QEMU and beside images."""

from __future__ import annotations

import posixpath
import re

#: Ours are told by this: a node, job or file that begins with it may be removed by us, nobody else's ever is.
PREFIX = "qs-"


def node(operation: str, n: int) -> str:
    """A node name (31 bytes at most, [A-Za-z][A-Za-z0-9._-]*: facts/qemu.md 20), never used before: operations are not."""
    return f"{PREFIX}{operation}-{n}"


def job(operation: str) -> str:
    return f"{PREFIX}{operation}"


def temp(file: str, operation: str, n: int) -> str:
    """The hidden name, in the same directory, under which an overlay is made; short, because ``file``'s may be 255 bytes long."""
    return f"{posixpath.dirname(file)}/.{PREFIX}{operation}-{n}"


def maker(file: str) -> str:
    """The operation whose ``temp`` has such a name; "" for any other name."""
    found = re.fullmatch(rf"\.{PREFIX}([0-9a-z]+)-\d+", posixpath.basename(file))
    return found[1] if found else ""
