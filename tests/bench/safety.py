"""What safety costs: a look, the image graph, and recovery at the start of a host with many machines."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator

import trio

from qmpsnap.act import look
from qmpsnap.model import images as model
from qmpsnap.talk import images as image_files
from qmpsnap.talk import monitor
from tests.bench import sides, timing
from tests.bench.rig import Rig, Scene
from tests.lab import daemon, images, qemu

_DEPTH = 200
_MACHINES = 200

#: What the cheapest queries are that tell status, migration, jobs and every chain's nodes.
_CHEAPEST = ("query-status", "query-migrate", "query-block-jobs", "x-debug-query-block-graph")
_FULL = ("query-block", "query-blockstats")


def looks(rig: Rig) -> Iterator[timing.Row]:
    """One look at a deep chain, against the queries alone."""
    depth = 5 if rig.quick else _DEPTH
    with rig.scene() as scene:
        vm = scene.machine(scene.chains(1, depth))
        samples = trio.run(_looks, str(vm.monitor_path), rig.times(30))
    what = f"look at depth {depth}"
    yield timing.compare(samples, f"{what}: nothing has changed", "look", "its queries", "cheapest", 1.3)
    yield timing.compare(samples, f"{what}: everything anew", "fresh", "its queries", "full")


async def _looks(path: str, rounds: int) -> timing.Samples:
    found: timing.Samples = {"look": [], "cheapest": [], "fresh": [], "full": []}
    async with trio.open_nursery() as nursery:
        link = await monitor.connect(nursery, path)
        observer = look.Observer("bench", link, lambda: ())
        await observer.look()
        for _ in range(rounds):
            for name, act in (
                ("look", observer.look),
                ("cheapest", lambda: link.execute_all(*_CHEAPEST)),
                ("fresh", lambda: observer.look(fresh=True)),
                ("full", lambda: link.execute_all(*_CHEAPEST, *_FULL)),
            ):
                begin = time.perf_counter()
                await act()
                found[name].append(time.perf_counter() - begin)
        nursery.cancel_scope.cancel()
    return found


def graph(rig: Rig) -> Iterator[timing.Row]:
    """The graph of one deep chain, and that of many domains; the first look reads headers, later ones know them."""
    depth, many = (5, 3) if rig.quick else (_DEPTH, _MACHINES)
    with rig.scene() as scene:
        (deep,) = scene.chains(1, depth)
        tops = [deep, *(sides.over(scene.folder / f"c{n}", deep) for n in range(many))]
        needs = [model.Need("active", str(top), f"d{n}", "vda", "qcow2") for n, top in enumerate(tops)]
        told = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(deep)]
        told[0] = images.tool("qemu-img")
        warm = image_files.Looker()
        warm.graph(needs)
        samples = timing.interleave(
            rig.times(9),
            [
                timing.timed("deep", lambda: image_files.Looker().graph(needs[:1])),
                timing.timed("all", lambda: image_files.Looker().graph(needs)),
                timing.timed("warm", lambda: warm.graph(needs)),
                timing.timed("qemu-img", lambda: subprocess.run(told, stdout=subprocess.DEVNULL, check=True)),
            ],
        )
    theirs = f"qemu-img info, one chain of {depth}"
    yield timing.compare(samples, f"graph of {depth} images, first", "deep", theirs, "qemu-img")
    yield timing.compare(
        samples, f"graph of {depth + many} images, {many + 1} domains, first", "all", theirs, "qemu-img"
    )
    yield timing.compare(samples, "the same, later", "warm", theirs, "qemu-img")


def recovery(rig: Rig) -> Iterator[timing.Row]:
    """A daemon that starts where an earlier one was killed in a create of every machine."""
    many = 2 if rig.quick else _MACHINES
    with rig.scene() as scene, contextlib.ExitStack() as stack:
        vms = [_machine(scene, stack, n) for n in range(many)]
        with sides.serving(scene.folder / "d") as server:
            joined = [sides.Ours(server, vm) for vm in vms]
            entry = _cut(server, joined[0])
            answered, recovered = _start(server, joined, entry)
    yield timing.Row(f"start with {many} machines and open creates: until the API answers", answered * 1e3)
    yield timing.Row(f"start with {many} machines and open creates: until all are recovered", recovered * 1e3)


def _machine(scene: Scene, stack: contextlib.ExitStack, number: int) -> qemu.Machine:
    top = images.image(scene.folder / f"{number}.qcow2", images.MIB)
    arguments = [
        "-device",
        "virtio-scsi-pci",
        "-drive",
        f"file={top},format=qcow2,if=none,id=d",
        "-device",
        "scsi-hd,drive=d,id=sda",
    ]
    return stack.enter_context(
        qemu.Machine(scene.folder / f"q{number}", arguments, memory=16, paused=True, firmware=False)
    )


def _cut(server: daemon.Daemon, one: sides.Ours) -> str:
    """The journal entry that a daemon leaves behind that dies before the transaction; its domain's name stands in it."""
    server.kill9()
    server.start(faults={"QMPSNAP_CRASH": "snapshot-create/sync/before"})
    server.ready(one.name)
    with contextlib.suppress(OSError):
        server.api("POST", f"/domains/{one.name}/snapshots", {"name": "cut"})
    server.wait()
    (entry,) = (server.root / "state/journal" / one.name).iterdir()
    return entry.read_text()


def _start(server: daemon.Daemon, joined: list[sides.Ours], entry: str) -> tuple[float, float]:
    """Seconds from the start to the first answer, and to the last recovery."""
    first, text = joined[0], entry
    for number, one in enumerate(joined[1:], 1):
        ident = f"{number:012x}"
        mine = text.replace(first.name, one.name).replace("/0.", f"/{number}.")
        folder = server.root / "state/journal" / one.name
        folder.mkdir()
        old = text.split('"operation": "', 1)[1][:12]
        (folder / ident).write_text(mine.replace(old, ident))
    begin = time.perf_counter()
    server.start()
    server.get("/health")
    answered = time.perf_counter() - begin
    journal = server.root / "state/journal"
    _until(lambda: not any(path.is_file() for path in journal.rglob("*")))
    _until(lambda: all(d["monitor"]["state"] == "ready" for d in server.get("/domains")["domains"]))
    return answered, time.perf_counter() - begin


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("recovery takes more than two minutes")
        time.sleep(0.02)
