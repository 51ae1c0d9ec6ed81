"""What people ask for, as values: the bodies of the control API (docs/control-protocol.md), strict."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class DiskSpec:
    """What to do with one disk in a snapshot; without ``file`` the overlay is named as libvirt names it."""

    target: str
    snapshot: Literal["external", "no"] = "external"
    file: str = ""
    driver: str = "qcow2"


@attrs.frozen
class SnapshotCreate:
    """A disk-only external snapshot of all disks, but for those that ``disks`` leaves out, at one instant."""

    name: str = ""
    description: str = ""
    disks: tuple[DiskSpec, ...] = ()
    reuse_external: bool = False
    no_metadata: bool = False
    dry_run: bool = False


@attrs.frozen
class Pull:
    """The layer ``disk`` (a target, an image's path, or ``vda[1]``) takes in what lies between it and ``base`` (nothing: all).

    ``bandwidth`` in bytes per second, 0 is unlimited.
    """

    disk: str
    base: str | None = None
    bandwidth: int = 0
    dry_run: bool = False


@attrs.frozen
class SetCurrent:
    name: str


@attrs.frozen
class Forget:
    """The metadata of a snapshot goes; no image is touched. ``children``: its descendants' too; ``children_only``: only theirs."""

    name: str
    children: bool = False
    children_only: bool = False


@attrs.frozen
class Accept:
    """What is there is right: the layers that run, and the images that somebody has written to."""

    dry_run: bool = False


Request = SnapshotCreate | Pull | SetCurrent | Forget | Accept
