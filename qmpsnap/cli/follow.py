"""Wait for an operation of the daemon, also across a restart of the daemon.

The operation lives in the daemon and in its journal: whoever waits may leave, and come back with its id.
"""

from __future__ import annotations

import time

from qmpsnap.cli.client import Document, answered, segment
from qmpsnap.cli.failure import Answered, DeadlinePassed, Failure, Lost, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qmpsnap.cli import progress
    from qmpsnap.cli.client import Client

# A daemon that is upgraded is back within seconds; one that is not back by then needs a person.
PATIENCE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


def is_over(operation: Document, *, to_the_end: bool = False) -> bool:
    """Whether whoever waits has heard all: the operation ended, or its rest is left to the daemon's recovery.

    The latter is told by an error beside ``recovering``; it may last until QEMU answers again, so only those who
    want to wait ``to_the_end`` go on.
    """
    if operation["state"] in ("done", "failed"):
        return True
    return operation["state"] == "recovering" and operation["error"] is not None and not to_the_end


class Forgotten(Failure):
    """The daemon does not know the operation any more; exit status 2."""

    def __init__(self, operation: str, reason: str) -> None:
        look = f"the outcome of operation {operation} is unknown; to look at the chains: qmpsnap snapshot-list --chain"
        super().__init__(reason, look, status=2)


class Unknown(Failure):
    """The daemon cannot be asked how the operation ended, or whether it did; exit status 2."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(
            reason,
            f"the outcome of operation {operation} is unknown; it goes on while the daemon runs; "
            f"to look again: qmpsnap wait {operation}",
            status=2,
        )


def follow(
    client: Client,
    operation: Document,
    on_change: Callable[[Document], None] = lambda operation: None,
    *,
    deadline: float | None = None,
    patience: float = PATIENCE,
    to_the_end: bool = False,
) -> Document:
    """The operation in the state in which it is over (see there); ``on_change`` gets every state that comes after this one.

    A lost daemon is given ``patience`` seconds to come back, then Unknown is raised. DeadlinePassed is raised when
    the monotonic clock reaches ``deadline``.
    """
    pause, lost_since = _FIRST_PAUSE, None
    while not is_over(operation, to_the_end=to_the_end):
        reason = "the daemon ended the stream of events before the operation's end"
        try:
            for latest in _states(client, operation["id"], deadline):
                operation, lost_since, pause = latest, None, _FIRST_PAUSE
                on_change(operation)
                if is_over(operation, to_the_end=to_the_end):
                    return operation
        except (Lost, Unreachable) as e:
            reason = e.lines[-1]
        except Answered as e:
            raise Forgotten(operation["id"], e.lines[0]) from e
        now = time.monotonic()
        lost_since = now if lost_since is None else lost_since
        if now - lost_since >= patience:
            raise Unknown(operation["id"], reason)
        _sleep(pause, deadline)
        pause = min(pause * 2, _LONGEST_PAUSE)
    return operation


def _sleep(pause: float, deadline: float | None) -> None:
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        pause = min(pause, left)
    time.sleep(pause)


def change(client: Client, method: str, target: str, body: dict[str, object] | None = None) -> Document:
    """Asks for a change and waits for its end: the operation when it is done; raises the daemon's error when it failed."""
    operation: Document | None = None
    try:
        for operation in client.change(method, target, body):
            if is_over(operation):
                break
    except Lost:
        if operation is None:
            raise
    if operation is None:
        raise Lost("the daemon answered without an operation", status=2)
    operation = follow(client, operation)
    if operation["state"] != "done":
        raise failure(operation)
    return operation


def shown_on(display: progress.Silent) -> Callable[[Document], None]:
    """An ``on_change`` that shows progress while the operation runs, and 100 % only when it is done."""

    def show(operation: Document) -> None:
        if operation["state"] == "done":
            display.finished()
        elif operation["state"] != "failed":
            display.update(operation["progress"]["current"], operation["progress"]["total"])

    return show


def failure(operation: Document) -> Failure:
    """The error that an operation ended with, or that it goes on with."""
    error = operation["error"]
    if not isinstance(error, Document):
        error = Document(message=f"operation {operation['id']} failed")
    found = answered(error)
    if operation["state"] == "failed" or operation["id"] in found.lines[0]:
        return found
    goes_on = f"operation {operation['id']} goes on in the daemon: qmpsnap wait {operation['id']}"
    return Failure(*found.lines, goes_on, status=found.status)


def _states(client: Client, name: str, deadline: float | None) -> Iterator[Document]:
    """The operation's states as they come, then the one it is in; raises Lost when the daemon cannot say, for now."""
    target = f"/v1/operations/{segment(name)}"
    try:
        yield from _streamed(client, target, deadline)
    except Answered as e:
        if e.code == "no-operation":
            raise
        raise Lost(*e.lines) from e


def _streamed(client: Client, target: str, deadline: float | None) -> Iterator[Document]:
    yield from client.events(f"{target}/events", deadline)
    # A stream that ends early is a daemon that stops, or an operation that ended before we came.
    yield client.get(target)
