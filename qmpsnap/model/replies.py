"""What QMP answers and events must look like where we read them. The one place that tells an answer from nonsense.

Whoever reads a reply after this may index it without care: members that we read are there and have their types, numbers are
in QEMU's range, and edges lead to nodes. What we do not read is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from qmpsnap import errors

Check = Callable[[Any], None]
Column = Callable[[Iterable[Any]], None]

#: QAPI's integers: what is below is an error number, what is above no counter of 64 bits holds.
_LEAST, _MOST = -(2**63), 2**64 - 1

#: Names and states: QOM paths are the longest, with some 200 characters. They are shown, and kept for who reads slowly.
_LONGEST_WORD = 1024

#: File names (4 KiB for the kernel, as json: with all options and escapes some more) and reasons.
_LONGEST_TEXT = 64 * 1024

#: How many layers and filters one drive may have. QEMU's own JSON ends at 1024 (facts/qemu.md G), a chain of ours at 200.
_DEEPEST = 1024


def check(command: str, value: Any) -> None:
    """``MonitorGarbage`` when this cannot be the answer to the command."""
    _run(_ANSWERS.get(command), value, f"answer to {command}")


def check_event(name: str, data: Mapping[str, Any]) -> None:
    """``MonitorGarbage`` when the event cannot have these data."""
    _run(_EVENTS.get(name), data, f"event {name}")


def _run(wanted: Check | None, value: Any, what: str) -> None:
    if wanted is None:
        return
    try:
        wanted(value)
    except KeyError as error:
        why = f"lacks {error.args[0]!r:.40}"
    except (TypeError, AttributeError, IndexError):
        why = "holds the wrong types"
    except ValueError as error:
        why = str(error)
    else:
        return
    raise errors.MonitorGarbage(reason=f"{what} {why}", excerpt=_excerpt(value))


def _excerpt(value: Any) -> str:
    """The start of a value, short and on one line; never all of it: it may have megabytes."""
    if isinstance(value, Mapping):
        value = {key: _brief(inner) for key, inner in list(value.items())[:4]}
    elif isinstance(value, list):
        value = [_brief(inner) for inner in value[:4]]
    return ascii(_brief(value))[:80]


def _brief(value: Any) -> Any:
    if isinstance(value, str):
        return value[:40]
    return value if isinstance(value, int | float | bool | None) or len(value) < 5 else type(value)


# Columns instead of rows: a graph at depth 200 has 1000 rows, and is asked for again and again.


def _are(kind: type, values: Iterable[Any]) -> None:
    """All are exactly of that type: to Python True is an int."""
    if not set(map(type, values)) <= {kind}:
        raise TypeError


def _flags(values: Iterable[Any]) -> None:
    _are(bool, values)


def _objects(values: Iterable[Any]) -> None:
    _are(dict, values)


def _numbers(values: Iterable[Any]) -> None:
    found = list(values)
    _are(int, found)
    if found and not (min(found) >= _LEAST and max(found) <= _MOST):
        raise ValueError("holds a number out of range")


def _texts(values: Iterable[Any], longest: int = _LONGEST_TEXT) -> None:
    found = list(values)
    _are(str, found)
    if found and max(map(len, found)) > longest:
        raise ValueError(f"holds a text longer than {longest} characters")


def _words(values: Iterable[Any]) -> None:
    _texts(values, _LONGEST_WORD)


def _rows(rows: Any, column: Column = _objects, *members: str) -> None:
    """A list of objects that all have these members, each such a column."""
    _are(list, [rows])
    _objects(rows)
    for member in members:
        column(map(itemgetter(member), rows))


def _optional(rows: Sequence[Mapping[str, Any]], column: Column, *members: str) -> None:
    """Where rows have these members, they are such columns."""
    for member in members:
        column(row[member] for row in rows if member in row)


def _chain(top: Mapping[str, Any], below: str) -> list[Mapping[str, Any]]:
    """What hangs below each other, as a list; at the top there is something."""
    _objects([top])
    found: list[Mapping[str, Any]] = []
    at: Any = top
    while at is not None:
        _are(dict, [at])
        found.append(at)
        if len(found) > _DEEPEST:
            raise ValueError(f"is deeper than {_DEEPEST} layers")
        at = at.get(below)
    return found


def _one(column: Column, *members: str) -> Check:
    """An object with these members."""
    return lambda value: _rows([value], column, *members)


def _migration(value: Any) -> None:
    _rows([value])
    _optional([value], _words, "status")


def _block_jobs(value: Any) -> None:
    _rows(value, _words, "device", "type", "status")
    _rows(value, _numbers, "offset", "len", "speed")
    _rows(value, _flags, "ready")
    _optional(value, _flags, "auto-dismiss")
    _optional(value, _texts, "error")


def _jobs(value: Any) -> None:
    _rows(value, _words, "id")
    _optional(value, _texts, "error")


def _graph(value: Any) -> None:
    nodes, edges = value["nodes"], value["edges"]
    _rows(nodes, _words, "name", "type")
    _rows(nodes, _numbers, "id")
    _rows(edges, _words, "name")
    _rows(edges, _numbers, "parent", "child")
    ids = set(map(itemgetter("id"), nodes))
    if not {*map(itemgetter("parent"), edges), *map(itemgetter("child"), edges)} <= ids:
        raise ValueError("has an edge to a node that it does not have")


def _block(value: Any) -> None:
    _rows(value)
    _optional(value, _words, "qdev", "device")
    inserted = [row["inserted"] for row in value if "inserted" in row]
    _rows(inserted, _words, "node-name")
    _rows(inserted, _flags, "ro")
    _optional(inserted, _words, "detect_zeroes")
    _optional(inserted, _objects, "cache")
    _optional([row["cache"] for row in inserted if "cache" in row], _flags, "direct", "no-flush")
    images = [image for row in inserted for image in _chain(row["image"], "backing-image")]
    _rows(images, _texts, "filename")
    _rows(images, _words, "format")
    _rows(images, _numbers, "virtual-size")
    _optional(images, _texts, "backing-filename")
    _optional(images, _objects, "format-specific")
    _optional([row["format-specific"] for row in images if "format-specific" in row], _objects, "data")


def _stats(value: Any) -> None:
    _rows(value)
    _optional(value, _words, "qdev")
    _optional([layer for row in value for layer in _chain(row, "backing")], _words, "node-name")


#: The answers that we read, by command.
_ANSWERS: dict[str, Check] = {
    "query-status": _one(_words, "status"),
    "query-migrate": _migration,
    "query-block-jobs": _block_jobs,
    "query-jobs": _jobs,
    "x-debug-query-block-graph": _graph,
    "query-block": _block,
    "query-blockstats": _stats,
    "query-uuid": _one(_words, "UUID"),
    "query-memory-size-summary": _one(_numbers, "base-memory"),
    "query-cpus-fast": _rows,
    "query-target": _one(_words, "arch"),
    "qom-get": lambda value: _words([value]),
}


def _job_ended(data: Any) -> None:
    _rows([data], _words, "device")
    _rows([data], _numbers, "offset", "len")
    _optional([data], _texts, "error")


#: The events that we read. Of all others only the name counts.
_EVENTS: dict[str, Check] = {
    "JOB_STATUS_CHANGE": _one(_words, "id", "status"),
    "BLOCK_JOB_COMPLETED": _job_ended,
    "BLOCK_JOB_CANCELLED": _job_ended,
}
