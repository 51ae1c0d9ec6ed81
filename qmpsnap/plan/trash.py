"""The trash by value: what is kept of a removed image, what a crash means that left it half way, and what may be done with it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
from cattrs import Converter
from cattrs.errors import BaseValidationError

from qmpsnap import errors
from qmpsnap.model import images
from qmpsnap.plan import gate, orphans

#: The directory beside images that holds those removed: of the same file system, so that nothing is copied.
FOLDER = ".qmpsnap-trash"

VERSION = 1

_DAY = 86400


Decision = Literal["keep", "drop", "take-back"]


@attrs.frozen
class Below:
    """An image that the removed one reads through, as it was then."""

    file: str
    stamp: str


@attrs.frozen
class Record:
    """A removed image: ``file`` is where it was, ``moved`` where it is. Times in epoch seconds; at ``until`` it may be deleted."""

    id: str
    file: str
    moved: str
    domain: str
    when: float
    until: float
    size: int
    allocation: int
    stamp: str
    below: tuple[Below, ...] = ()


@attrs.frozen
class Names:
    """What lies at the two names of a record: device and inode, or None for nothing. ``there``: so is the trash directory, without
    which nothing can be concluded (its file system is not mounted)."""

    there: bool
    old: tuple[int, int] | None = None
    moved: tuple[int, int] | None = None


_converter = Converter(forbid_extra_keys=True)


def dump(record: Record) -> bytes:
    return json.dumps({"version": VERSION, **_converter.unstructure(record)}).encode()


def load(text: bytes, ident: str) -> Record:
    """The record ``ident`` of ``dump``; ``ValueError`` for what we cannot read."""
    values: dict[str, Any] = json.loads(text)
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ValueError("it is no record of a version that we know")
    if values.get("id") != ident:
        raise ValueError("it is the record of another image")
    try:
        return _converter.structure(values, Record)
    except (BaseValidationError, KeyError) as error:
        raise ValueError(f"it is no record: {error!r}") from error


def record(orphan: orphans.Orphan, graph: images.Graph, ident: str, now: float, days: int) -> Record:
    """What is to be written down of an orphan before it is moved."""
    folder, _name = posixpath.split(orphan.file)
    layers = graph.chain(next(n for n, f in graph.found.items() if f.identity == orphan.identity))
    return Record(
        id=ident,
        file=orphan.file,
        moved=f"{folder}/{FOLDER}/{ident}",
        domain=orphan.domain,
        when=now,
        until=now + days * _DAY,
        size=orphan.size,
        allocation=orphan.allocation,
        stamp=orphan.stamp,
        below=tuple(Below(layer.file, layer.stamp) for layer in layers[1:]),
    )


def decide(seen: Names) -> Decision:
    """What the names mean when nobody is at work on them.

    ``drop``: it is not in the trash; a move had not begun, or a restore or a deletion had come to its end but for the record.
    ``take-back``: it has both names, because a move or a restore was cut; it stays at its old place, whichever it was.
    """
    if not seen.there:
        return "keep"
    if seen.moved is None:
        return "drop"
    return "take-back" if seen.old == seen.moved else "keep"


def due(records: Iterable[Record], now: float) -> list[Record]:
    """Those whose grace time has ended, oldest first."""
    return sorted((one for one in records if one.until <= now), key=lambda one: one.when)


def check_delete(one: Record, graph: images.Graph, seen: orphans.Seen) -> None:
    """``WouldHurt`` when somebody has begun to need the image, or what is missing at its old place."""
    gate.check_known(one.moved, graph)
    gate.check_removal(one.moved, graph)
    if graph.identity(one.file) is None:
        gate.check_removal(one.file, graph)
    if seen.problem:
        raise errors.FileFailed(act="remove", file=one.moved, reason=seen.problem)
    orphans.check_closed(one.moved, seen)


def check_restore(one: Record, stamps: Mapping[str, str], trash: Sequence[Record]) -> None:
    """``CannotRestore`` when it would not read as it did: an image below it is gone, or has been written to."""
    for below in one.below:
        found = stamps.get(below.file, "")
        if found == below.stamp:
            continue
        reason = f"'{below.file}' below it has been changed since"
        if not found:
            reason = f"'{below.file}' below it is gone"
            removed = next((other for other in trash if other.file == below.file), None)
            if removed:
                reason = f"'{below.file}' below it is in the trash: restore {removed.id} first"
        raise errors.CannotRestore(file=one.file, reason=reason)
