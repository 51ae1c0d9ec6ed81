"""The journal: what was decided, on disk before the first act. One file for each operation; none when nothing is open. Blocking."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import attrs

from qmpsnap import errors, faults, paths
from qmpsnap.plan import codec, steps
from qmpsnap.talk import files


@attrs.frozen
class Entry:
    """An operation that was begun and has not ended."""

    operation: str
    started: float
    plan: steps.Plan


@attrs.frozen
class Journal:
    """The journal of one state directory."""

    paths: paths.Paths

    def _file(self, domain: str, operation: str) -> str:
        return f"{self.paths.journal_dir(domain)}/{operation}"

    def begin(self, entry: Entry) -> None:
        """The plan is on disk, durable. A crash right here finds an intent of which nothing was done."""
        content = json.dumps(
            {"operation": entry.operation, "started": entry.started, "plan": codec.dump(entry.plan)}
        )
        files.make_folder(self.paths.journal_dir(entry.plan.domain), 0o700)
        path = self._file(entry.plan.domain, entry.operation)
        with faults.within("journal"):
            files.replace([files.Write(path, content.encode())], self.paths.tmp)

    def end(self, domain: str, operation: str) -> None:
        """The operation is over, durable: were it only gone from memory, a host crash would bring it back, and recovery would
        finish it over what came later."""
        files.remove(self._file(domain, operation))
        faults.point("journal/ended")

    def open(self, domain: str) -> tuple[list[Entry], list[errors.Error]]:
        """What was begun and has not ended, oldest first, and what cannot be read: that blocks the domain until a person looks."""
        found: list[Entry] = []
        bad: list[errors.Error] = []
        folder = self.paths.journal_dir(domain)
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(folder))
        for name in names:
            try:
                found.append(_read(f"{folder}/{name}"))
            except errors.BadJournal as error:
                bad.append(error)
        return sorted(found, key=lambda entry: entry.started), bad


def _read(path: str) -> Entry:
    try:
        with open(path, "rb") as file:
            value: dict[str, Any] = json.load(file)
        return Entry(str(value["operation"]), float(value["started"]), codec.load(value["plan"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.BadJournal(file=path, reason=str(error)) from error
