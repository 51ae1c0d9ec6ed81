"""Names of domains, snapshots and overlays: which ones can exist, and which ones libvirt would choose."""

from __future__ import annotations

import posixpath
import re

from qmpsnap import errors

# NAME_MAX of Linux file systems is 255 bytes. libvirt replaces `<name>.xml` by way of `<name>.xml.new`: a longer name would load
# there and fail at the first change (seen on 9.0 and 11.3).
LONGEST = 255 - len(".xml.new")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def check(name: str, what: str) -> str:
    """The name itself, if it can be a file of its own and stand in XML; else ``BadName`` says why not.

    libvirt refuses ``/`` and a leading dot with these texts, and takes newlines and 300 characters, which break it later
    (facts/libvirt.md 16): control characters and over-long names are refused here too.
    """
    if not name:
        reason = "name can't be empty"
    elif "/" in name:
        reason = "name can't contain '/'"
    elif name.startswith("."):
        reason = "name can't start with '.'"
    elif _CONTROL.search(name):
        reason = "name can't contain control characters"
    elif len(name.encode()) > LONGEST:
        reason = f"name can't be longer than {LONGEST} bytes"
    else:
        return name
    raise errors.BadName(what=what, name=_shown(name), reason=reason)


def check_text(text: str, what: str, *, lines: bool = False) -> str:
    """The text itself, if XML can hold it; ``lines`` allows several lines and tabs. Else ``BadName``."""
    found = _CONTROL.search(re.sub(r"[\n\t]", "", text) if lines else text)
    if found:
        reason = f"it has the character {found.group()!a}, which cannot be recorded"
        raise errors.BadName(what=what, name=_shown(text), reason=reason)
    return text


def _shown(name: str) -> str:
    """Printable and short: a terminal is never driven by a name."""
    shown = name.encode("unicode_escape", "replace").decode()
    return shown if len(shown) <= 64 else shown[:60] + "..."


def overlay_file(image: str, snapshot: str) -> str:
    """The overlay that libvirt makes beside ``image`` when none is named: its last extension replaced by the snapshot's name."""
    folder, file = posixpath.split(image)
    stem, dot, _extension = file.rpartition(".")
    return f"{folder}/{stem if dot and stem else file}.{snapshot}"


def is_device(path: str) -> bool:
    """Whether the path is a device's by its place: /dev holds nothing else but the files of /dev/shm."""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")


def sort_key(name: str) -> tuple[bytes, bytes]:
    """virsh's order: by byte, ASCII case ignored (facts/libvirt.md 1.2); ties, which virsh leaves open, by byte."""
    raw = name.encode(errors="surrogateescape")
    return raw.lower(), raw
