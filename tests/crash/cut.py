"""One cut: a world, a scenario, a place where everything stops; then recovery, and a look at all that must be true.

A fault kills the daemon, QEMU, or both, and brings them back. Whatever operation was begun must be told to be done or failed
afterwards, and what is there must be what such an end means.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import TypeVar

import attrs

from qmpsnap import errors, paths
from qmpsnap.own import offline
from qmpsnap.talk import files
from tests.crash import check, daemons, scenarios, world
from tests.crash.scenarios import Fault

T = TypeVar("T")


HANGING = {Fault.QEMU, Fault.QEMU_WRITTEN}
_WRITING = {Fault.DAEMON, Fault.BOTH_WRITTEN, Fault.QEMU_WRITTEN, Fault.LAUNCH}

#: What strikes at any moment, without a point.
SIGNALS = tuple(fault for fault in Fault if fault is not Fault.CUT)


@attrs.frozen
class Outcome:
    """What was found of the operation: its ids as far as anybody could know them, and how each has ended."""

    ends: dict[str, str]

    @property
    def done(self) -> bool:
        return "done" in self.ends.values()


def ends(w: world.World, ids: set[str]) -> tuple[Outcome, list[str]]:
    """How the operations have ended; what is not knowable is a problem."""
    found, wrong = {}, []
    for ident in sorted(ids):
        status, operation = w.daemon.ask("GET", f"/operations/{ident}")
        state = operation.get("state", "") if status == 200 else str(operation)
        found[ident] = state
        if status != 200 or state not in {"done", "failed"}:
            wrong.append(f"the end of operation {ident} is not knowable: {status} {operation}")
        elif (operation["error"] is None) != (state == "done"):
            wrong.append(f"operation {ident} is {state} with error {operation['error']}")
    return Outcome(found), wrong


def points(w: world.World, scenario: scenarios.Scenario) -> list[str]:
    """Every point that the scenario passes, in order: it is carried out once, in peace."""
    asked = scenario.prepare(w)
    w.daemon.start(log_points=True)
    w.wait_settled(live=True)
    before = w.daemon.points.read_text() if w.daemon.points.exists() else ""
    url = f"{asked.url}{'&' if '?' in asked.url else '?'}wait=true"
    w.daemon.must(asked.method, url, asked.body)
    found = w.daemon.points.read_text().removeprefix(before).splitlines()
    wrong = [*check.problems(w, live=True), *asked.wrong(True)]
    assert not wrong, wrong
    return list(dict.fromkeys(found))


def at_point(
    w: world.World, scenario: scenarios.Scenario, point: str, fault: Fault, every: list[str]
) -> list[str]:
    """What is wrong after ``fault`` has struck at ``point``; the world is fit for the next round when nothing is."""
    asked = scenario.prepare(w)
    hang, off = fault in HANGING, fault is Fault.CUT
    w.daemon.start(crash=f"{point}{':hang' if hang else ':cut' if off else ''}")
    w.wait_settled(live=True)
    request = w.daemon.request(asked.method, asked.url, asked.body)
    struck = w.daemon.child.stopped if hang else w.daemon.cut_off if off else w.daemon.child.ended
    daemons.until(struck, lambda: f"it is not passed; log:\n{w.daemon.log()}")
    outcome, wrong = (reconnected if off else recovered)(w, asked, request, fault)
    if fault is Fault.DAEMON and every.index(point) >= every.index(scenario.commits) and not outcome.done:
        wrong.append(f"the operation was past its commit point, and has not been finished: {outcome.ends}")
    return wrong + next_create(w)


def at_moment(w: world.World, scenario: scenarios.Scenario, seconds: float, fault: Fault) -> list[str]:
    """What is wrong after ``fault`` has struck so long after the request was sent: anywhere, or when all was over."""
    asked = scenario.prepare(w)
    request = w.daemon.request(asked.method, asked.url, asked.body)
    child = w.daemon.child
    assert not child.ended(seconds), f"the daemon died by itself; log:\n{w.daemon.log()}"
    child.send(signal.SIGSTOP if fault in HANGING else signal.SIGKILL)
    daemons.until(child.stopped if fault in HANGING else child.ended, lambda: "the signal does not arrive")
    _outcome, wrong = recovered(w, asked, request, fault)
    return wrong + next_create(w)


def recovered(
    w: world.World, asked: scenarios.Asked, request: daemons.Request, fault: Fault
) -> tuple[Outcome, list[str]]:
    """The daemon is dead or stands still: the rest of the fault happens, everybody comes back; and what is wrong then."""
    ids = set(w.journal())
    if fault in _WRITING:
        w.write()
    if fault is not Fault.DAEMON:
        w.kill_machine()
    if fault in HANGING:
        w.daemon.child.send(signal.SIGCONT)
    answer = request.answer()
    if answer is not None and answer[0] < 300:
        ids.add(answer[1]["id"])
    outcome, wrong = _back(w, fault, ids)
    return outcome, wrong or list(asked.wrong(outcome.done))


def reconnected(
    w: world.World, asked: scenarios.Asked, request: daemons.Request, _fault: Fault
) -> tuple[Outcome, list[str]]:
    """The daemon has lost its connection, and may have it again: what is wrong once it says that it has recovered."""
    answer = request.answer()
    assert answer is not None, f"the daemon is dead: {w.daemon.log()}"
    # A request that was refused before it began has no id.
    ids = set(w.journal()) | ({answer[1]["id"]} if answer[0] < 300 else set())
    w.write()
    w.wait_settled(live=True)
    outcome, wrong = ends(w, ids)
    wrong += check.problems(w, live=True)
    return outcome, wrong or list(asked.wrong(outcome.done))


def _back(w: world.World, fault: Fault, ids: set[str]) -> tuple[Outcome, list[str]]:
    """Everybody is back; ``wrong`` holds what recovery has left wrong, before the boot and after it."""
    wrong: list[str] = []
    if fault is Fault.LAUNCH:
        launch(w)
        wrong += check.offline_problems(w)
        w.boot()
    if fault not in HANGING:
        w.daemon.start()
    if fault is Fault.DAEMON or fault is Fault.LAUNCH:
        w.wait_settled(live=True)
        outcome, unknown = ends(w, ids)
        return outcome, wrong + unknown + check.problems(w, live=True)
    w.wait_settled(live=False)
    outcome, unknown = ends(w, ids)
    wrong += unknown + check.problems(w, live=False)
    return outcome, wrong + reboot(w)


def reboot(w: world.World) -> list[str]:
    """What is wrong when the machine is started again on the recorded layers."""
    w.boot()
    w.wait_settled(live=True)
    return check.problems(w, live=True)


def launch(w: world.World) -> None:
    """What qemu-launch does before it boots: recovery without a daemon, under the lock of the state."""
    where = paths.find(w.daemon.where, os.getuid())
    held = files.lock(where.lock)
    try:
        offline.recover(where, world.NAME)
    except errors.Error as error:
        raise AssertionError(f"qemu-launch would not boot: {error}") from error
    finally:
        os.close(held)


def next_create(w: world.World) -> list[str]:
    """What is wrong with the snapshot that is made next, in peace."""
    name = w.new_name()
    w.freeze(name)
    status, answer = w.daemon.ask("POST", f"{world.API}/snapshots?wait=true", {"name": name})
    if status != 200:
        return [f"the next snapshot is refused: {answer}"]
    w.write()
    return [f"after the next snapshot: {text}" for text in check.problems(w, live=True)]


def rounds(
    make: Callable[[], world.World],
    places: Iterable[T],
    limit: int,
    cut: Callable[[world.World, T], list[str]],
) -> dict[T, list[str]]:
    """What ``cut`` found wrong at each place; a world serves up to ``limit`` places, and none after something went wrong in it."""
    found: dict[T, list[str]] = {}
    w: world.World | None = None
    used = 0
    try:
        for place in places:
            if w is None:
                w, used = make(), 0
            try:
                wrong = cut(w, place)
            except Exception as error:  # whatever it is, it is told with its place
                wrong = [f"{type(error).__name__}: {error}"]
            used += 1
            if wrong:
                found[place] = wrong
            if wrong or used == limit:
                w.close()
                w = None
    finally:
        if w is not None:
            w.close()
    return found
