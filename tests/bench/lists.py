"""What a process costs that only asks: its start, a list, a tree."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.bench import sides, timing
from tests.bench.rig import Rig

_SNAPSHOTS = 100


def start(rig: Rig) -> Iterator[timing.Row]:
    """The client's start, which most of its time is."""
    ways = [
        timing.timed("ours", lambda: sides.run(rig.daemon.command("--version"), rig.daemon.env)),
        timing.timed("python", lambda: sides.run([sys.executable, "-c", "pass"], rig.daemon.env)),
    ]
    libvirtd = rig.libvirtd
    if libvirtd:
        ways.append(timing.timed("virsh", lambda: libvirtd.timed("--version")))
    samples = timing.interleave(rig.times(25), ways)
    yield timing.compare(samples, "start of the client (--version)", "ours", "python -c pass", "python")
    yield timing.compare(samples, "start of the client (--version)", "ours", "virsh", "virsh")


def lists(rig: Rig) -> Iterator[timing.Row]:
    """`list` of one machine, and `snapshot-list --tree` of a hundred snapshots."""
    count = 3 if rig.quick else _SNAPSHOTS
    with rig.scene() as scene:
        ours, domain = scene.ours(scene.chains(1)), scene.domain(scene.chains(1))
        for _ in range(count):
            ours.create()
            if domain:
                domain.create()
        ways: list[timing.Way] = [
            lambda: {"list": sides.run(ours.server.command("list"), ours.server.env)},
            lambda: {"tree": ours.cli("snapshot-list", "--tree")},
        ]
        if domain:
            home, name = domain.home, domain.name
            ways += [
                lambda: {"virsh list": home.timed("list")},
                lambda: {"virsh tree": home.timed("snapshot-list", name, "--tree")},
            ]
        samples = timing.interleave(rig.times(25), ways)
    yield timing.compare(samples, "list: process", "list", "virsh", "virsh list", 1.3)
    yield timing.compare(samples, f"tree of {count}: process", "tree", "virsh", "virsh tree", 1.3)
