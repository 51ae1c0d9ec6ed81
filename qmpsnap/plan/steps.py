"""Decided work as values: acts, steps, plans; and the same as JSON, which is what the journal holds.

A plan says everything that will be done before anything is done. Up to and with its ``commit`` step everything can be undone;
after it everything can be finished. Acts are safe to repeat: recovery may run one that was already carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from qmpsnap.model import chain


@attrs.frozen
class MakeOverlay:
    """An empty overlay appears at ``file``, complete or not at all, with owner, group and mode of ``like``; durable.

    It is made as ``temp`` in the same directory and linked to its name, which fails where the name exists: a file of somebody
    else is never written to, and after a crash whatever has the final name is whole.
    """

    file: str
    temp: str
    backing: str
    backing_format: str
    size: int
    like: str

    def __str__(self) -> str:
        return f"create overlay {self.file} over {self.backing} ({self.backing_format})"


@attrs.frozen
class RemoveOverlay:
    """``file`` is gone if it is an overlay of ``backing`` that holds no data and nobody has open; ``temp`` is gone."""

    file: str
    temp: str
    backing: str

    def __str__(self) -> str:
        return f"remove the empty overlay {self.file}"


@attrs.frozen
class TakeOverlay:
    """``file``, an overlay that the user has made, is as it was when it was looked at; nothing is done to it.

    ``stamp`` is how it is told later whether a guest has written to it.
    """

    file: str
    stamp: str

    def __str__(self) -> str:
        return f"take {self.file} as it is"


@attrs.frozen
class SyncFiles:
    """The host's dirty pages of the files are on disk, so that QEMU's flush inside the guest's pause is short."""

    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"flush {', '.join(self.files)}"


@attrs.frozen
class Command:
    """QEMU has carried out a QMP command. ``absent_ok``: that its object is not there is as good."""

    execute: str
    arguments: Mapping[str, Any]
    absent_ok: bool = False

    def __str__(self) -> str:
        return f"QMP {self.execute}"


@attrs.frozen
class ExpectActive:
    """A look at QEMU has shown that each target writes to the image ``overlays[target].file``.

    The layers are whole, so that the look needs to ask for nothing but names (60 ms saved at depth 200: facts/qemu.md G).
    """

    overlays: Mapping[str, chain.Layer]

    def __str__(self) -> str:
        return f"look: {', '.join(f'{t} writes to {layer.file}' for t, layer in self.overlays.items())}"


@attrs.frozen
class Record:
    """On disk, durable: the active layers (target to file and format) and the snapshot's metadata, if it has any.

    ``current`` names the snapshot that becomes the current one. ``fresh``: the images that hold the states of ``snapshots`` have
    just been frozen, and their fingerprints are taken.
    """

    active: Mapping[str, tuple[str, str]]
    snapshots: Mapping[str, str]
    current: str = ""
    remove: tuple[str, ...] = ()
    fresh: bool = False

    def __str__(self) -> str:
        parts = [f"{t} boots {file}" for t, (file, _format) in self.active.items()]
        parts += [f"write metadata of snapshot {name}" for name in self.snapshots]
        parts += [f"remove metadata of snapshot {name}" for name in self.remove]
        return f"record: {', '.join(parts) or 'nothing'}" + (
            f"; current is {self.current}" if self.current else ""
        )


@attrs.frozen
class Fingerprint:
    """The fingerprint of ``file``, which reads as before although it was written to, is recorded in each of ``snapshots`` whose
    state it holds, and with the domain's frozen layers if it is one; durable."""

    file: str
    snapshots: tuple[str, ...]

    def __str__(self) -> str:
        return f"record the fingerprint of {self.file}"


@attrs.frozen
class StartJob:
    """A job with that id exists in QEMU; it was tracked before the command, because its events outrun the reply."""

    job: str
    execute: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return f"QMP {self.execute} (job {self.job})"


@attrs.frozen
class AwaitJob:
    """The job is PENDING (its work is done, its result held back), or has ended (``until`` is "ended")."""

    job: str
    until: str

    def __str__(self) -> str:
        return f"wait until job {self.job} is {self.until}"


@attrs.frozen
class CancelJob:
    """The job is gone without effect on the chain, or had ended before."""

    job: str

    def __str__(self) -> str:
        return f"QMP job-cancel {self.job}"


@attrs.frozen
class Settle:
    """What QEMU holds of ``file`` is on disk, and it has been seen from outside to need none of the ``pulled`` layers below.

    ``pulled`` 0 means that only the flush is wanted.
    """

    file: str
    format: str
    pulled: int

    def __str__(self) -> str:
        return f"flush {self.file}" + (" and check it from outside" if self.pulled else "")


@attrs.frozen
class ExpectBacking:
    """A look at QEMU has shown the image ``base`` ("" for none) right below ``file``."""

    file: str
    base: str

    def __str__(self) -> str:
        return f"look: {self.file} has {self.base or 'nothing'} below it"


@attrs.frozen
class DropNodes:
    """The nodes, which we opened and nobody uses any more, are closed."""

    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"QMP blockdev-del {', '.join(self.nodes)}"


@attrs.frozen
class RebaseBack:
    """The header of ``file`` names ``backing`` again, contents untouched: the rescue of a pull that QEMU did not survive."""

    file: str
    backing: str
    backing_format: str

    def __str__(self) -> str:
        return f"qemu-img rebase -u {self.file} to {self.backing}"


Act = (
    MakeOverlay
    | RemoveOverlay
    | TakeOverlay
    | SyncFiles
    | Command
    | ExpectActive
    | Record
    | Fingerprint
    | StartJob
    | AwaitJob
    | CancelJob
    | Settle
    | ExpectBacking
    | DropNodes
    | RebaseBack
)


@attrs.frozen
class Step:
    """One act and what takes it back; ``name`` is what crash points and logs call it."""

    name: str
    act: Act
    undo: Act | None = None


@attrs.frozen
class Plan:
    """Decided work for one request. ``commit`` is the index of the step that makes it real: up to it undo, after it finish."""

    verb: str
    domain: str
    steps: tuple[Step, ...]
    commit: int
    # Disks that no other operation may touch until this one has ended.
    targets: tuple[str, ...] = ()
    # What the client is told at the end.
    result: Mapping[str, Any] = attrs.field(factory=dict)
    # From this step on other operations of the domain may run beside it (a pull takes hours); -1: never.
    detach: int = -1

    @property
    def undo(self) -> list[Step]:
        """The steps that take everything back, last first."""
        return [Step(f"undo-{s.name}", s.undo) for s in reversed(self.steps[: self.commit + 1]) if s.undo]

    @property
    def finish(self) -> list[Step]:
        """The steps after the commit point."""
        return list(self.steps[self.commit + 1 :])

    @property
    def texts(self) -> list[str]:
        """One line a step, for --dry-run."""
        return [str(step.act) for step in self.steps]
