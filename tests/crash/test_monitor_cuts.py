"""At every command of a verb QEMU's reply is lost: the connection is cut before it, or QEMU dies with it.

What the points do not reach: QEMU has carried the command out for certain, and commands that only look.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent import futures
from typing import Any

import attrs
import pytest

from tests import requires
from tests.crash import check, conftest, cut, daemons, scenarios, world
from tests.crash.test_points import ROUNDS, WORKERS

pytestmark = requires.requires_qemu

MakeWorld = Callable[..., world.World]

#: Commands that only look: whether QEMU has carried one out makes no difference.
_LOOKS = ("query-", "x-debug-query-", "qom-get")

SCENARIOS = [s for s in scenarios.ALL if s.name in {"create-two-disks", "pull-all", "pull-base"}]


@attrs.frozen
class Place:
    """The ``count``-th command of a name since the request."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name} #{self.count}"

    @property
    def looks(self) -> bool:
        return self.name.startswith(_LOOKS)


@functools.cache
def every_place(make: MakeWorld, scenario: scenarios.Scenario) -> list[Place]:
    """All commands of the scenario, from a run in peace."""
    with make(proxied=True) as w:
        asked = scenario.prepare(w)
        w.tell_proxy({"count": True})
        url = f"{asked.url}{'&' if '?' in asked.url else '?'}wait=true"
        w.daemon.must(asked.method, url, asked.body)
        seen = w.tell_proxy({})
    assert seen is not None
    places = [Place(name, count) for name, count in seen["seen"]]
    # The looks of one pull are those of another.
    return [place for place in places if not place.looks or scenario.name != "pull-all"]


def _ask(
    w: world.World, scenario: scenarios.Scenario, arm: dict[str, Any]
) -> tuple[scenarios.Asked, daemons.Request]:
    asked = scenario.prepare(w)
    w.tell_proxy({"arm": arm})
    return asked, w.daemon.request(asked.method, asked.url, asked.body)


def _ended(w: world.World, request: daemons.Request) -> set[str]:
    """Ids of what was begun; a request that was refused before it began has none."""
    answer = request.answer()
    assert answer is not None, f"the daemon is dead: {w.daemon.log()}"
    return {answer[1]["id"]} if answer[0] < 300 else set()


def cut_connection(w: world.World, scenario: scenarios.Scenario, place: Place) -> list[str]:
    """The connection is gone and can be had again at once."""
    asked, request = _ask(w, scenario, {"at": [place.name, place.count], "kill": 0})

    def fired() -> bool:
        seen = w.tell_proxy({})
        return seen is not None and seen["fired"]

    # How often the daemon looks while it waits depends on time: a look may not come, an act must.
    if place.looks:
        daemons.until(lambda: fired() or _quiet(w, request), lambda: "neither cut nor done")
    else:
        daemons.until(fired, lambda: f"{place} is not reached; log:\n{w.daemon.log()}")
    ids = set(w.journal()) | _ended(w, request)
    w.write()
    w.wait_settled(live=True)
    outcome, wrong = cut.ends(w, ids)
    wrong += check.problems(w, live=True)
    return [*wrong, *asked.wrong(outcome.done), *cut.next_create(w)]


def _quiet(w: world.World, request: daemons.Request) -> bool:
    """Nothing is open, after the daemon has answered."""
    return request.readable() and w.settled(live=True)


def kill_machine(w: world.World, scenario: scenarios.Scenario, place: Place) -> list[str]:
    """QEMU dies before the daemon has its reply; the daemon lives and finds out."""
    assert w.proxy is not None
    arm = {"at": [place.name, place.count], "kill": w.qemu.pid}
    asked, request = _ask(w, scenario, arm)
    daemons.until(w.proxy.ended, lambda: f"{place} is not reached; log:\n{w.daemon.log()}")
    w.qemu.wait()
    ids = set(w.journal()) | _ended(w, request)
    w.wait_settled(live=False)
    outcome, wrong = cut.ends(w, ids)
    wrong += check.problems(w, live=False)
    wrong += cut.reboot(w)
    return [*wrong, *asked.wrong(outcome.done), *cut.next_create(w)]


@pytest.mark.parametrize("act", [cut_connection, kill_machine], ids=["connection", "qemu"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_command(
    scenario: scenarios.Scenario,
    act: Callable[[world.World, scenarios.Scenario, Place], list[str]],
    make_world: MakeWorld,
    tally: conftest.Tally,
) -> None:
    """Whatever QEMU has heard, and whatever we have heard of it, the outcome is found by a look."""
    places = every_place(make_world, scenario)
    if act is kill_machine:
        places = [place for place in places if not place.looks]

    def some(part: list[Place]) -> dict[Place, list[str]]:
        limit = ROUNDS if scenario.reusable else 1
        make = functools.partial(make_world, proxied=True)
        return cut.rounds(make, part, limit, lambda w, place: act(w, scenario, place))

    with futures.ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(some, (places[n::WORKERS] for n in range(WORKERS))))
    wrong = [f"{place}: {text}" for part in found for place, texts in part.items() for text in texts]
    name = "reply lost" if act is cut_connection else "qemu at reply"
    tally.add(str(scenario), name, len(places), sum(len(part) for part in found))

    assert not wrong, "\n".join(wrong)


def test_every_act_is_cut(make_world: MakeWorld) -> None:
    """The list above comes from a run: what changes something in QEMU is in it."""
    acts = {
        place.name for scenario in SCENARIOS for place in every_place(make_world, scenario) if not place.looks
    }

    assert acts == {
        "blockdev-add", "transaction", "block-stream", "human-monitor-command", "job-finalize", "blockdev-del",
    }  # fmt: skip


def test_a_slow_pull_does_not_hold_up_the_domain(make_world: MakeWorld) -> None:
    """A pull that runs over a lost connection is followed again, and other disks can be worked on meanwhile."""
    with make_world(proxied=True) as w:
        for _ in range(2):
            w.snapshot()
        pull = w.daemon.must("POST", f"{world.API}/pull", {"disk": "vda", "bandwidth": 1})

        def followed() -> bool:
            status, found = w.daemon.ask("GET", f"{world.API}/jobs")
            return status == 200 and [job["operation"] for job in found["jobs"]] == [pull["id"]]

        daemons.until(followed, lambda: f"the pull runs: {w.daemon.log()}")
        for _ in range(2):
            w.start_proxy()
            daemons.until(followed, lambda: f"the pull is followed again: {w.daemon.log()}")
            running = w.daemon.must("GET", f"/operations/{pull['id']}")
            assert running["state"] == "running", f"{running}{w.daemon.log()}"
            only = [{"target": "vda", "snapshot": "no"}]
            name = w.new_name()
            w.freeze(name)
            w.daemon.must("POST", f"{world.API}/snapshots?wait=true", {"name": name, "disks": only})
        w.daemon.must("PUT", f"{world.API}/disks/vda/job/bandwidth", {"bandwidth": 0})
        w.daemon.must("GET", f"/operations/{pull['id']}?wait=true")
        w.wait_settled(live=True)

        assert check.problems(w, live=True) == []
        assert w.daemon.must("GET", f"/operations/{pull['id']}")["state"] == "done"


def test_what_is_incomplete_is_tried_again_beside_a_running_pull(make_world: MakeWorld) -> None:
    """A record that a full or broken disk refused is written when it can be: a pull that runs for hours does not hold it up."""
    with make_world() as w:
        w.snapshot()
        pull = w.daemon.must("POST", f"{world.API}/pull", {"disk": "vda", "bandwidth": 1})
        folder = w.daemon_state / "snapshot" / world.NAME
        aside = folder.with_name("aside")
        folder.rename(aside)
        folder.write_text("in the way")
        name = w.new_name()
        w.freeze(name)
        only = [{"target": "vda", "snapshot": "no"}]
        created = w.daemon.must("POST", f"{world.API}/snapshots", {"name": name, "disks": only})
        status, answer = w.daemon.ask("GET", f"/operations/{created['id']}?wait=true")
        assert (status, answer["state"], answer["error"]["kind"]) == (200, "recovering", "incomplete")
        folder.unlink()
        aside.rename(folder)

        def state(operation: dict[str, str]) -> str:
            return str(w.daemon.must("GET", f"/operations/{operation['id']}")["state"])

        daemons.until(lambda: state(created) == "done", lambda: f"done: {w.daemon.log()}")
        assert state(pull) == "running"
        w.daemon.must("PUT", f"{world.API}/disks/vda/job/bandwidth", {"bandwidth": 0})
        w.wait_settled(live=True)

        assert check.problems(w, live=True) == []
