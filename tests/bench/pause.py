"""How long a guest's write waits at most while a snapshot of all its disks is made, as the guest itself sees it.

One real guest, its writer never resting, on which all ways take turns: what the guest does between is the same for all. Each way
includes making the overlays, because that uses the disk that the guest waits for. "none" is the guest left alone for as long.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests import requires
from tests.bench import sides, timing
from tests.bench.rig import Rig
from tests.lab import daemon, guest

# Between two rounds of the writer, µs: busy, and still with room for the shell that reads its result.
_REST = 500
_ALONE = 0.1


def pause(rig: Rig) -> Iterator[timing.Row]:
    """The longest write with 1 and with 8 disks."""
    for disks in (1,) if rig.quick else (1, 8):
        parts = [part for _ in range(rig.times(4)) for part in (_usual(rig, disks), _blockdev(rig, disks))]
        samples = timing.merge(parts)
        what, raw = f"longest write of a guest, {disks} disk{'s' if disks > 1 else ''}", "raw QMP, existing"
        yield timing.compare(samples, f"{what}: as set up", "ours", raw, "raw", 1.1)
        yield timing.compare(samples, f"{what}: as set up", "ours", "raw QMP, absolute-paths", "absolute")
        yield timing.compare(samples, f'{what}: overlay = "blockdev"', "blockdev", raw, "raw beside")
        yield timing.compare(samples, f"{what}: no snapshot", "none", raw, "raw")


def _usual(rig: Rig, disks: int) -> timing.Samples:
    return _rounds(rig, rig.daemon, disks, "ours", "raw", "none", "absolute")


def _blockdev(rig: Rig, disks: int) -> timing.Samples:
    """A monitor serves one client, so the other setting has a guest of its own, and bare QMP there to compare with."""
    with sides.serving(rig.folder / sides.fresh("b"), settings='overlay = "blockdev"\n') as server:
        return _rounds(rig, server, disks, "blockdev", "raw beside")


def _rounds(rig: Rig, server: daemon.Daemon, disks: int, *names: str) -> timing.Samples:
    """Some rounds on a fresh guest: the chains of one that went on would get deep."""
    options = guest.Options(disks=disks, agent=False)
    with rig.scene() as scene, guest.Guest.warm(scene.folder / "g", options) as machine:
        machine.writer_start(_REST)
        ours = sides.Ours(server, machine)
        acts: dict[str, Callable[[], object]] = {
            "ours": ours.create,
            "blockdev": ours.create,
            "raw": lambda: _raw(machine).create(),
            "raw beside": lambda: _raw(machine).create(),
            "absolute": lambda: _raw(machine).absolute(),
            "none": lambda: time.sleep(_ALONE),
        }
        samples = timing.interleave(rig.times(6), [_watched(machine, name, acts[name]) for name in names])
        ours.leave()
        return samples


def _raw(machine: guest.Guest) -> sides.Raw:
    """Bare QMP on the disks as they are now: others have put layers on them, too."""
    rows = [row["inserted"] for row in machine.qmp("query-block") if row.get("inserted")]
    return sides.Raw(machine, [Path(row["image"]["filename"]) for row in rows])


def _watched(machine: guest.Guest, name: str, act: Callable[[], object]) -> timing.Way:
    def way() -> Mapping[str, float]:
        # The shell's own words, no perl: the guest has one processor, and the writer needs it.
        machine.run(": > /run/w.zero; while [ -e /run/w.zero ]; do sleep 0.01; done")
        act()
        last = machine.writer_last()
        machine.writer_reached(last + 1)
        found = re.search(r"maxlat_us=([\d,]+)", machine.run("cat /run/w.stat"))
        assert found is not None
        return {name: max(int(value) for value in found[1].split(",")) / 1e6}

    return way


def lacking() -> str:
    """Why it cannot be measured here; empty when it can."""
    return requires.NEEDS["guest"]() or ""
