"""What must never be booted: an image that something else reads through.

QEMU starts on it without a word, and from the first write on the overlay above reads as a mix of two timelines, in which
`qemu-img check` finds nothing wrong (facts/qemu.md I).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from qemu_launch import images, prefix
from qmpsnap import errors


@attrs.frozen
class Need:
    """Why an image must stay as it is. ``state``: it is itself the state of a snapshot, not something below one."""

    reason: str
    format: str
    state: bool = False


def check(
    written: Iterable[images.Image],
    identify: Mapping[str, prefix.Identity | None],
    needs: Mapping[prefix.Identity, Need],
    own: Iterable[prefix.Identity],
) -> None:
    """Nothing, or ``ImageNeeded`` for the first image that is opened for writing though others need it unchanged.

    ``own`` are the active layers of the machine itself: the newest acknowledged state is booted even where old metadata claims
    it as a snapshot's, because then that snapshot is what is already lost.
    """
    active = set(own)
    for image in written:
        identity = identify[image.file]
        need = needs.get(identity) if identity is not None and image.written else None
        if need is not None and not (need.state and identity in active):
            raise errors.ImageNeeded(file=image.file, reason=need.reason, format=need.format or "FORMAT")
