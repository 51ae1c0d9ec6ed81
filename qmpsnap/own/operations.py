"""Operations: our work for one request, from the moment it is accepted until somebody has heard how it ended.

An operation belongs to its domain's task; whoever asked only watches. Its end is also written to ``run/operation``, without a
flush: a client that waits through a restart of the daemon finds it there, and after a restart of the host there is no client.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import trio

from qmpsnap import errors
from qmpsnap.plan import requests, steps

State = Literal["running", "recovering", "done", "failed"]

#: Characters of an error's message and of each of its facts: two of the kernel's longest paths.
LONGEST = 8192

#: Ends that are remembered, in memory and on disk.
KEPT = 512


def new_id() -> str:
    """Never used twice: node and job names are made of it, and they must fit into 31 bytes (facts/qemu.md 20)."""
    return secrets.token_hex(6)


class Operation:
    """One request being carried out. ``idle`` is set while no task acts for it; ``planned`` once it is decided or refused."""

    def __init__(
        self, domain: str, verb: str, request: requests.Request | None, ident: str, started: float
    ) -> None:
        self.id = ident
        self.domain = domain
        self.verb = verb
        self.request = request
        self.started = started
        self.finished: float | None = None
        self.state: State = "running"
        self.plan: steps.Plan | None = None
        self.result: Mapping[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.texts: list[str] | None = None
        self.progress: tuple[int, int] = (0, 0)
        self.aborted = False
        self.planned = trio.Event()
        self.idle = trio.Event()
        self.idle.set()
        self._changed = trio.Event()
        self.on_change: Callable[[Operation], None] = lambda operation: None

    @property
    def ended(self) -> bool:
        return self.state in {"done", "failed"}

    @property
    def open(self) -> bool:
        """It is in the journal: something may have been begun."""
        return self.plan is not None and not self.ended

    def wire(self) -> dict[str, Any]:
        """The operation as docs/control-protocol.md has it."""
        current, total = self.progress
        return {
            "id": self.id,
            "domain": self.domain,
            "verb": self.verb,
            "state": self.state,
            "started": self.started,
            "finished": self.finished,
            "progress": {"current": current, "total": total},
            "result": dict(self.result) if self.result is not None else None,
            "error": self.error,
            "plan": {"steps": self.texts} if self.texts is not None else None,
        }

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self.on_change(self)

    def changed_event(self) -> trio.Event:
        """Set at the next change: to be fetched before the state is read, so that none is missed."""
        return self._changed

    async def wait_ended(self) -> None:
        """Returns at the end, or once the rest is left to recovery: then ``error`` says so."""
        while not self.ended and self.error is None:
            await self._changed.wait()

    def progressed(self, current: int, total: int) -> None:
        if (current, total) != self.progress:
            self.progress = (current, total)
            self._change()

    def done(self, result: Mapping[str, Any], texts: list[str] | None = None) -> None:
        self.state, self.result, self.texts, self.error = "done", result, texts, None
        self._end()

    def failed(self, error: errors.Error) -> None:
        self.state, self.error = "failed", wire_error(error)
        self._end()

    def recovering(self, error: errors.Error | None = None) -> None:
        """The outcome is unknown, or the rest waits for recovery; with ``error`` whoever waits is told now."""
        self.state = "recovering"
        self.error = wire_error(error) if error else self.error
        self._change()

    def resumed(self) -> None:
        self.state, self.error = "running", None
        self._change()

    def _end(self) -> None:
        self.finished = time.time()
        self.planned.set()
        self._change()


def wire_error(error: errors.Error) -> dict[str, Any]:
    """An error as docs/control-protocol.md has it."""
    kinds = (
        errors.Refused,
        errors.Busy,
        errors.CommandFailed,
        errors.Disconnected,
        errors.Incomplete,
        errors.Corrupt,
    )
    kind = next((k.code for k in kinds if isinstance(error, k)), "error")
    facts = {
        key: _short(value) if isinstance(value, str) else value
        for key, value in error.facts.items()
        if isinstance(value, str | int | float | bool | None)
    }
    message = _short(str(error))
    return {"code": error.code, "kind": kind, "message": message, "status": error.status, "facts": facts}


def _short(text: str) -> str:
    """The text, without the middle of one that nobody would read: a request of 1 MB can have a name of 1 MB."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}[...]{text[-LONGEST // 2 :]}"


class Operations:
    """Every operation that somebody may still ask for, by id."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._all: dict[str, Operation] = {}
        self._written = 0
        self._watchers: list[Callable[[Operation], None]] = []

    def watch(self, watcher: Callable[[Operation], None]) -> None:
        self._watchers.append(watcher)

    def new(self, domain: str, verb: str, request: requests.Request | None, ident: str = "") -> Operation:
        return self.adopt(Operation(domain, verb, request, ident or new_id(), time.time()))

    def adopt(self, operation: Operation) -> Operation:
        """The operation can be asked for by id from now on."""
        operation.on_change = self._changed
        self._all[operation.id] = operation
        ended = [o.id for o in self._all.values() if o.ended]
        for ident in ended[: max(0, len(ended) - KEPT)]:
            del self._all[ident]
        return operation

    def known(self, ident: str) -> Operation | None:
        """The operation, if this daemon has heard of it."""
        return self._all.get(ident)

    def get(self, ident: str) -> Operation | dict[str, Any]:
        """The operation, or how it ended while an earlier daemon ran; ``NoOperation``."""
        if found := self._all.get(ident):
            return found
        if ident.isalnum():
            try:
                with open(f"{self._folder}/{ident}", encoding="utf-8") as file:
                    return dict(json.load(file))
            except (OSError, ValueError) as error:  # not there, or cut by a crash of the host
                raise errors.NoOperation(operation=ident) from error
        raise errors.NoOperation(operation=ident)

    def of(self, domain: str) -> list[Operation]:
        return [operation for operation in self._all.values() if operation.domain == domain]

    def _changed(self, operation: Operation) -> None:
        for watcher in self._watchers:
            watcher(operation)

    def remember(self, operation: Operation, outcome: Mapping[str, Any]) -> None:
        """Blocking. Writes down how it will be said to have ended, before the journal forgets it."""
        # After a boot of the host the directory is not there, and qemu-launch may settle this before any daemon runs.
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        path = f"{self._folder}/{operation.id}"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(outcome, file)
        os.rename(f"{path}.new", path)
        self._written += 1
        if self._written % KEPT == 0:
            self.prune()

    def prune(self) -> None:
        """Blocking. All but the newest ends are forgotten on disk."""
        entries = sorted(os.scandir(self._folder), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in entries[:-KEPT]:
            os.unlink(entry.path)
