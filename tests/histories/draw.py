"""Random histories: what could happen next in a world, and the shortest part of a history that still goes wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence

import attrs

from tests.histories import actions, host, world
from tests.histories.actions import Action

Chance = random.Random

#: Names of snapshots: few, so that a forgotten one's is used again.
NAMES = ("s1", "s2", "s3", "s4", "s5", "s6")


def _name(path: str) -> str:
    return os.path.basename(path)


class Source:
    """Draws actions that can be carried out in the world as it is; with ``deaths`` of these, and with outsiders or not."""

    def __init__(self, chance: Chance, deaths: Sequence[str], *, outside: bool, again: bool = True) -> None:
        """``again``: deaths follow on deaths in any way."""
        self._chance = chance
        self._deaths = deaths
        self._again = again
        self._value = 100
        self._files = 0
        kinds: dict[Callable[[world.World], Action | None], int] = {
            self._create: 12, self._reuse: 2, self._pull: 8, self._current: 1, self._forget: 3,
            self._write: 8, self._boot: 8, self._off: 2, self._restart: 1, self._trash: 3, self._clone: 2,
        }  # fmt: skip
        if outside:
            kinds |= {
                self._hand_snapshot: 1, self._hand_stream: 1, self._hand_commit: 1,
                self._hand_write: 1, self._hand_remove: 1, self._boot_elsewhere: 1,
            }  # fmt: skip
        self._kinds, self._weights = [*kinds], [*kinds.values()]

    def __call__(self, w: world.World) -> Action:
        while True:
            action = self._chance.choices(self._kinds, self._weights)[0](w)
            if action is not None:
                return action

    # --- choices ---

    def _maybe(self, often: float) -> bool:
        return self._chance.random() < often

    def _running(self, w: world.World) -> str | None:
        return self._chance.choice([*w.host.machines]) if w.host.machines else None

    def _any(self, w: world.World) -> str:
        return self._chance.choice(w.keeper.domains)

    def _new_value(self) -> int:
        self._value = self._value % 250 + 1
        return self._value

    def _new_file(self, kind: str) -> str:
        self._files += 1
        return f"{kind}{self._files}.qcow2"

    def _images(self, w: world.World) -> list[str]:
        return [_name(file) for file in w.host.images]

    def _cuts(self, points: int) -> tuple[actions.Cut, ...]:
        """No death for most, one for some, and another in the recovery for a few."""
        found: list[actions.Cut] = []
        while self._deaths and len(found) < 3 and self._maybe(0.5):
            who = self._chance.choice(self._deaths)
            wrote = self._new_value() if self._maybe(0.5) else 0
            found.append(actions.Cut(self._chance.randrange(points), who, wrote, self._chance.randrange(4)))
            if not self._again:
                break
        return tuple(found)

    def _disk(self, w: world.World) -> tuple[str, host.Device] | None:
        name = self._running(w)
        devices = w.host.machines[name].devices if name else []
        return (name, self._chance.choice(devices)) if name and devices else None

    # --- what people ask for ---

    def _create(self, w: world.World) -> Action | None:
        name = self._running(w)
        if name is None:
            return None
        owners = [device.owner for device in w.host.machines[name].devices]
        chosen = (
            owners if self._maybe(0.5) else self._chance.sample(owners, self._chance.randint(1, len(owners)))
        )
        missing = [f for f in self._named(w) if f not in self._images(w)]
        file = self._chance.choice(missing) if missing and self._maybe(0.3) else ""
        files = tuple((owner, file if n == 0 else "") for n, owner in enumerate(sorted(chosen)))
        metadata = self._maybe(0.85)
        return actions.Create(name, self._chance.choice(NAMES), files, metadata=metadata, cuts=self._cuts(22))

    def _named(self, w: world.World) -> list[str]:
        """Names that lead nowhere although somebody has them written down."""
        return sorted({_name(f) for f, found in w.keeper.graph().found.items() if found.identity is None})

    def _reuse(self, w: world.World) -> Action | None:
        found = self._disk(w)
        if found is None:
            return None
        name, device = found
        active = device.chain[0].file
        # One that holds data would change what the guest reads: its maker's affair.
        all_ = w.host.images.items()
        fit = [_name(f) for f, image in all_ if image.backing == active and not any(image.blocks)]
        if not fit:
            return actions.Overlay(self._new_file("r"), _name(active))
        if self._maybe(0.3):
            return actions.Overlay(self._new_file("k"), self._chance.choice(fit))
        files = ((device.owner, self._chance.choice(fit)),)
        return actions.Create(name, self._chance.choice(NAMES), files, reuse=True, cuts=self._cuts(14))

    def _pull(self, w: world.World) -> Action | None:
        range_ = self._range(w)
        if range_ is None:
            return None
        name, top, base = range_
        return actions.Pull(name, top, base, cuts=self._cuts(20))

    def _range(self, w: world.World) -> tuple[str, str, str] | None:
        found = self._disk(w)
        if found is None or len(found[1].chain) < 2:
            return None
        name, device = found
        files = [_name(node.file) for node in device.chain]
        top = 0 if self._maybe(0.6) else self._chance.randrange(len(files) - 1)
        base = "" if self._maybe(0.4) else self._chance.choice(files[top + 1 :])
        return name, files[top], base

    def _current(self, w: world.World) -> Action | None:
        name = self._any(w)
        taken = [*w.keeper.tree(name).snapshots]
        return actions.Current(name, self._chance.choice(taken), self._cuts(6)) if taken else None

    def _forget(self, w: world.World) -> Action | None:
        name = self._any(w)
        taken = [*w.keeper.tree(name).snapshots]
        if not taken:
            return None
        return actions.Forget(name, self._chance.choice(taken), self._maybe(0.3), self._cuts(8))

    def _trash(self, w: world.World) -> Action:
        return actions.Trash(self._chance.choice(self._images(w)))

    # --- machines and guests ---

    def _write(self, w: world.World) -> Action | None:
        found = self._disk(w)
        if found is None:
            return None
        return actions.Write(found[0], found[1].owner, self._chance.randrange(host.BLOCKS), self._new_value())

    def _boot(self, w: world.World) -> Action | None:
        off = [name for name in w.keeper.domains if name not in w.host.machines]
        if not off:
            return None
        name = self._chance.choice(off)
        disks = [(d.target, _name(d.file)) for d in w.keeper.recorded(name).disks]
        # In another order, or with a disk left out: places on the bus are others.
        if self._maybe(0.3):
            self._chance.shuffle(disks)
        if len(disks) > 1 and self._maybe(0.2):
            disks.pop(self._chance.randrange(len(disks)))
        return actions.Boot(name, tuple(disks))

    def _off(self, w: world.World) -> Action | None:
        name = self._running(w)
        return actions.Off(name, self._maybe(0.5), self._chance.randrange(2)) if name else None

    def _restart(self, w: world.World) -> Action:
        return actions.Restart()

    # --- outsiders ---

    def _clone(self, w: world.World) -> Action | None:
        """A linked clone, of what nobody writes to."""
        still = [_name(f) for f in w.host.images if not w.host.opened(f, writing=True)]
        recorded = {_name(w.boots(*key)) for key in w.expected}
        still = [file for file in still if file not in recorded]
        return actions.Overlay(self._new_file("k"), self._chance.choice(still)) if still else None

    def _hand_snapshot(self, w: world.World) -> Action | None:
        found = self._disk(w)
        return actions.HandSnapshot(found[0], found[1].owner, self._new_file("h")) if found else None

    def _hand_stream(self, w: world.World) -> Action | None:
        range_ = self._range(w)
        return actions.HandStream(*range_) if range_ else None

    def _hand_commit(self, w: world.World) -> Action | None:
        range_ = self._range(w)
        return actions.HandCommit(*range_) if range_ and range_[2] else None

    def _hand_write(self, w: world.World) -> Action | None:
        file = self._chance.choice(self._images(w))
        return actions.HandWrite(file, self._chance.randrange(host.BLOCKS), self._new_value())

    def _hand_remove(self, w: world.World) -> Action | None:
        recorded = {_name(w.boots(*key)) for key in w.expected}
        rest = [file for file in self._images(w) if file not in recorded]
        return actions.HandRemove(self._chance.choice(rest)) if rest else None

    def _boot_elsewhere(self, w: world.World) -> Action | None:
        """By an old command line: some disks on the layer that they had first."""
        off = [name for name in w.keeper.domains if name not in w.host.machines]
        if not off:
            return None
        name = self._chance.choice(off)
        recorded = w.keeper.recorded(name).disks
        disks = [(d.target, w.first[name, d.target] if self._maybe(0.7) else _name(d.file)) for d in recorded]
        return actions.Boot(name, tuple(disks), launched=False)


def shortest(history: Sequence[Action], wrong: Callable[[Sequence[Action]], object]) -> list[Action]:
    """A part of the history that is still wrong, and is not without any one of its actions or deaths."""
    found, again = [*history], True
    while again:
        again = False
        for n in reversed(range(len(found))):
            for less in _less(found[n]):
                part = [*found[:n], *less, *found[n + 1 :]]
                if wrong(part):
                    found, again = part, True
                    break
    return found


def _less(action: Action) -> list[list[Action]]:
    """Nothing, or the same with one death less, or a simpler one."""
    simpler: list[list[Action]] = [[]]
    if not isinstance(action, actions.Verb):
        return simpler
    cuts = action.cuts
    for n, cut in enumerate(cuts):
        others = cuts[:n], cuts[n + 1 :]
        simpler.append([attrs.evolve(action, cuts=(*others[0], *others[1]))])
        plain = (attrs.evolve(cut, wrote=0), attrs.evolve(cut, chance=0))
        simpler += [[attrs.evolve(action, cuts=(*others[0], one, *others[1]))] for one in plain if one != cut]
    return simpler
