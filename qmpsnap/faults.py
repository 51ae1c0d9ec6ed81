"""Named crash points: the daemon dies at one on demand, so that tests can cut every operation everywhere.

``QMPSNAP_CRASH=NAME`` kills the process (SIGKILL to itself) at the point of that name; ``QMPSNAP_CRASH=NAME:hang`` stops it there
(SIGSTOP); ``QMPSNAP_CRASH=NAME:cut`` shuts down the connections to QEMU there, and the process goes on.
``QMPSNAP_CRASH_LOG=FILE`` appends the name of every point passed: a new verb joins the crash suite by existing.

A point's name is where it lies (``snapshot-create/transaction``, set with ``within``) and what has just happened there.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import socket
import threading
import weakref
from collections.abc import Iterator

_where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="")
_wanted, _, _how = os.environ.get("QMPSNAP_CRASH", "").partition(":")
_log = os.environ.get("QMPSNAP_CRASH_LOG", "")
_connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def connection(sock: socket.socket) -> None:
    """From now on ``:cut`` cuts it."""
    if _how == "cut":
        _connections.add(sock)


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """Points inside are named below ``where``; worker threads that trio starts inside inherit it."""
    token = _where.set(f"{_where.get()}{where}/")
    try:
        yield
    finally:
        _where.reset(token)


def point(name: str) -> None:
    """Does nothing, unless this point is the one where the process shall die, hang or be cut off; it is struck there once."""
    global _wanted
    if not _wanted and not _log:
        return
    full = _where.get() + name
    if _log:
        with open(_log, "a", encoding="utf-8") as log:
            log.write(full + "\n")
    if full == _wanted:
        _wanted = ""
        _strike()


def _strike() -> None:
    if _how == "hang":
        # To this thread: a signal to the process may be taken by another one, and this one goes on for a while.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif _how != "cut":
        os.kill(os.getpid(), signal.SIGKILL)
    for sock in _connections:
        with contextlib.suppress(OSError):  # it has been closed
            sock.shutdown(socket.SHUT_RDWR)  # from any thread: whoever reads finds the end
