"""What recovery makes of every situation that a cut plan can leave: a table."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, snapshot
from qmpsnap.plan import migration, pull, recovery, requests, steps

FILES = ("/o/a", "/o/b")


def _create() -> steps.Plan:
    layers = {f"vd{'ab'[n]}": chain.Layer(f"n{n}", "qcow2", file, 1) for n, file in enumerate(FILES)}
    make = [steps.Step(f"m{f}", steps.MakeOverlay(f, "t", "/b", "raw", 1, "/b")) for f in FILES]
    work = [*make, steps.Step("look", steps.ExpectActive(layers))]
    return steps.Plan("snapshot-create", "d", tuple(work), len(work) - 1)


def _view(*on: str, jobs: tuple[chain.Job, ...] = ()) -> chain.View:
    disks = []
    for target, file in zip(("vda", "vdb"), FILES, strict=True):
        below = chain.Layer(f"old-{target}", "raw", "/b", 1)
        top = (chain.Layer(f"n-{target}", "qcow2", file, 1),) if target in on else ()
        disks.append(chain.Disk(target, "virtio", "disk", target, (*top, below)))
    return chain.View("d", "running", False, tuple(disks), jobs)


EMPTY: dict[str, Any] = dict.fromkeys(FILES, "empty")
DATA: dict[str, Any] = {FILES[0]: "data", FILES[1]: "empty"}
NONE: dict[str, Any] = dict.fromkeys(FILES, "absent")
HALF: dict[str, Any] = {FILES[0]: "data", FILES[1]: "absent"}


@pytest.mark.parametrize(
    ("view", "overlays", "goes_on"),
    [
        (_view("vda", "vdb"), EMPTY, True),
        (_view("vda", "vdb"), DATA, True),
        (_view(), EMPTY, False),
        (_view(), NONE, False),
        (None, EMPTY, False),
        (None, NONE, False),
        (None, DATA, True),
        (_view("vda"), EMPTY, None),
        (_view(), DATA, None),
        (None, HALF, None),
    ],
    ids=[
        "on", "on-written", "off-chain", "not-made", "gone-empty", "gone-not-made", "gone-written",
        "half-on", "on-base-but-written", "gone-half",
    ],
)  # fmt: skip
def test_create(view: chain.View | None, overlays: dict[str, Any], goes_on: bool | None) -> None:
    """Forward when the overlays are used, back when they are empty and unused; never where either way could lose data."""
    plan = _create()
    if goes_on is None:
        with pytest.raises(errors.Undecided):
            recovery.decide(plan, recovery.Seen(view, overlays))
    else:
        decision = recovery.decide(plan, recovery.Seen(view, overlays))
        assert decision.from_step == (plan.commit + 1 if goes_on else None)


@pytest.mark.parametrize("view", [None, _view(), _view("vda")], ids=["gone", "off-chain", "half-on"])
def test_create_that_is_recorded(view: chain.View | None) -> None:
    """Once the overlays are what the next boot uses, empty ones stay too; one that is missing is a person's affair."""
    plan = _create()

    assert recovery.decide(plan, recovery.Seen(view, EMPTY, recorded=True)).from_step == plan.commit + 1
    with pytest.raises(errors.Undecided):
        recovery.decide(plan, recovery.Seen(view, HALF, recorded=True))


@pytest.mark.parametrize(
    ("view", "state", "goes_on"),
    [
        (None, "kept", False),
        (None, "touched", True),
        (_view(), "kept", False),
        (_view(), "touched", False),
        (_view("vda", "vdb"), "kept", True),
    ],
)
def test_create_on_the_users_own_overlays(view: chain.View | None, state: Any, goes_on: bool) -> None:
    """Where QEMU is gone, only what it has written tells that it was on them; they may hold data of the user's from before."""
    plan = _create()
    decision = recovery.decide(plan, recovery.Seen(view, dict.fromkeys(FILES, state)))

    assert decision.from_step == (plan.commit + 1 if goes_on else None)


@pytest.mark.parametrize(("status", "migrating"), [("running", True), ("postmigrate", False)])
@pytest.mark.parametrize("recorded", [False, True])
def test_create_and_a_migration(status: str, migrating: bool, recorded: bool) -> None:
    """It may have begun on the layers below: forward, because QEMU writes to the overlays, but never to a success. Only what was
    listed before is known to have been seen without."""
    plan = _create()
    view = attrs.evolve(_view("vda", "vdb"), status=status, migrating=migrating)
    decision = recovery.decide(plan, recovery.Seen(view, EMPTY, recorded=recorded))

    assert decision.from_step == plan.commit + 1
    assert isinstance(decision.error, errors.MigrationBegan)
    assert recovery.decide(plan, recovery.Seen(view, EMPTY, recorded=True, listed=True)).error is None
    off_chain = attrs.evolve(view, disks=_view().disks)
    assert recovery.decide(plan, recovery.Seen(off_chain, EMPTY)) == recovery.Decision(
        None, "QEMU does not use the overlays, and they are empty"
    )


def test_what_is_recorded_when_a_migration_began() -> None:
    """The active layers, so that nothing is lost, and no snapshot."""
    record = steps.Record({"vda": ("/o", "qcow2")}, {"s1": "<x/>"}, "s1")
    plan = steps.Plan("snapshot-create", "d", (steps.Step("record", record),), 0)
    (step,) = migration.without_snapshots(plan).steps

    assert isinstance(step.act, steps.Record)
    assert (dict(step.act.active), dict(step.act.snapshots), step.act.current) == (
        {"vda": ("/o", "qcow2")},
        {},
        "",
    )


def _pull() -> steps.Plan:
    layers = tuple(chain.Layer(f"n{n}", "qcow2", f"/i/{n}", 1) for n in (3, 2, 1))
    view = chain.View("d", "running", False, (chain.Disk("vda", "virtio", "disk", "q", layers),))
    recorded = domain_xml.RecordedDomain("d", "")
    request = requests.Pull("vda", "/i/1")
    return pull.plan(view, request, operation="op", tree=snapshot.Tree({}), recorded=recorded, stamp="")


def _chain(*files: str, status: str = "") -> chain.View:
    layers = tuple(chain.Layer(f"x{f}", "qcow2", f, 1) for f in files)
    jobs = (chain.Job("qs-op", "stream", status),) if status else ()
    return chain.View("d", "running", False, (chain.Disk("vda", "virtio", "disk", "q", layers),), jobs)


@pytest.mark.parametrize(
    ("view", "from_step"),
    [
        (_chain("/i/3", "/i/2", "/i/1", status="running"), 1),
        (_chain("/i/3", "/i/2", "/i/1", status="paused"), 1),
        (_chain("/i/3", "/i/2", "/i/1", status="pending"), 1),
        (_chain("/i/3", "/i/2", "/i/1", status="aborting"), None),
        (_chain("/i/3", "/i/2", "/i/1", status="concluded"), None),
        (_chain("/i/3", "/i/2", "/i/1"), None),
        (_chain("/i/3", "/i/1"), 4),
        (None, None),
    ],
    ids=["running", "paused", "pending", "aborting", "concluded", "never-ran", "done", "gone"],
)
def test_pull(view: chain.View | None, from_step: int | None) -> None:
    """A job that lives is followed; one that is gone is judged by the chain; with QEMU gone the header is taken back."""
    assert recovery.decide(_pull(), recovery.Seen(view, {})).from_step == from_step


def test_metadata_is_written_again() -> None:
    """A plan of records alone is always finished: it is the same files."""
    plan = steps.Plan("snapshot-current", "d", (steps.Step("record", steps.Record({}, {}, "a")),), -1)

    assert recovery.decide(plan, recovery.Seen(None, {})).from_step == 0
