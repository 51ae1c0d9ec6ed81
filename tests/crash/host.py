"""The host loses power at a point: daemon, QEMU, ``run`` and all that was not on disk are gone, and everything is started again."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs

from tests.crash import check, cut, daemons, scenarios, world
from tests.crash.disk import Policy


class Back(enum.Enum):
    """Who comes first when the host boots."""

    #: qmpsnapd, which finds no QEMU; then the machine.
    DAEMON = "daemon"
    #: qemu-launch, which finds no daemon; then the daemon.
    LAUNCH = "launch"


#: A place for power cuts after the last point: the operation is said to be done.
DONE = "done"


@attrs.frozen
class Place:
    """A point at which the power goes, what the disk leaves, and who comes back first."""

    point: str
    policy: Policy
    back: Back
    #: The guest has written and flushed between the daemon's last act and the cut.
    written: bool
    seed: int

    def __str__(self) -> str:
        words = (self.point, self.policy.value, f"{self.back.value} first", "written" if self.written else "")
        return ", ".join(word for word in words if word) + f", seed {self.seed}"


def places(every: Sequence[str], policies: int) -> list[Place]:
    """Each point with so many of the policies, by turns; all else by turns as well."""
    found = []
    for n, point in enumerate([*every, DONE]):
        for m, policy in enumerate(Policy):
            if (m - n) % len(Policy) < policies:
                back = Back.LAUNCH if (n // 3 + m) % 2 else Back.DAEMON
                found.append(Place(point, policy, back, (n + m) % 2 == 0, n))
    return found


def at_point(w: world.World, scenario: scenarios.Scenario, place: Place) -> list[str]:
    """What is wrong after the cut; the world is fit for the next round when nothing is."""
    asked = scenario.prepare(w)
    if place.point == DONE:
        w.daemon.must(asked.method, f"{asked.url}{'&' if '?' in asked.url else '?'}wait=true", asked.body)
    else:
        w.daemon.start(crash=f"{place.point}:hang")
        w.wait_settled(live=True)
        request = w.daemon.request(asked.method, asked.url, asked.body)
        daemons.until(w.daemon.child.stopped, lambda: f"it is not passed; log:\n{w.daemon.log()}")
    if place.written:
        w.write()
    w.cut_power(place.policy.value, place.seed)
    if place.point != DONE:
        request.answer()
    ids = set(w.journal())
    back = _launch_first if place.back is Back.LAUNCH else _daemon_first
    outcome, wrong = back(w, place, ids)
    if place.point == DONE:
        wrong += asked.wrong(True)
    elif ids:
        wrong += asked.wrong(outcome.done)
    else:
        wrong += _neither(asked)
    return [*wrong, *cut.next_create(w)]


def _launch_first(w: world.World, _place: Place, ids: set[str]) -> tuple[cut.Outcome, list[str]]:
    cut.launch(w)
    wrong = check.offline_problems(w)
    w.boot()
    w.daemon.start()
    w.wait_settled(live=True)
    outcome, unknown = cut.ends(w, ids)
    return outcome, [*wrong, *unknown, *check.problems(w, live=True)]


def _daemon_first(w: world.World, place: Place, ids: set[str]) -> tuple[cut.Outcome, list[str]]:
    """And the power goes once more when recovery says that it is done: what it did was on disk before the journal forgot it."""
    w.daemon.start()
    w.wait_settled(live=False)
    outcome, wrong = cut.ends(w, ids)
    w.cut_power(place.policy.value, place.seed + 1)
    w.daemon.start()
    w.wait_settled(live=False)
    wrong += check.problems(w, live=False)
    return outcome, [*wrong, *cut.reboot(w)]


def _neither(asked: scenarios.Asked) -> list[str]:
    """The journal knows nothing of it, and nobody was told: it may have been done or not, but not in part."""
    done, not_done = [*asked.wrong(True)], [*asked.wrong(False)]
    if not done or not not_done:
        return []
    return [f"were it done: {text}" for text in done] + [f"were it not: {text}" for text in not_done]
