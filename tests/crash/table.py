"""docs/crash-points.md: the points of a run, and what recovery was seen to do after each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FILE = Path(__file__).parent.parent.parent / "docs" / "crash-points.md"

#: Above it the file is written by hand.
_MARK = "<!-- From here on written by the suite: QMPSNAP_CRASH_DOC=write pytest tests/crash/test_points.py -k docs -->\n"

_RECOVERY = re.compile(r'event=Recovery .* way=(?:"([^"]*)"|(\S+)) reason=(?:"([^"]*)"|(\S+))')


def recovered(log: str) -> str:
    """What the daemon's log says that recovery did; "" when there was nothing to do."""
    found = _RECOVERY.search(log)
    if found is None:
        return ""
    way, reason = found[1] or found[2], found[3] or found[4]
    if way.startswith("goes on"):
        way = "finished"
    # How far the job had come by then is a matter of time.
    reason = re.sub(r"the job is (created|running|waiting|pending)", "the job is followed again", reason)
    return f"{way}: {reason}"


def build(
    runs: Mapping[str, tuple[Sequence[str], Sequence[Mapping[str, str]]]], faults: Sequence[str]
) -> str:
    """The tables, by scenario: its points in order, and for each fault what was done after each."""
    lines = []
    for scenario, (points, done) in runs.items():
        lines += ["", f"## {scenario}", ""]
        lines += [f"| point | {' | '.join(faults)} |", f"|{'---|' * (len(faults) + 1)}"]
        columns = [_told(points, column) for column in done]
        for point in _sorted(points):
            lines.append(f"| `{point}` | {' | '.join(column[point] for column in columns)} |")
    return "\n".join(lines) + "\n"


def _sorted(points: Sequence[str]) -> Iterator[str]:
    """Overlays are made at the same time: one after the other in the table."""
    for at_once, group in itertools.groupby(points, key=lambda point: "/overlay-" in point):
        yield from sorted(group, key=lambda point: point.split("/")[1] if at_once else "")


def _told(points: Sequence[str], done: Mapping[str, str]) -> dict[str, str]:
    """Where nothing was to be done, it was too early or too late."""
    busy = [n for n, point in enumerate(points) if done.get(point)]
    first = busy[0] if busy else len(points)
    return {
        p: done.get(p) or ("nothing was begun" if n < first else "all was done") for n, p in enumerate(points)
    }


def read() -> str:
    """The part of the file that the suite writes."""
    return FILE.read_text().partition(_MARK)[2]


def write(tables: str) -> None:
    FILE.write_text(FILE.read_text().partition(_MARK)[0] + _MARK + tables)
