"""Measurements taken in turn, and the table that compares them.

Absolute times say more of the host than of us, so every row is a ratio of medians whose samples alternate: whatever else the
host does meets all sides alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

Samples = dict[str, list[float]]

#: One act of one side: the seconds of everything that it measured, by name.
Way = Callable[[], Mapping[str, float]]


def interleave(rounds: int, ways: Sequence[Way], *, warm: int = 1) -> Samples:
    """Every way once a round, each round beginning with another; the first ``warm`` rounds are not counted."""
    found: Samples = {}
    for number in range(warm + rounds):
        place = number % len(ways)
        for way in (*ways[place:], *ways[:place]):
            for name, seconds in way().items():
                if number >= warm:
                    found.setdefault(name, []).append(seconds)
    return found


def timed(name: str, act: Callable[[], object]) -> Way:
    """The act as a way: its wall time."""

    def way() -> Mapping[str, float]:
        begin = time.perf_counter()
        act()
        return {name: time.perf_counter() - begin}

    return way


def merge(parts: Iterable[Samples]) -> Samples:
    """The samples of several rigs as one."""
    found: Samples = {}
    for part in parts:
        for name, values in part.items():
            found.setdefault(name, []).extend(values)
    return found


def median(samples: Samples, name: str) -> float | None:
    """The median, or None for what was not measured."""
    return statistics.median(samples[name]) if samples.get(name) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line: what we take, what the other takes (None when it is not there), and the most that the ratio may be."""

    what: str
    ours: float
    unit: str = "ms"
    against: str = ""
    theirs: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without goal, or without anything to compare with."""
        return None if self.goal is None or self.ratio is None else self.ratio <= self.goal

    def cells(self) -> list[str]:
        verdict = {True: "yes", False: "NO", None: ""}[self.met]
        theirs = "" if self.theirs is None else f"{_number(self.theirs)} {self.unit}"
        return [
            self.what,
            f"{_number(self.ours)} {self.unit}",
            self.against,
            theirs,
            "" if self.ratio is None else f"{self.ratio:.2f}",
            "" if self.goal is None else f"<= {self.goal:.2f}",
            verdict,
        ]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def compare(
    samples: Samples, what: str, ours: str, against: str, theirs: str, goal: float | None = None
) -> Row:
    """The row of two measured names, in milliseconds."""
    mine, other = median(samples, ours), median(samples, theirs)
    assert mine is not None, ours
    return Row(what, mine * 1e3, "ms", against, None if other is None else other * 1e3, goal)


_HEAD = ["what", "qmpsnap", "against", "", "ratio", "goal", "met"]
_LEFT = {0, 2, 6}


def table(rows: Sequence[Row]) -> str:
    """The rows, in columns."""
    cells = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
