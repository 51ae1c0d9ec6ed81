"""Fixtures of the crash suite, and the table at its end."""

from __future__ import annotations

import collections
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.crash import daemons, world

#: Every kind of loss and every reason to fail at every point, for who has half an hour; else they take turns.
ALL = bool(os.environ.get("QMPSNAP_CRASH_ALL"))

#: Rows of the table: (scenario, fault) to cuts tried and cuts after which something was wrong.
_TALLY = pytest.StashKey[dict[tuple[str, str], tuple[int, int]]]()


class Tally:
    """What was tried, for the table."""

    def __init__(self, rows: dict[tuple[str, str], tuple[int, int]]) -> None:
        self._rows = rows

    def add(self, scenario: str, fault: str, tried: int, lost: int) -> None:
        before = self._rows.get((scenario, fault), (0, 0))
        self._rows[scenario, fault] = before[0] + tried, before[1] + lost


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = {}


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return Tally(request.config.stash[_TALLY])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_TALLY]
    if not rows:
        return
    terminalreporter.section("crashes: cuts tried, and those after which anything was wrong")
    faults = list(dict.fromkeys(fault for _scenario, fault in rows))
    width = max(len(scenario) for scenario, _fault in rows)
    terminalreporter.line(" ".join([" " * width, *(f"{fault:>13}" for fault in faults)]))
    total: collections.Counter[str] = collections.Counter()
    for scenario, _group in itertools.groupby(sorted(rows), key=lambda row: row[0]):
        cells = []
        for fault in faults:
            tried, lost = rows.get((scenario, fault), (0, 0))
            cells.append(f"{f'{tried} / {lost}' if tried else '':>13}")
            total.update(tried=tried, lost=lost)
        terminalreporter.line(" ".join([f"{scenario:{width}}", *cells]))
    terminalreporter.line(f"{total['tried']} cuts, {total['lost']} losses")


@pytest.fixture(scope="session")
def zygote() -> Iterator[daemons.Zygote]:
    requires.need("qemu")
    with daemons.Zygote() as found:
        yield found


@pytest.fixture(scope="session")
def make_world(zygote: daemons.Zygote) -> Iterator[Callable[..., world.World]]:
    """Makes worlds, from any thread; who makes one closes it. Their directories are gone at the end."""
    root = Path(tempfile.mkdtemp(prefix="qc-", dir="/tmp"))
    count = itertools.count()

    def make(*, proxied: bool = False, lossy: bool = False) -> world.World:
        return world.World(root / f"w{next(count)}", zygote, proxied=proxied, lossy=lossy)

    yield make
    shutil.rmtree(root)
