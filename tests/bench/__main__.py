"""`python -m tests.bench [NAME...] [--quick] [--no-libvirt]`: the measurements, and one table at the end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from tests.bench import create, lists, memory, pause, pull, safety, timing
from tests.bench.rig import Rig
from tests.lab import images

BENCHES: dict[str, Callable[[Rig], Iterator[timing.Row]]] = {
    "create": create.create,
    "start": lists.start,
    "list": lists.lists,
    "pull": pull.pull,
    "depth": create.depth,
    "memory": memory.memory,
    "look": safety.looks,
    "graph": safety.graph,
    "recovery": safety.recovery,
    "pause": pause.pause,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benches that are named, or all; the exit status is 0 whatever they show."""
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"some of: {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="once each, only to see that it works")
    parser.add_argument("--no-libvirt", action="store_true", help="leave virsh out")
    options = parser.parse_args(arguments)
    if unknown := set(options.name) - set(BENCHES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHES)}")
    _before()
    rows: list[timing.Row] = []
    with Rig.open(quick=options.quick, with_libvirt=not options.no_libvirt) as rig:
        if rig.lacking:
            print(f"Without virsh: {rig.lacking}")
        for name in options.name or BENCHES:
            if name == "pause" and (reason := pause.lacking()):
                print(f"Without pause: {reason}")
                continue
            begin = time.monotonic()
            rows += BENCHES[name](rig)
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    print(timing.table(rows))
    missed = sum(row.met is False for row in rows)
    print(f"\n{sum(row.met is True for row in rows)} goals met, {missed} missed.")
    return 0


def _before() -> None:
    """What the numbers depend on most."""
    load = os.getloadavg()[0]
    version = ".".join(str(part) for part in images.version())
    print(f"QEMU {version}, {os.cpu_count()} processors, load {load:.1f} before the start.\n")


if __name__ == "__main__":
    sys.exit(main())
