"""The host loses power at every point that a verb passes: only what was on disk is left, or pieces of what was not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent import futures

import pytest

from tests import requires
from tests.crash import conftest, cut, host, scenarios, world
from tests.crash.test_points import ROUNDS, WORKERS, every_point

pytestmark = [requires.requires_qemu, requires.requires_fuse]

MakeWorld = Callable[..., world.World]

#: With how many of the policies a point is cut: all of them when there is time, else one by turns, and all for what is quick.
_POLICIES = 3 if conftest.ALL else 1
_QUICK = {"current": 3, "delete-metadata": 3}


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=str)
def test_every_point(scenario: scenarios.Scenario, make_world: MakeWorld, tally: conftest.Tally) -> None:
    """After the boot nothing is lost that was acknowledged or flushed, and nothing is left over."""
    places = host.places(every_point(make_world, scenario), _QUICK.get(scenario.name, _POLICIES))

    def some(part: list[host.Place]) -> dict[host.Place, list[str]]:
        limit = ROUNDS if scenario.reusable else 1
        make = functools.partial(make_world, lossy=True)
        return cut.rounds(make, part, limit, lambda w, place: host.at_point(w, scenario, place))

    with futures.ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(some, (places[n::WORKERS] for n in range(WORKERS))))
    wrong = [f"{place}: {text}" for part in found for place, texts in part.items() for text in texts]
    tally.add(str(scenario), "host", len(places), sum(len(part) for part in found))

    assert not wrong, "\n".join(wrong)
