"""snapshot-create: in the daemon against bare QMP, process against virsh's process, and what depth does to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import libvirt, sides, timing
from tests.bench.rig import Rig, Scene

_DEPTHS = (1, 50, 190)


def create(rig: Rig) -> Iterator[timing.Row]:
    """One snapshot of 1 and of 4 disks, at depths below ten."""
    for disks in (1, 4):
        samples = timing.merge(_shallow(rig, disks) for _ in range(rig.times(3)))
        yield from _rows(samples, f"create, {disks} disk{'s' if disks > 1 else ''}")


def _shallow(rig: Rig, disks: int) -> timing.Samples:
    """A few rounds on fresh chains: libvirt gets slower with every layer, which is another row."""
    with rig.scene() as scene:
        return timing.interleave(rig.times(7), _ways(scene, lambda: scene.chains(disks)))


def _ways(scene: Scene, tops: Callable[[], list[Path]]) -> list[timing.Way]:
    raw, absolute = scene.raw(tops()), scene.raw(tops())
    inside, process = scene.ours(tops()), scene.ours(tops())
    unsynced = scene.ours(tops(), scene.rig.unsynced)
    ways: list[timing.Way] = [
        raw.create,
        absolute.absolute,
        lambda: {"inside": inside.create()},
        lambda: {"unsynced": unsynced.create()},
        lambda: {"process": process.cli_create()},
    ]
    domain = scene.domain(tops())
    return [*ways, domain.create] if domain else ways


def _rows(samples: timing.Samples, what: str) -> Iterator[timing.Row]:
    raw = "raw QMP with qemu-img"
    yield timing.compare(samples, f"{what}: in the daemon, but its fsyncs", "unsynced", raw, "raw", 1.25)
    yield timing.compare(samples, f"{what}: in the daemon, all", "inside", raw, "raw")
    yield timing.compare(
        samples, f"{what}: in the daemon, all", "inside", "raw QMP, absolute-paths", "raw absolute"
    )
    both = timing.median(samples, "inside"), timing.median(samples, "unsynced")
    assert both[0] is not None
    assert both[1] is not None
    yield timing.Row(f"{what}: of it fsync", max(0.0, both[0] - both[1]) * 1e3)
    yield timing.compare(samples, f"{what}: process", "process", "virsh", "virsh", 0.8)


def depth(rig: Rig) -> Iterator[timing.Row]:
    """One snapshot of 1 disk whose chain has 1, 50 or 190 images, and what its metadata takes."""
    depths = (1, 5) if rig.quick else _DEPTHS
    found = {images: _at(rig, images) for images in depths}
    first, last = depths[0], depths[-1]
    for images, (samples, sizes) in found.items():
        what = f"create at depth {images}"
        yield timing.compare(samples, f"{what}: in the daemon", "inside", "raw QMP with qemu-img", "raw")
        yield timing.compare(samples, f"{what}: process", "process", "virsh", "virsh")
        theirs = sizes.get("virsh")
        yield timing.Row(f"metadata of a snapshot at depth {images}", sizes["ours"], "B", "virsh", theirs)
    for name, text, goal in (
        ("inside", "in the daemon", 1.3),
        ("raw", "raw QMP", None),
        ("process", "process", None),
        ("virsh", "virsh", None),
    ):
        deep, shallow = (timing.median(found[n][0], name) for n in (last, first))
        if deep is not None and shallow is not None:
            what = f"create at depth {last}: {text}"
            yield timing.Row(what, deep * 1e3, "ms", f"the same at depth {first}", shallow * 1e3, goal)


def _at(rig: Rig, images: int) -> tuple[timing.Samples, dict[str, float]]:
    with rig.scene() as scene:
        tops = _tops(scene, images)
        raw, inside, process = scene.raw(next(tops)), scene.ours(next(tops)), scene.ours(next(tops))
        ways: list[timing.Way] = [
            raw.create,
            lambda: {"inside": inside.create()},
            lambda: {"process": process.cli_create()},
        ]
        domain = scene.domain(next(tops))
        if domain:
            ways.append(domain.create)
        return timing.interleave(rig.times(7), ways), _sizes(inside, domain)


def _tops(scene: Scene, images: int) -> Iterator[list[Path]]:
    """One disk of that depth for one machine after the other: all layers but the one it writes to are shared."""
    shared = scene.chains(1, images - 1)[0] if images > 1 else None
    while True:
        yield [sides.over(scene.folder / sides.fresh("top"), shared)] if shared else scene.chains(1)


def _sizes(ours: sides.Ours, domain: libvirt.Domain | None) -> dict[str, float]:
    folder = ours.server.root / "state" / "snapshot" / ours.name
    found: dict[str, float] = {"ours": max(path.stat().st_size for path in folder.iterdir())}
    if domain:
        found["virsh"] = (domain.home.snapshots / domain.name / f"{domain.newest}.xml").stat().st_size
    return found
