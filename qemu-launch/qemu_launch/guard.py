"""What must never be booted: an image that something else reads through.

QEMU starts on it without a word, and from the first write on the overlay above reads as a mix of two timelines, in which
`qemu-img check` finds nothing wrong (facts/qemu.md I).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from qemu_launch import images
from qmpsnap import errors
from qmpsnap.model import images as model


def check(
    written: Iterable[images.Image],
    identify: Mapping[str, model.Identity | None],
    graph: model.Graph,
    own: Iterable[model.Identity],
    note: Callable[[str], None],
) -> None:
    """Nothing, or ``ImageNeeded`` for the first image that is opened for writing though others need it unchanged.

    ``own`` are the active layers of the machine itself: the newest acknowledged state is booted even where old metadata claims it
    as a snapshot's, and where an overlay of somebody's that was made before its last write claims it: what these need is already
    lost. ``note`` hears of the latter.
    """
    active = set(own)
    for image in written:
        identity = identify[image.file]
        for harm in graph.harms(identity) if identity is not None and image.written else ():
            if not harm.through and harm.need.kind in {"active", "overlay"}:
                continue  # as a disk it is meant to be written to
            if identity in active and not harm.through and harm.need.kind == "state":
                continue
            if identity in active and harm.need.kind == "image" and _stale(harm.need.what, identity, graph):
                note(
                    f"{harm.need.what} no longer shows what it did when it was made: {image.file} was written to since"
                )
                continue
            form = next(
                (f.format for f in graph.found.values() if f.identity == identity and f.format), "FORMAT"
            )
            raise errors.ImageNeeded(file=image.file, reason=str(harm), format=form)


def _stale(overlay: str, below: model.Identity, graph: model.Graph) -> bool:
    """The image was written to after the overlay was last: when that was made, or in the life of both."""
    written = max(f.written for f in graph.found.values() if f.identity == below)
    return graph.found[overlay].written < written
