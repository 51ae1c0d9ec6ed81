"""Named crash points: the daemon dies at one on demand, so that tests can cut every operation everywhere.

``QMPSNAP_CRASH=NAME`` kills the process (SIGKILL to itself) at the point of that name; ``QMPSNAP_CRASH=NAME:hang`` stops it there
(SIGSTOP). ``QMPSNAP_CRASH_LOG=FILE`` appends the name of every point passed: a new verb joins the crash suite by existing.

A point's name is where it lies (``snapshot-create/transaction``, set with ``within``) and what has just happened there.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
from collections.abc import Iterator

_where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="")
_wanted, _, _how = os.environ.get("QMPSNAP_CRASH", "").partition(":")
_log = os.environ.get("QMPSNAP_CRASH_LOG", "")


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """Points inside are named below ``where``; worker threads that trio starts inside inherit it."""
    token = _where.set(f"{_where.get()}{where}/")
    try:
        yield
    finally:
        _where.reset(token)


def point(name: str) -> None:
    """Does nothing, unless this point is the one where the process shall die or hang; it hangs there once."""
    global _wanted
    if not _wanted and not _log:
        return
    full = _where.get() + name
    if _log:
        with open(_log, "a", encoding="utf-8") as log:
            log.write(full + "\n")
    if full == _wanted:
        _wanted = ""
        os.kill(os.getpid(), signal.SIGSTOP if _how == "hang" else signal.SIGKILL)
