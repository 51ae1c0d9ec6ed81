"""Each verb in a situation: what is prepared, what is asked for, and what must be there once it is done, or was not."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from qmpsnap.talk import files
from tests.crash import world
from tests.lab import images


class Fault(enum.Enum):
    """What happens at a crash point."""

    #: The daemon is killed; the guest goes on writing; the daemon is started again.
    DAEMON = "daemon"
    #: Both are killed, and the daemon is started again, which finds no QEMU.
    BOTH = "both"
    #: The same, and between the two deaths the guest has written and flushed.
    BOTH_WRITTEN = "both, written"
    #: The daemon stands still while QEMU is killed, and goes on.
    QEMU = "qemu"
    #: The same, and the guest has written and flushed before QEMU's death.
    QEMU_WRITTEN = "qemu, written"
    #: Both are killed, and the machine is started again as qemu-launch does it, before the daemon is there.
    LAUNCH = "launch"
    #: The daemon loses its connection to QEMU, both live on, and the guest goes on writing.
    CUT = "cut"

    def __str__(self) -> str:
        return self.value


Body = dict[str, Any]


@attrs.frozen
class Asked:
    """A request, and what it must lead to."""

    method: str
    url: str
    body: Body | None
    #: What is wrong once the operation is done (true), or was not carried out (false); QEMU runs.
    wrong: Callable[[bool], Iterator[str]]


@attrs.frozen
class Scenario:
    """``prepare`` brings a world to where the request can be made; ``reusable`` worlds take several rounds.

    From the point ``commits`` on, a death of the daemon alone does not stop the operation from being done.
    """

    name: str
    prepare: Callable[[world.World], Asked]
    commits: str
    faults: tuple[Fault, ...] = tuple(Fault)
    reusable: bool = True

    def __str__(self) -> str:
        return self.name


def _told(w: world.World) -> dict[str, Any]:
    return dict(w.daemon.must("GET", f"{world.API}/snapshots"))


# --- snapshot-create ---


def _create(w: world.World, **more: Any) -> Asked:
    """A snapshot of all disks, or of those that ``more`` does not leave out."""
    name = w.new_name()
    w.freeze(name)
    before = {target: w.active(target) for target in world.TARGETS}
    out = {d["target"] for d in more.get("disks", []) if d.get("snapshot") == "no"}
    current = _told(w)["current"]

    def wrong(done: bool) -> Iterator[str]:
        told = _told(w)
        if (name in {s["name"] for s in told["snapshots"]}) != done:
            yield f"snapshot {name} is {'not ' if done else ''}listed"
        if told["current"] != (name if done else current):
            yield f"current is {told['current']}"
        for target, below in before.items():
            wanted = {str(w.images / f"{target}.{name}")} if done and target not in out else {below}
            if w.active(target) not in wanted:
                yield f"{target} writes to {w.active(target)}, not to {wanted}"

    return Asked("POST", f"{world.API}/snapshots", {"name": name, **more}, wrong)


def _create_one(w: world.World) -> Asked:
    return _create(w, disks=[{"target": "vdb", "snapshot": "no"}])


def _create_next(w: world.World) -> Asked:
    """Another snapshot is current, and ceases to be."""
    if not _told(w)["current"]:
        w.snapshot()
    return _create(w, disks=[{"target": "vdb", "snapshot": "no"}])


def _create_reuse(w: world.World) -> Asked:
    """Onto overlays that the user has made."""
    below = {target: w.active(target) for target in world.TARGETS}
    asked = _create(w, reuse_external=True)
    assert asked.body is not None
    for target in world.TARGETS:
        path = w.images / f"{target}.{asked.body['name']}"
        images.image(path, world.SLOTS * world.SLOT, backing=below[target])
        w.known.add(str(path))
    return asked


# --- block-pull ---


def _pull(w: world.World, target: str, top: int, base: int | None, *, by_path: bool) -> Asked:
    """Three layers of this QEMU's life above what was there; ``top`` and ``base`` are places in the chain."""
    for _ in range(3):
        w.snapshot(disks=[{"target": other, "snapshot": "no"} for other in world.TARGETS if other != target])
    before = w.chain(target)
    lower = before[base:] if base is not None else []
    after = [*before[: top + 1], *lower]
    body: Body = {"disk": before[top] if by_path else target}
    if base is not None:
        body["base"] = before[base]

    def wrong(done: bool) -> Iterator[str]:
        wanted = after if done else before
        if w.chain(target) != wanted:
            yield f"the chain of {target} is {w.chain(target)}, not {wanted}"

    return Asked("POST", f"{world.API}/pull", body, wrong)


# --- metadata ---


def _current(w: world.World) -> Asked:
    """The marker moves to the oldest snapshot; three snapshots must be there."""
    while len(_told(w)["snapshots"]) < 3:
        w.snapshot()
    told = _told(w)
    name = next(s["name"] for s in told["snapshots"] if not s["current"])

    def wrong(done: bool) -> Iterator[str]:
        if _told(w)["current"] != (name if done else told["current"]):
            yield f"current is {_told(w)['current']}"

    return Asked("PUT", f"{world.API}/current", {"name": name}, wrong)


def _delete(w: world.World) -> Asked:
    """The metadata of a snapshot in the middle of the tree, which is the current one."""
    while not (inner := [s for s in _told(w)["snapshots"] if s["parent"] and s["children"]]):
        w.snapshot()
    snapshots, gone = _told(w)["snapshots"], inner[0]
    w.daemon.must("PUT", f"{world.API}/current?wait=true", {"name": gone["name"]})
    children = {s["name"] for s in snapshots if s["parent"] == gone["name"]}
    # Its files stay, and belong to the user from now on.
    w.known |= {d[key] for d in gone["disks"] for key in ("overlay", "image")}

    def wrong(done: bool) -> Iterator[str]:
        told = _told(w)
        listed = {s["name"]: s for s in told["snapshots"]}
        if (gone["name"] in listed) == done:
            yield f"snapshot {gone['name']} is {'still' if done else 'not'} listed"
        heir = gone["parent"] if done else gone["name"]
        if told["current"] != heir:
            yield f"current is {told['current']}, not {heir}"
        for child in children:
            if listed[child]["parent"] != heir:
                yield f"the parent of {child} is {listed[child]['parent']}, not {heir}"

    return Asked("DELETE", f"{world.API}/snapshots/{gone['name']}?metadata=true", None, wrong)


# --- accept ---


def _accept(w: world.World) -> Asked:
    """Somebody has written the same again to images that hold states: two, so that there are two steps."""
    while not _told(w)["snapshots"]:
        w.snapshot()
    if w.meddled:
        w.daemon.must("POST", f"{world.API}/accept?wait=true", {})
    for file in w.base.values():
        os.utime(file)
        files.sync(file)
    w.meddled = True

    def wrong(done: bool) -> Iterator[str]:
        findings = w.daemon.must("GET", f"{world.API}/check")["findings"]
        changed = {one["where"] for one in findings if one["code"] == "changed"}
        if done and findings:
            yield f"check finds {findings} after what is there was accepted"
        if not done and len(changed) < len(w.base):
            yield f"check finds {changed} only, and nothing was accepted"

    return Asked("POST", f"{world.API}/accept", {}, wrong)


_RECORD = "record/before"
_TRANSACTION = "snapshot-create/transaction/after"
_STARTED = "block-pull/start/after"

# Of the situations that differ little, one has every fault.
_FEW = (Fault.DAEMON, Fault.BOTH, Fault.QEMU_WRITTEN)

ALL = (
    Scenario("create-one-disk", _create_one, _TRANSACTION, _FEW, reusable=False),
    Scenario("create-two-disks", lambda w: _create(w), _TRANSACTION),
    Scenario("create-next", _create_next, _TRANSACTION, _FEW),
    Scenario("create-reuse-external", _create_reuse, _TRANSACTION, (*_FEW, Fault.BOTH_WRITTEN)),
    Scenario("pull-all", lambda w: _pull(w, "vda", 0, None, by_path=False), _STARTED, _FEW),
    Scenario("pull-base", lambda w: _pull(w, "vdb", 0, 2, by_path=False), _STARTED),
    Scenario("pull-middle", lambda w: _pull(w, "vda", 1, None, by_path=True), _STARTED, _FEW),
    Scenario("current", _current, f"snapshot-current/{_RECORD}", (*_FEW, Fault.CUT)),
    Scenario("accept", _accept, "accept/fingerprint/before", _FEW),
    Scenario("delete-metadata", _delete, f"snapshot-delete/{_RECORD}", (*_FEW, Fault.CUT)),
)
