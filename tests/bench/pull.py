"""blockpull: a short one, where waiting is what it costs, and a long one, where copying is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.bench import sides, timing
from tests.bench.rig import Rig, Scene
from tests.lab.images import MIB


def pull(rig: Rig) -> Iterator[timing.Row]:
    """1 MiB and 1 GiB."""
    yield from _short(rig)
    yield from _long(rig)


def _short(rig: Rig) -> Iterator[timing.Row]:
    """Each round a layer is put on top, which is not timed, and takes in the MiB that the chain holds."""
    with rig.scene() as scene:
        samples = timing.interleave(rig.times(12), _ways(scene))
    what = "blockpull of 1 MiB"
    yield timing.compare(
        samples, f"{what}: in the daemon", "inside", "raw QMP, as durable", "raw durable", 1.25
    )
    yield timing.compare(samples, f"{what}: in the daemon", "inside", "raw QMP, lost by a crash", "raw")
    yield timing.compare(samples, f"{what}: process", "process", "virsh", "virsh", 0.15)


def _ways(scene: Scene) -> list[timing.Way]:
    raw, durable = (scene.raw(scene.chains(1, data=MIB)) for _ in range(2))
    inside, process = (scene.ours(scene.chains(1, data=MIB)) for _ in range(2))
    domain = scene.domain(scene.chains(1, data=MIB))

    def raw_pull() -> Mapping[str, float]:
        raw.create()
        return raw.pull()

    def durable_pull() -> Mapping[str, float]:
        durable.create()
        return durable.durable_pull()

    def inside_pull() -> Mapping[str, float]:
        inside.create()
        return {"inside": inside.pull()}

    def process_pull() -> Mapping[str, float]:
        process.create()
        return {"process": process.cli("blockpull", "vda", "--wait")}

    ways: list[timing.Way] = [raw_pull, durable_pull, inside_pull, process_pull]
    if domain is None:
        return ways
    known = domain

    def virsh_pull() -> Mapping[str, float]:
        known.create()
        return known.pull()

    return [*ways, virsh_pull]


def _long(rig: Rig) -> Iterator[timing.Row]:
    mib = 16 if rig.quick else 1024
    with rig.scene() as scene:
        base = sides.chain(scene.folder / "base", 1, size=mib * MIB, data=mib * MIB)
        samples = timing.merge(_long_round(rig, base) for _ in range(rig.times(3)))
    seconds = timing.median(samples, "process")
    assert seconds is not None
    what = f"blockpull of {mib} MiB ({mib / seconds:.0f} MiB/s): process"
    yield timing.compare(samples, what, "process", "raw QMP, as durable", "raw durable")
    yield timing.compare(samples, what, "process", "virsh (not durable)", "virsh")


def _long_round(rig: Rig, base: Path) -> timing.Samples:
    """Fresh machines over one image: the copy is as large each time, and all of it is new."""
    with rig.scene() as scene:
        tops = [[sides.over(scene.folder / f"{n}.qcow2", base)] for n in range(3)]
        raw, ours, domain = scene.raw(tops[0]), scene.ours(tops[1]), scene.domain(tops[2])
        ways: list[timing.Way] = [
            raw.durable_pull,
            lambda: {"process": ours.cli("blockpull", "vda", "--wait")},
        ]
        if domain:
            ways.append(domain.pull)
        return timing.interleave(1, ways, warm=0)
