"""Ctrl-C while a job runs: held back where an answer must not be lost, an exception where we wait."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self


class HeldInterrupts:
    """Holds SIGINT back until ``release``; the pull that a request starts is known by its answer only.

    After ``release`` a SIGINT, also one that came before it, raises KeyboardInterrupt. Leaving the ``with`` puts the
    previous handler back.
    """

    def __init__(self) -> None:
        self._came = False
        self._held = True

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def release(self) -> None:
        self._held = False
        if self._came:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if not self._held:
            raise KeyboardInterrupt
