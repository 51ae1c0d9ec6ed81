"""The double is held against the truth: the same random histories with real QEMUs and a real daemon, compared after each action."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from tests import requires
from tests.crash import daemons
from tests.histories import draw, promises, truth, world
from tests.histories.actions import Action

pytestmark = requires.requires_qemu

#: More find more: QMPSNAP_TRUE_HISTORIES=1000 takes ten minutes.
HISTORIES = int(os.environ.get("QMPSNAP_TRUE_HISTORIES", "60"))
PARTS = 6
LENGTH = 10
#: The host's death is tests.crash's: it needs a disk that forgets.
DEATHS = ("daemon", "qemu", "both")


class Pair:
    """A double, and the truth beside it."""

    def __init__(self, folder: Path, zygote: daemons.Zygote, seed: int) -> None:
        chance = random.Random(seed)
        (folder / "double").mkdir(parents=True)
        self.double = world.World(
            str(folder / "double"), {"a": chance.randint(1, 3), "b": chance.randint(1, 2)}
        )
        self.watch = promises.Watch(self.double)
        self.truth = truth.Truth(folder / "t", zygote, self.double)

    def do(self, action: Action) -> list[str]:
        machines = self.double.host.machines
        owners = {name: [d.owner for d in machine.devices] for name, machine in machines.items()}
        self.double.do(action)
        self.truth.do(action, owners)
        return self.truth.problems()


def _history(folder: Path, zygote: daemons.Zygote, seed: int) -> tuple[list[Action], list[str]]:
    pair, done = Pair(folder, zygote, seed), list[Action]()
    source = draw.Source(random.Random(seed), DEATHS, outside=seed % 2 == 1, again=False)
    try:
        for _ in range(LENGTH):
            done.append(source(pair.double))
            try:
                wrong = pair.do(done[-1])
            except Exception as error:  # whatever it is, it is told with its history
                wrong = [f"{type(error).__name__}: {error}"]
            if wrong:
                return done, wrong
    finally:
        pair.truth.close()
        shutil.rmtree(folder)
    return [], []


@pytest.fixture(scope="module")
def zygote() -> Iterator[daemons.Zygote]:
    requires.need("qemu")
    with daemons.Zygote() as found:
        yield found


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="qt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("part", range(PARTS))
def test_double_is_true(root: Path, zygote: daemons.Zygote, part: int) -> None:
    """Records, chains, files, refusals, and every byte of every listed snapshot and active layer are as the double has them."""
    seeds = range(part, HISTORIES, PARTS)
    with futures.ThreadPoolExecutor(2) as pool:
        ends = pool.map(lambda seed: _history(root / f"{seed}", zygote, seed), seeds)
        for seed, (history, wrong) in zip(seeds, ends, strict=True):
            text = "\n".join(f"  {action}" for action in history)
            assert not wrong, f"seed {seed}:\n{text}\n" + "\n".join(wrong)
