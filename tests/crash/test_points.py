"""Every verb is cut at every crash point that it passes, in every way; the points come from a run, not from a list."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent import futures

import attrs
import pytest

from tests import requires
from tests.crash import conftest, cut, scenarios, table, world
from tests.crash.scenarios import Fault

pytestmark = requires.requires_qemu

#: Most of a round is waiting for disks and for processes to start.
WORKERS = 4

#: Rounds in one world: chains and snapshots grow, and with them what has to be compared.
ROUNDS = 8

MakeWorld = Callable[[], world.World]

#: One scenario for each verb.
_IN_DOCS = {"create-two-disks", "pull-base", "current", "delete-metadata"}


@functools.cache
def every_point(make: MakeWorld, scenario: scenarios.Scenario) -> list[str]:
    with make() as w:
        return cut.points(w, scenario)


@attrs.frozen
class Found:
    """After a cut at each point: what was wrong, and what recovery was seen to do."""

    wrong: dict[str, list[str]]
    done: dict[str, str]


@functools.cache
def every_cut(make: MakeWorld, scenario: scenarios.Scenario, fault: Fault) -> Found:
    every = every_point(make, scenario)
    done: dict[str, str] = {}

    def one(w: world.World, point: str) -> list[str]:
        wrong = cut.at_point(w, scenario, point, fault, every)
        done[point] = table.recovered(w.daemon.told())
        return wrong

    limit = ROUNDS if scenario.reusable else 1
    with futures.ThreadPoolExecutor(WORKERS) as pool:
        parts = pool.map(
            lambda part: cut.rounds(make, part, limit, one), (every[n::WORKERS] for n in range(WORKERS))
        )
        return Found({point: wrong for part in parts for point, wrong in part.items()}, done)


@pytest.mark.parametrize(
    ("scenario", "fault"),
    [pytest.param(s, fault, id=f"{s}-{fault.name.lower()}") for s in scenarios.ALL for fault in s.faults],
)
def test_every_point(
    scenario: scenarios.Scenario, fault: Fault, make_world: MakeWorld, tally: conftest.Tally
) -> None:
    """After a crash at any point nothing is lost, nothing is left over, and the operation's end is known."""
    every = every_point(make_world, scenario)
    found = every_cut(make_world, scenario, fault)
    tally.add(str(scenario), str(fault), len(every), len(found.wrong))

    assert not found.wrong, "\n".join(
        f"{point}: {text}" for point in found.wrong for text in found.wrong[point]
    )


def test_the_docs_say_what_was_seen(make_world: MakeWorld) -> None:
    """docs/crash-points.md has the points of this run and no others, and what recovery does after each."""
    faults = {"qmpsnapd has died": Fault.DAEMON, "both have died": Fault.BOTH}
    runs = {
        str(s): (every_point(make_world, s), [every_cut(make_world, s, f).done for f in faults.values()])
        for s in scenarios.ALL
        if s.name in _IN_DOCS
    }
    tables = table.build(runs, list(faults))
    if os.environ.get("QMPSNAP_CRASH_DOC") == "write":
        table.write(tables)

    assert table.read() == tables
