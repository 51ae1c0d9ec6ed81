"""How far a job is: virsh 9.0.0's line in a pipe, a bar with bytes, rate and time left on a terminal."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TextIO

    from rich.console import Console


def percent(current: int, total: int, *, finished: bool = False) -> int:
    """The share as virsh rounds it: down, and 100 only for a job that is over."""
    if finished:
        return 100
    return min(99, max(0, current) * 100 // total) if total > 0 else 0


class Silent:
    """Shows nothing; also what the others promise.

    ``update`` takes each state of the job; ``finished`` is told once, when the job ended well. Leaving the ``with``
    gives the line back.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def update(self, current: int, total: int) -> None:
        pass

    def finished(self) -> None:
        pass

    def close(self) -> None:
        pass


class Line(Silent):
    """``\\rBlock Pull: [ 55 %]`` at every change of the percentage."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._shown = -1

    def update(self, current: int, total: int) -> None:
        self._show(percent(current, total))

    def finished(self) -> None:
        self._show(100)

    def _show(self, value: int) -> None:
        if value != self._shown:
            self._shown = value
            self._stream.write(line(self._label, value))
            self._stream.flush()


def line(label: str, value: int) -> str:
    """virsh's progress text."""
    return f"\r{label}: [{value:3d} %]"


class Bar(Silent):
    """A bar that redraws itself, with bytes, rate and time left."""

    def __init__(self, label: str, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task(label, total=None)
        self._progress.start()

    def update(self, current: int, total: int) -> None:
        self._progress.update(self._task, completed=current, total=total or None)

    def finished(self) -> None:
        task = self._progress.tasks[0]
        total = task.total or task.completed or 1
        self._progress.update(self._task, completed=total, total=total)

    def close(self) -> None:
        self._progress.stop()


def begin(label: str, *, verbose: bool) -> Silent:
    """The display that fits what stderr is."""
    if not verbose or sys.stderr is None:
        return Silent()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Bar(label)
    return Line(label, sys.stderr)
