"""Images on their way to the trash, back, and out of it: the daemon is killed or the host loses power at every point, and every
change to a file fails once. An image is always whole at one place, and the trash says which."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from qmpsnap.model import domain_xml, qcow2
from tests import requires
from tests.crash import conftest, daemons
from tests.crash.disk import Policy

SIZE = 1 << 20
BIN = ".qmpsnap-trash"

#: Orphans, top first; all were layers of a domain of ours that runs on another image by now.
NAMES = ("b", "a", "base")


class Shelf:
    """A daemon, and a directory with three orphans, on a disk that can lose power or on the host's own."""

    def __init__(self, zygote: daemons.Zygote, directory: Path, *, lossy: bool) -> None:
        directory.mkdir()
        self.directory = directory
        self.disk = daemons.Disk(zygote, directory) if lossy else None
        keep = self.disk.path if self.disk else directory
        self.images = keep / "i"
        self.images.mkdir()
        self.content = {name: self._image(name) for name in NAMES}
        self.now = self.images / "now"
        self.now.write_bytes(_overlay("", "raw"))
        self.daemon = daemons.Daemon(zygote, directory / "r", keep / "r")
        was = tuple(str(self.images / name) for name in NAMES)
        disk = domain_xml.RecordedDisk("vda", "virtio", str(self.now), "qcow2", was=was)
        recorded = domain_xml.RecordedDomain("daisy", "64ff5d70-1bd4-4d3b-ab1b-ed5232911a6c", disks=(disk,))
        path = keep / "r/state/domain/daisy.xml"
        path.parent.mkdir(parents=True)
        path.write_text(domain_xml.build(recorded))

    def _image(self, name: str) -> bytes:
        below = NAMES[NAMES.index(name) + 1 :]
        return _overlay(str(self.images / below[0]) if below else "", "qcow2")

    def fill(self) -> None:
        """All is as at the beginning: every orphan at its place, the trash empty."""
        self.daemon.kill()
        for name, content in self.content.items():
            (self.images / name).unlink(missing_ok=True)
            (self.images / name).write_bytes(content)
        shutil.rmtree(self.images / BIN, ignore_errors=True)
        shutil.rmtree(self.daemon.keep / "state/trash", ignore_errors=True)
        self.safe()

    def safe(self) -> None:
        """What is there has been there for long."""
        if self.disk is not None:
            self.disk.tell({"sync": True})

    def cut_power(self, policy: str, seed: int) -> None:
        assert self.disk is not None
        self.daemon.kill()
        shutil.rmtree(self.daemon.run)
        self.disk.tell({"cut": policy, "seed": seed})

    def trash(self) -> dict[str, dict[str, Any]]:
        rows = self.daemon.must("GET", "/trash")
        assert not rows["problems"], rows
        return {os.path.basename(row["file"] or row["moved"]): row for row in rows["trash"]}

    def wrong(self, *, gone: bool = False) -> Iterator[str]:
        """What is not as it must be at any time; ``gone``: images may have been deleted."""
        trash = self.trash()
        if rest := trash.keys() - set(NAMES):
            yield f"nobody knows of {rest} in the trash"
        for name, content in self.content.items():
            places = [self.images / name, *([Path(trash[name]["moved"])] if name in trash else [])]
            there = [place for place in places if place.exists()]
            if len(there) != (name in trash or not gone) or (gone and places[0] in there):
                yield f"{name} is at {there}, the trash says {trash.get(name)}"
            if any(place.read_bytes() != content for place in there):
                yield f"{name} has other contents"
        folder = self.images / BIN
        lying = sorted(os.listdir(folder)) if folder.exists() else []
        records = sorted(os.listdir(self.daemon.keep / "state/trash"))
        if lying != records:
            yield f"in the trash are {lying}, recorded are {records}"
        if left := os.listdir(self.daemon.keep / "state/tmp"):
            yield f"state/tmp holds {left}"

    def close(self) -> None:
        self.daemon.kill()
        if self.disk is not None:
            self.disk.close()
        shutil.rmtree(self.directory)


def _overlay(below: str, form: str) -> bytes:
    layout = qcow2.empty_overlay(below.encode(), form, SIZE)
    data = bytearray(layout.length)
    for offset, part in layout.parts:
        data[offset : offset + len(part)] = part
    return bytes(data)


@attrs.frozen
class Act:
    """What is asked for, what must have been done before, and what is wrong once it is done."""

    name: str
    ask: Callable[[Shelf], tuple[str, str, object]]
    done: Callable[[Shelf], bool]
    prepare: Callable[[Shelf], None] | None = None
    gone: bool = False

    def __str__(self) -> str:
        return self.name


def _remove(shelf: Shelf, *files: str) -> None:
    shelf.daemon.must("POST", "/orphans/remove", {"files": files})


ACTS = (
    Act(
        "remove",
        ask=lambda shelf: ("POST", "/orphans/remove", {}),
        done=lambda shelf: [*shelf.trash()] == [*NAMES],
    ),
    Act(
        "remove-rest",
        prepare=lambda shelf: _remove(shelf, str(shelf.images / "b")),
        ask=lambda shelf: ("POST", "/orphans/remove", {}),
        done=lambda shelf: [*shelf.trash()] == [*NAMES],
    ),
    Act(
        "restore",
        prepare=_remove,
        ask=lambda shelf: ("POST", f"/trash/{shelf.trash().get('base', {'id': 'none'})['id']}/restore", None),
        done=lambda shelf: (shelf.images / "base").exists() and "base" not in shelf.trash(),
    ),
    Act(
        "empty",
        prepare=_remove,
        ask=lambda shelf: ("DELETE", "/trash", None),
        done=lambda shelf: not shelf.trash(),
        gone=True,
    ),
)


#: Those that pass other points.
DIFFERENT = [act for act in ACTS if act.name != "remove-rest"]

#: Those that make other changes, and few.
SHORT = [
    Act(
        "remove-one",
        ask=lambda shelf: ("POST", "/orphans/remove", {"files": [str(shelf.images / "b")]}),
        done=lambda shelf: [*shelf.trash()] == ["b"],
    ),
    *ACTS[-2:],
]


@pytest.fixture
def shelves(zygote: daemons.Zygote, short_dir: Path) -> Iterator[Callable[..., Shelf]]:
    made: list[Shelf] = []

    def make(*, lossy: bool = False) -> Shelf:
        made.append(Shelf(zygote, short_dir / f"s{len(made)}", lossy=lossy))
        return made[-1]

    yield make
    for shelf in made:
        shelf.close()


def every_point(shelf: Shelf, act: Act) -> list[str]:
    """The points that it passes in peace, in order."""
    shelf.fill()
    shelf.daemon.start(log_points=True)
    if act.prepare:
        act.prepare(shelf)
    shelf.daemon.points.unlink(missing_ok=True)
    shelf.daemon.must(*act.ask(shelf))
    assert act.done(shelf), shelf.daemon.log()
    assert not [*shelf.wrong(gone=act.gone)]
    return list(dict.fromkeys(shelf.daemon.points.read_text().splitlines()))


def done(shelf: Shelf, act: Act, policy: Policy) -> list[str]:
    """What is wrong when the power goes after the daemon has said that it is done."""
    shelf.fill()
    shelf.daemon.start()
    if act.prepare:
        act.prepare(shelf)
    shelf.safe()
    shelf.daemon.must(*act.ask(shelf))
    shelf.cut_power(policy.value, 0)
    shelf.daemon.start()
    return [*([] if act.done(shelf) else ["it is said to be done, and is not"]), *shelf.wrong(gone=act.gone)]


def begun(shelf: Shelf, act: Act, crash: str) -> daemons.Request:
    """The act is asked of a daemon that will die or hang at that point."""
    shelf.fill()
    if act.prepare:
        shelf.daemon.start()
        act.prepare(shelf)
    shelf.daemon.start(crash=crash)
    shelf.safe()
    return shelf.daemon.request(*act.ask(shelf))


def ended(shelf: Shelf, act: Act) -> list[str]:
    """What is wrong after the daemon has come back, and after the act was asked for once more."""
    shelf.daemon.start()
    return [*shelf.wrong(gone=act.gone), *again(shelf, act)]


def again(shelf: Shelf, act: Act) -> list[str]:
    """What is wrong after it was asked for once more, if it has not been done."""
    if not act.done(shelf):
        shelf.daemon.must(*act.ask(shelf))
    late = [] if act.done(shelf) else ["it is not done when it is asked for again"]
    return [*late, *shelf.wrong(gone=act.gone)]


@pytest.mark.parametrize("act", ACTS, ids=str)
def test_every_point(act: Act, shelves: Callable[..., Shelf], tally: conftest.Tally) -> None:
    """The daemon is killed there."""
    shelf = shelves()
    found = {}
    points = every_point(shelf, act)
    for point in points:
        request = begun(shelf, act, point)
        daemons.until(shelf.daemon.child.ended, lambda: f"it is not passed; log:\n{shelf.daemon.log()}")
        request.answer()
        if wrong := ended(shelf, act):
            found[point] = wrong
    tally.add(f"trash-{act}", "daemon", len(points), len(found))
    assert not found
    assert len(points) >= 3


@requires.requires_fuse
@pytest.mark.parametrize("act", DIFFERENT, ids=str)
def test_power(act: Act, shelves: Callable[..., Shelf], tally: conftest.Tally) -> None:
    """The host loses power there, and the disk leaves the worst that it may, by turns."""
    shelf = shelves(lossy=True)
    found = {}
    points = every_point(shelf, act)
    # By seed 4 a torn disk has lost the old name of what was renamed, and does not have the new one yet.
    policies = [*((policy, 0) for policy in Policy), (Policy.TORN, 4)]
    places = [(point, *policy) for point in points for policy in policies]
    for point, policy, seed in places:
        request = begun(shelf, act, f"{point}:hang")
        daemons.until(shelf.daemon.child.stopped, lambda: f"it is not passed; log:\n{shelf.daemon.log()}")
        shelf.cut_power(policy.value, seed)
        request.answer()
        if wrong := ended(shelf, act):
            found[point, policy.value, seed] = wrong
    found |= {("done", policy.value, 0): wrong for policy in Policy if (wrong := done(shelf, act, policy))}
    tally.add(f"trash-{act}", "host", len(places) + len(Policy), len(found))
    assert not found


@requires.requires_fuse
@pytest.mark.parametrize(
    ("act", "on"),
    [
        *(pytest.param(act, False, id=str(act)) for act in SHORT),
        pytest.param(SHORT[0], True, id="remove-one-and-all-after-it"),
    ],
)
def test_every_failure(act: Act, on: bool, shelves: Callable[..., Shelf]) -> None:
    """The N-th change to a file fails, for every N: one clear line, nothing is lost, and the same passes afterwards."""
    shelf = shelves(lossy=True)
    assert shelf.disk is not None
    found = {}
    for number in itertools.count(1):
        error = (errno.ENOSPC, errno.EIO, errno.EROFS)[number % 3]
        shelf.fill()
        shelf.daemon.start()
        if act.prepare:
            act.prepare(shelf)
        method, url, body = act.ask(shelf)
        fail = {"pid": shelf.daemon.child.pid, "number": number, "errno": error, "on": on}
        shelf.disk.tell({"fail": fail})
        status, answer = shelf.daemon.ask(method, url, body)
        asked = shelf.disk.tell({"fail": None})["asked"]
        if len(asked) < number:
            break
        # A disk that goes on failing takes the daemon's tidying with it: the next daemon does that.
        wrong = ended(shelf, act) if on else again(shelf, act)
        told = [answer["error"]] if status >= 400 else (answer or {}).get("kept", [])
        if any(one["code"] != "file-failed" or os.strerror(error) not in one["message"] for one in told):
            wrong.append(f"{status} {answer}")
        if "Traceback" in shelf.daemon.log(100):
            wrong.append(shelf.daemon.log())
        if wrong:
            found[number, asked[number - 1]] = wrong
    assert not found
    assert number > 3
