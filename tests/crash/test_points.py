"""Every verb is cut at every crash point that it passes, in every way; the points come from a run, not from a list."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent import futures

import pytest

from tests import requires
from tests.crash import conftest, cut, scenarios, world
from tests.crash.scenarios import Fault

pytestmark = requires.requires_qemu

#: Most of a round is waiting for disks and for processes to start.
WORKERS = 4

#: Rounds in one world: chains and snapshots grow, and with them what has to be compared.
ROUNDS = 8

MakeWorld = Callable[[], world.World]


@functools.cache
def every_point(make: MakeWorld, scenario: scenarios.Scenario) -> list[str]:
    with make() as w:
        return cut.points(w, scenario)


@pytest.mark.parametrize(
    ("scenario", "fault"),
    [pytest.param(s, fault, id=f"{s}-{fault.name.lower()}") for s in scenarios.ALL for fault in s.faults],
)
def test_every_point(
    scenario: scenarios.Scenario, fault: Fault, make_world: MakeWorld, tally: conftest.Tally
) -> None:
    """After a crash at any point nothing is lost, nothing is left over, and the operation's end is known."""
    every = every_point(make_world, scenario)

    def some(part: list[str]) -> dict[str, list[str]]:
        limit = ROUNDS if scenario.reusable else 1
        return cut.rounds(
            make_world, part, limit, lambda w, point: cut.at_point(w, scenario, point, fault, every)
        )

    with futures.ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(some, (every[n::WORKERS] for n in range(WORKERS))))
    wrong = [f"{point}: {text}" for part in found for point, texts in part.items() for text in texts]
    tally.add(str(scenario), str(fault), len(every), sum(len(part) for part in found))

    assert not wrong, "\n".join(wrong)
