"""The daemon's N-th change of the disk fails: what it says then, and what is there once the disk is well again."""

from __future__ import annotations

import errno
import os

import attrs

from tests.crash import check, cut, daemons, scenarios, world


@attrs.frozen
class Place:
    """Which change fails, and with what; ``on``: so does every later one, and the daemon is started again meanwhile."""

    number: int
    errno: int
    on: bool = False

    def __str__(self) -> str:
        after = " and all after it" if self.on else ""
        return f"change {self.number}{after}: {errno.errorcode[self.errno]}"


def changes(w: world.World, scenario: scenarios.Scenario) -> list[str]:
    """Every change of the disk that the scenario asks for, in order: it is carried out once, and nothing fails."""
    assert w.disk is not None
    asked = scenario.prepare(w)
    _arm(w, w.daemon.child.pid, Place(0, 0))
    w.daemon.must(asked.method, f"{asked.url}{'&' if '?' in asked.url else '?'}wait=true", asked.body)
    return list(w.disk.tell({"fail": None})["asked"])


def at_change(w: world.World, scenario: scenarios.Scenario, place: Place) -> list[str]:
    """Nothing may be wrong: the verb has failed in one line and nothing has changed, or is done, at once or by recovery."""
    assert w.disk is not None
    asked = scenario.prepare(w)
    _arm(w, w.daemon.child.pid, place)
    status, answer = w.daemon.ask(asked.method, asked.url, asked.body)
    if status < 300:
        status, answer = w.daemon.ask("GET", f"/operations/{answer['id']}?wait=true")
    ids = set(w.journal()) | ({answer["id"]} if status < 300 else set())
    error = answer["error"]
    seen = w.disk.tell({})["asked"]
    wrong = _told(error["message"]) if error else _untold(seen, place)
    if place.on:
        wrong += _start_again(w, place)
    w.disk.tell({"fail": None})
    wrong += _settled(w, place, ids)
    if os.listdir(w.daemon_state / "tmp"):
        # A file on its way that could not be removed: that is done when the daemon starts.
        w.daemon.start()
        wrong += _settled(w, place, ids)
    outcome, unknown = cut.ends(w, ids)
    wrong += unknown
    wrong += check.problems(w, live=True)
    wrong += asked.wrong(outcome.done)
    if "Traceback" in w.daemon.told():
        wrong.append(f"the log tells of a bug:\n{w.daemon.log(60)}")
    return wrong or cut.next_create(w)


def at_change_and_cut(w: world.World, scenario: scenarios.Scenario, place: Place) -> list[str]:
    """The same, and then the power goes: what could not be flushed at first has been flushed before anybody was told."""
    wrong = at_change(w, scenario, place)
    if wrong:
        return wrong
    w.cut_power("synced", 0)
    w.daemon.start()
    w.wait_settled(live=False)
    return [*check.problems(w, live=False), *cut.reboot(w), *_gone(w)]


def _gone(w: world.World) -> list[str]:
    """Snapshots that were made and are no longer listed; the last one is in every case."""
    listed = [s["name"] for s in w.daemon.must("GET", f"{world.API}/snapshots")["snapshots"]]
    last = list(w.frozen)[-1]
    return [] if last in listed else [f"{last} was made, and {listed} are listed"]


def _arm(w: world.World, pid: int, place: Place) -> None:
    assert w.disk is not None
    failure = {"pid": pid, "number": place.number, "errno": place.errno, "on": place.on}
    w.disk.tell({"fail": failure})


def _told(message: str) -> list[str]:
    return [] if message and "\n" not in message else [f"it is not told in one line: {message!r}"]


#: What an operation can do without: an overlay that cannot be given to its image's owner stays ours, and libvirt itself leaves
#: the directory of a domain without snapshots.
_NEEDLESS = {("setattr", errno.EACCES), *(("rmdir", number) for number in errno.errorcode)}


def _untold(seen: list[str], place: Place) -> list[str]:
    """What failed although the operation is said to be done, unless it can do without."""
    failed = seen[place.number - 1] if place.number <= len(seen) else ""
    return [f"'{failed}' failed, and nobody was told"] * bool(
        failed and (failed, place.errno) not in _NEEDLESS
    )


def _start_again(w: world.World, place: Place) -> list[str]:
    """The daemon is started while its disk still fails: it serves, or says in one line why not."""
    assert w.disk is not None
    w.daemon.kill()
    _arm(w, w.zygote.pid, attrs.evolve(place, number=1))
    w.daemon.start()
    told = w.daemon.told().strip() if w.daemon.child.ended() else ""
    w.disk.tell({"fail": None})
    if not told:
        return []
    w.daemon.start()
    return [] if told.startswith("error: ") and "\n" not in told else [f"it does not start, and says: {told}"]


def _settled(w: world.World, place: Place, ids: set[str]) -> list[str]:
    """Recovery finishes by itself what is open, each few seconds; a start of the daemon does the same at once."""
    states = {w.daemon.ask("GET", f"/operations/{ident}")[1].get("state") for ident in ids}
    if (place.number + place.errno) % 8 and "recovering" in states:
        w.daemon.start()
    try:
        w.wait_settled(live=True)
    except daemons.TooLate as error:
        return [str(error)]
    return []
