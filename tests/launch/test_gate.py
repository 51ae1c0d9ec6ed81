"""When a machine may start: order is forced by files, locks and a clock that jumps."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator

import pytest
import structlog

from qemu_launch import gate
from qmpsnap import errors, paths
from qmpsnap.own import offline
from qmpsnap.talk import files, store
from tests.launch.conftest import Home


class Clock:
    """`time` for the gate: sleeping makes it later, and does what a test planned for that moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.plans: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [plan for plan in self.plans if plan[0] <= self.now]
        self.plans = [plan for plan in self.plans if plan[0] > self.now]
        for _when, act in due:
            act()

    def at(self, when: float, act: Callable[[], None]) -> None:
        self.plans.append((when, act))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(gate, "time", fake)
    return fake


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A recovery sets up the log of the whole process; here that is pytest's."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def way(home: Home, clock: Clock) -> gate.Gate:
    store.Store(home.paths).prepare()
    return gate.Gate(home.paths, "daisy", 30.0)


@pytest.fixture
def daemon(way: gate.Gate, home: Home) -> Iterator[int]:
    """Holds the state's lock as qmpsnapd does."""
    lock = files.lock(home.paths.lock)
    yield lock
    os.close(lock)


def entered(way: gate.Gate) -> None:
    os.close(way.enter())


def listen(path: str, backlog: int) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(backlog)
    return server


def test_free(way: gate.Gate, clock: Clock, home: Home) -> None:
    entered(way)
    assert clock.now == 0
    assert os.stat(home.paths.machine_dir("daisy")).st_mode & 0o777 == 0o750


def test_running(way: gate.Gate, clock: Clock, home: Home) -> None:
    with listen(home.paths.monitor("daisy"), 1), pytest.raises(errors.DomainRunning) as caught:
        way.enter()
    assert str(caught.value).startswith("domain 'daisy' is already running")
    assert clock.now == 0
    entered(way)  # what is left of it is no machine


def test_running_with_a_full_queue(way: gate.Gate, home: Home) -> None:
    monitor = home.paths.monitor("daisy")
    with listen(monitor, 0), socket.socket(socket.AF_UNIX) as first:
        first.connect(monitor)
        with pytest.raises(errors.DomainRunning):
            way.enter()


def test_a_second_start(way: gate.Gate, clock: Clock, home: Home) -> None:
    """The first one's QEMU has not made its monitor yet: the lock tells."""
    first = way.enter()
    with pytest.raises(errors.DomainStarting, match="run/domain/daisy/lock"):
        way.enter()
    assert clock.now == pytest.approx(30, abs=0.2)
    clock.now = 0
    clock.at(5, lambda: os.close(first))
    entered(way)
    assert clock.now == pytest.approx(5, abs=0.2)


def test_the_lock_is_inherited_and_held_by_nobody_else(way: gate.Gate, home: Home) -> None:
    lock = way.enter()
    with open(f"{home.paths.machine_dir('daisy')}/lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(lock)


def test_a_daemon_settles_the_journal(way: gate.Gate, clock: Clock, home: Home, daemon: int) -> None:
    entry = home.open_journal("daisy")
    clock.at(7, entry.unlink)
    entered(way)
    assert clock.now == pytest.approx(7, abs=0.2)


def test_a_daemon_that_does_not(way: gate.Gate, clock: Clock, home: Home, daemon: int) -> None:
    home.open_journal("daisy", "op-b")
    home.open_journal("daisy", "op-a")
    with pytest.raises(errors.JournalOpen, match=r"unfinished operation \(op-a, op-b\): qmpsnapd has not"):
        way.enter()
    assert clock.now == pytest.approx(30, abs=0.2)


def test_the_journal_of_another_domain(way: gate.Gate, home: Home, daemon: int) -> None:
    home.open_journal("rose")
    entered(way)


def test_an_operation_begun_at_the_last_moment(
    way: gate.Gate, clock: Clock, home: Home, daemon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is looked at again under the lock: what is written after that waits for the lock."""
    looks = iter([[], ["op1"], ["op1"], [], []])
    monkeypatch.setattr(gate.Gate, "undecided", lambda self: next(looks))
    entered(way)
    assert list(looks) == []


class Recovery:
    """Stands for own.offline: what it does is its own tests' matter."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.calls: list[tuple[paths.Paths, str]] = []

    def recover(self, where: paths.Paths, domain: str) -> None:
        self.calls.append((where, domain))
        with pytest.raises(errors.StateInUse):
            files.lock(where.lock)  # no daemon may begin meanwhile
        self.act()


def test_without_a_daemon_it_recovers_itself(
    way: gate.Gate, clock: Clock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = Recovery(home.open_journal("daisy").unlink)
    monkeypatch.setattr(offline, "recover", recovery.recover)
    entered(way)
    assert recovery.calls == [(home.paths, "daisy")]
    os.close(files.lock(home.paths.lock))
    assert clock.now == 0


def test_recovery_that_settles_nothing(way: gate.Gate, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.open_journal("daisy")
    monkeypatch.setattr(offline, "recover", Recovery(lambda: None).recover)
    with pytest.raises(errors.JournalOpen, match="recovery could not settle it"):
        way.enter()


def test_recovery_that_needs_a_person(way: gate.Gate, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise errors.Undecided(domain="daisy", verb="snapshot-create", reason="both hold data")

    home.open_journal("daisy")
    monkeypatch.setattr(offline, "recover", Recovery(fail).recover)
    with pytest.raises(errors.Undecided):
        way.enter()
    os.close(files.lock(home.paths.lock))


def test_a_daemon_that_dies_while_we_wait(
    way: gate.Gate, clock: Clock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = home.open_journal("daisy")
    lock = files.lock(home.paths.lock)
    clock.at(3, lambda: os.close(lock))
    monkeypatch.setattr(offline, "recover", Recovery(entry.unlink).recover)
    entered(way)
    assert clock.now == pytest.approx(3, abs=0.2)


def test_a_damaged_entry_blocks(way: gate.Gate, home: Home) -> None:
    """The real recovery, on an entry that is none."""
    home.open_journal("daisy")
    with pytest.raises(errors.Error):
        way.enter()
