"""Thousands of random histories in memory: nothing that is listed ever changes, nothing that is needed is let go."""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.histories import draw, promises, world
from tests.histories.actions import Action

#: More find more: QMPSNAP_HISTORIES=20000 takes some minutes.
HISTORIES = int(os.environ.get("QMPSNAP_HISTORIES", "1000"))
LENGTH = 25
PARTS = 4
DEATHS = ("daemon", "qemu", "both", "host")


class Lab:
    """Makes worlds, each in an empty directory, and the histories in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def world(self, seed: int) -> world.World:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        chance = random.Random(seed)
        return world.World(str(self._folder), {"a": chance.randint(1, 3), "b": chance.randint(1, 2)})

    def history(self, seed: int, *, outside: bool) -> tuple[list[Action], list[str]]:
        """A new history, up to where something went wrong; and what."""
        w = self.world(seed)
        watch, source = promises.Watch(w), draw.Source(random.Random(seed), DEATHS, outside=outside)
        done: list[Action] = []
        for _ in range(LENGTH):
            action = source(w)
            done.append(action)
            w.do(action)
            if wrong := watch.problems(action):
                return done, wrong
        return done, []

    def again(self, seed: int, history: Sequence[Action]) -> list[str]:
        """The same history, or a part of it: what goes wrong first."""
        w = self.world(seed)
        watch = promises.Watch(w)
        for action in history:
            w.do(action)
            if wrong := watch.problems(action):
                return wrong
        return []


@pytest.fixture
def lab(short_dir: Path) -> Lab:
    return Lab(short_dir / "i")


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("outside", [False, True], ids=["alone", "with-outsiders"])
def test_nothing_is_lost(lab: Lab, outside: bool, part: int) -> None:
    """Every promise holds after every action and every death, in every history."""
    for seed in range(part, HISTORIES, PARTS):
        history, wrong = lab.history(seed, outside=outside)
        if wrong:
            short = draw.shortest(history, functools.partial(lab.again, seed))
            text = "\n".join(f"  {action}" for action in short)
            pytest.fail(f"seed {seed}:\n{text}\n" + "\n".join(lab.again(seed, short)))
