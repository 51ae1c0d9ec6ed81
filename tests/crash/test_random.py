"""Deaths at moments that nobody has chosen: what the points and commands between them do not name."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent import futures

import pytest

from tests import requires
from tests.crash import conftest, cut, scenarios, world

pytestmark = requires.requires_qemu

#: More find more: QMPSNAP_CRASH_ROUNDS=500 takes some minutes.
ROUNDS = int(os.environ.get("QMPSNAP_CRASH_ROUNDS", "24"))

#: Longer than a snapshot or a pull takes here (40 ms), so that some rounds strike when all is over.
LATEST = 0.08

SCENARIOS = [
    s for s in scenarios.ALL if s.name in {"create-two-disks", "create-next", "pull-all", "pull-base"}
]


@pytest.mark.parametrize("seed", [1, 2])
def test_any_moment(seed: int, make_world: Callable[[], world.World], tally: conftest.Tally) -> None:
    """Nothing is lost, whenever the daemon or QEMU or both die. The worlds live on from death to death."""
    chance = random.Random(seed)
    rounds = [
        (n, chance.choice(SCENARIOS), chance.choice(cut.SIGNALS), chance.uniform(0, LATEST))
        for n in range(ROUNDS)
    ]

    def strike(w: world.World, one: tuple[int, scenarios.Scenario, scenarios.Fault, float]) -> list[str]:
        _number, scenario, fault, seconds = one
        return cut.at_moment(w, scenario, seconds, fault)

    with futures.ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda part: cut.rounds(make_world, part, 8, strike), (rounds[0::2], rounds[1::2]))
        found = {one: wrong for part in parts for one, wrong in part.items()}
    tally.add("any moment", "random", len(rounds), len(found))

    assert not found, "\n".join(
        f"{one[1]}, {one[2]}, {one[3]:.4f} s: {text}" for one, wrong in found.items() for text in wrong
    )
