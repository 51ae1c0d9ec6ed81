"""What can happen to a host: values, with images by the last part of their names, so that the same history drives the double
and the real thing."""

from __future__ import annotations

import attrs


@attrs.frozen
class Cut:
    """Somebody dies at the ``at``-th point that is passed: the daemon, QEMU, both, or the host with everything.

    ``wrote``: the guest has written and flushed just before (of the host's or QEMU's death), or does so while the daemon is away.
    ``chance`` decides what happens to be on disk of what nobody has flushed.
    """

    at: int
    who: str
    wrote: int = 0
    chance: int = 0


@attrs.frozen
class Create:
    """snapshot-create of the disks ``files`` (target, overlay or "" for the usual name); the others are left out."""

    domain: str
    name: str
    files: tuple[tuple[str, str], ...]
    reuse: bool = False
    metadata: bool = True
    cuts: tuple[Cut, ...] = ()


@attrs.frozen
class Pull:
    """blockpull of the layer ``top``, down to ``base`` ("" for all)."""

    domain: str
    top: str
    base: str
    cuts: tuple[Cut, ...] = ()


@attrs.frozen
class Current:
    domain: str
    name: str
    cuts: tuple[Cut, ...] = ()


@attrs.frozen
class Forget:
    domain: str
    name: str
    children: bool
    cuts: tuple[Cut, ...] = ()


@attrs.frozen
class Trash:
    """An image is removed, if the gate lets it go."""

    file: str


@attrs.frozen
class Write:
    """The guest writes a block, and flushes."""

    domain: str
    owner: str
    block: int
    value: int


@attrs.frozen
class Boot:
    """The machine starts on these disks (owner, file): as qemu-launch does it, or by whatever command line."""

    domain: str
    disks: tuple[tuple[str, str], ...]
    launched: bool = True


@attrs.frozen
class Off:
    """The machine ends: in good order, or not."""

    domain: str
    killed: bool
    chance: int = 0


@attrs.frozen
class Restart:
    """The daemon is killed while nothing is under way, and starts again."""


@attrs.frozen
class Overlay:
    """An outsider makes an empty overlay: to be used by a snapshot, or as a linked clone."""

    file: str
    backing: str


@attrs.frozen
class HandSnapshot:
    """An outsider makes a snapshot over another monitor."""

    domain: str
    owner: str
    file: str


@attrs.frozen
class HandStream:
    domain: str
    top: str
    base: str


@attrs.frozen
class HandCommit:
    """An outsider commits the layers from ``top`` down to ``base``, and pivots where ``top`` is active."""

    domain: str
    top: str
    base: str


@attrs.frozen
class HandWrite:
    """An outsider writes to an image that nobody has open."""

    file: str
    block: int
    value: int


@attrs.frozen
class HandRemove:
    """An outsider removes a file without asking anybody."""

    file: str


Verb = Create | Pull | Current | Forget
Meddling = HandSnapshot | HandStream | HandCommit | HandWrite | HandRemove
Action = Verb | Trash | Write | Boot | Off | Restart | Overlay | Meddling


def by_outsider(action: Action) -> bool:
    """Whether the action may change what others rely on."""
    return isinstance(action, Meddling) or (isinstance(action, Boot) and not action.launched)
