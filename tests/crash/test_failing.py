"""Each change of the disk that a verb needs fails once, for every reason: a full disk, a broken one, one that we may not write."""

from __future__ import annotations

import errno
import functools
import itertools
from collections.abc import Callable
from concurrent import futures

import pytest

from tests import requires
from tests.crash import conftest, cut, failing, scenarios, world
from tests.crash.test_points import ROUNDS, WORKERS

pytestmark = [requires.requires_qemu, requires.requires_fuse]

SCENARIOS = [
    s for s in scenarios.ALL if s.name in {"create-two-disks", "pull-base", "current", "delete-metadata"}
]

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)

MakeWorld = Callable[..., world.World]


@functools.cache
def every_change(make: MakeWorld, scenario: scenarios.Scenario) -> list[str]:
    with make(lossy=True) as w:
        return failing.changes(w, scenario)


def _every(
    make_world: MakeWorld, scenario: scenarios.Scenario, places: list[failing.Place]
) -> dict[failing.Place, list[str]]:
    def some(part: list[failing.Place]) -> dict[failing.Place, list[str]]:
        make = functools.partial(make_world, lossy=True)
        return cut.rounds(make, part, ROUNDS, lambda w, place: failing.at_change(w, scenario, place))

    with futures.ThreadPoolExecutor(WORKERS) as pool:
        parts = pool.map(some, (places[n::WORKERS] for n in range(WORKERS)))
        return {place: wrong for part in parts for place, wrong in part.items()}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_change(scenario: scenarios.Scenario, make_world: MakeWorld, tally: conftest.Tally) -> None:
    """From the first change on until the verb passes: nothing is lost, nothing is left over, and the reason is told. For every
    reason when there is time, else one by turns."""
    count = len(every_change(make_world, scenario))
    reasons = len(ERRORS) if conftest.ALL else 1
    places = [
        failing.Place(n, ERRORS[(n + m) % len(ERRORS)]) for n in range(1, count + 2) for m in range(reasons)
    ]
    found = _every(make_world, scenario, places)
    tally.add(str(scenario), "failing once", len(places), len(found))

    assert not found, "\n".join(f"{place}: {text}" for place in found for text in found[place])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_change_from_one_on(
    scenario: scenarios.Scenario, make_world: MakeWorld, tally: conftest.Tally
) -> None:
    """The disk stays as it is while the daemon is started again, and is well only then. The reasons take turns."""
    count = len(every_change(make_world, scenario))
    step = 1 if conftest.ALL else 2
    places = [failing.Place(n, ERRORS[n // step % len(ERRORS)], on=True) for n in range(1, count + 1, step)]
    found = _every(make_world, scenario, places)
    tally.add(str(scenario), "failing on", len(places), len(found))

    assert not found, "\n".join(f"{place}: {text}" for place in found for text in found[place])


def test_a_directory_that_could_not_be_flushed(make_world: MakeWorld, tally: conftest.Tally) -> None:
    """It is there, and its name is not on disk: the next that needs it must not rely on it."""
    scenario = next(s for s in SCENARIOS if s.name == "create-two-disks")
    seen = every_change(make_world, scenario)
    places = [
        failing.Place(n, errno.EIO)
        for n, pair in enumerate(itertools.pairwise(seen), 2)
        if pair == ("mkdir", "fsyncdir")
    ]
    found = cut.rounds(
        functools.partial(make_world, lossy=True),
        places,
        1,
        lambda w, place: failing.at_change_and_cut(w, scenario, place),
    )
    tally.add("new directory", "EIO, then host", len(places), len(found))

    assert places
    assert not found, "\n".join(f"{place}: {text}" for place in found for text in found[place])
