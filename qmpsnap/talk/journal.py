"""The journal: what was decided, on disk before the first act. One file for each operation; none when nothing is open. Blocking.

An entry says its version. One of an older daemon is read; one that we cannot read whole is left alone, and blocks its domain:
what it began is neither known nor guessed.
"""

from __future__ import annotations

import json
import os
from typing import Any

import attrs

from qmpsnap import errors, faults, paths
from qmpsnap.plan import codec, steps
from qmpsnap.talk import files

#: Of an entry's own fields, the plan has one of its own (``codec.VERSION``). An entry that does not say it is of version 1.
VERSION = 1

#: What must be free before anything is begun: the records of an operation are written when QEMU has switched already.
_ROOM = 256 * 1024

_FIELDS = frozenset({"version", "operation", "started", "plan"})


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
        """The plan is on disk, durable. A crash right here finds an intent of which nothing was done.

        ``FileFailed`` when it is not there; ``Incomplete`` when it is, and neither could be made durable nor removed.
        """
        value = {"operation": entry.operation, "started": entry.started, "plan": codec.dump(entry.plan)}
        content = json.dumps({"version": VERSION, **value})
        path = self._file(entry.plan.domain, entry.operation)
        files.check_room(self.paths.journal, _ROOM)
        files.make_folder(self.paths.journal_dir(entry.plan.domain), 0o700)
        with faults.within("journal"):
            try:
                files.replace([files.Write(path, content.encode())], self.paths.tmp)
            except errors.FileFailed as error:
                _withdraw(path, error)
                raise

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
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            pass
        except OSError as error:
            bad.append(errors.BadJournal(file=folder, reason=os.strerror(error.errno or 0)))
        for name in names:
            try:
                found.append(_read(folder, name, domain))
            except errors.BadJournal as error:
                bad.append(error)
        return sorted(found, key=lambda entry: entry.started), bad


def _withdraw(path: str, error: errors.FileFailed) -> None:
    """What was refused because it could not be made durable must not be carried out at the next start."""
    try:
        files.remove(path)
    except errors.FileFailed:
        if os.path.lexists(path):
            reason = f"{error}; recovery goes on, see: qmpsnap wait {os.path.basename(path)}"
            raise errors.Incomplete(reason=reason) from error


def _read(folder: str, name: str, domain: str) -> Entry:
    path = f"{folder}/{name}"
    try:
        with open(path, "rb") as file:
            value = json.load(file)
        return _entry(value, name, domain)
    except OSError as error:
        raise errors.BadJournal(file=path, reason=os.strerror(error.errno or 0)) from error
    except (ValueError, RecursionError) as error:
        raise errors.BadJournal(file=path, reason=str(error)) from error


def _entry(value: Any, name: str, domain: str) -> Entry:
    """``ValueError`` says why it is not the entry of that operation and domain."""
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - one kind of error for whatever is wrong with a file
    version = value.get("version", 1)
    if version != VERSION:
        raise ValueError(f"it has version {version!r}, this qmpsnap knows {VERSION}")
    if missing := _FIELDS - {"version"} - value.keys():
        raise ValueError(f"{min(missing)} is missing")
    if unknown := value.keys() - _FIELDS:
        raise ValueError(f"its field {min(unknown)!r} is unknown")
    plan, started = codec.load(value["plan"]), value["started"]
    if (value["operation"], plan.domain) != (name, domain):
        raise ValueError(f"it is operation {value['operation']!r} of domain '{plan.domain}'")
    if not isinstance(started, int | float):
        raise ValueError(f"started is {started!r}")  # noqa: TRY004 - as above
    return Entry(name, float(started), plan)
