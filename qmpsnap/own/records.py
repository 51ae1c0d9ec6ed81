"""What is recorded of one domain, on disk and in memory: its disks and their layers, its snapshots.

Nothing is guessed from a file that cannot be read: it is left as it is, said, and read again when it may have been put right.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs
import structlog
import trio

from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import chain, domain_xml, images, snapshot, snapshot_xml
from qmpsnap.own import describe, seeing
from qmpsnap.plan import steps
from qmpsnap.talk import process, store

_log = structlog.stdlib.get_logger(__name__)


class Records:
    """The records of the domain ``name``: ``domain`` is what was read of it when the daemon started, ``machine`` its QEMU, while
    one answers."""

    def __init__(
        self,
        home: store.Store,
        name: str,
        domain: domain_xml.RecordedDomain | None,
        machine: Callable[[], execute.Machine | None],
    ) -> None:
        self.domain = domain or blank(name)
        self.tree = snapshot.Tree({})
        #: What of the snapshots could not be read.
        self.damaged: list[str] = []
        #: Why the domain's record could not be read: then it is left as it is, and nothing is changed.
        self.bad: errors.RecordDamaged | None = None
        self._store = home
        self._name = name
        self._machine = machine
        self._log = _log.bind(domain=name)
        # Two operations of the domain may record at once: a pull beside whatever else is done.
        self._turn = trio.Lock()
        # The QEMU process that was last looked at, and the file that each disk was seen to write to in its life.
        self._witnessed: tuple[process.Process | None, dict[str, str]] = (None, {})

    def needs(self) -> Iterator[images.Need]:
        """Every image that the records name."""
        return images.needs_of(self.domain, self.tree)

    # --- reading ---

    async def read(self) -> None:
        """``bad`` tells whether the domain's record can be read. One that was put right counts from now on; when it was moved away,
        what has been seen since is recorded."""
        try:
            found = await execute.in_thread(self._store.domain, self._name)
        except errors.RecordDamaged as error:
            if self.bad is None:
                self._log.error("Record is damaged", error=str(error))
            self.bad = error
            return
        if self.bad is not None:
            if found is None:
                await execute.in_thread(self._store.record, self._name, self.domain, {})
            self.domain, self.bad = found or self.domain, None
            self._log.info("Record can be read again")

    async def read_snapshots(self) -> None:
        """What is damaged is said once, and left alone."""
        self.tree, bad = await execute.in_thread(self._store.snapshots, self._name)
        told, self.damaged = self.damaged, [str(error) for error in bad]
        for text in self.damaged:
            if text not in told:
                self._log.error("Snapshot is damaged", error=text)

    async def check_snapshots(self, name: str) -> None:
        """``SnapshotDamaged`` while one that cannot be read may be the parent of a new one, or have its ``name``."""
        if not self.damaged:
            return
        await self.read_snapshots()
        taken = name not in self.tree.snapshots and self._store.has_snapshot(self._name, name)
        if self.damaged and (self.tree.current is None or taken):
            raise errors.SnapshotDamaged(domain=self._name, reason=self.damaged[0])

    # --- what plans record ---

    async def record(self, act: steps.Record) -> None:
        """Carries out ``steps.Record``: on disk first, then in memory."""
        async with self._turn:
            if act.active and self.bad:
                raise self.bad
            recorded = self.domain.on(act.active) if act.active else None
            if act.remove and not self.bad:
                recorded = await self._still_frozen(recorded or self.domain, act.remove)
            written, after = self._changed(act, await self._fingerprinted(act))
            # The new current one first: two that claim it are settled by the journal, none that does would be a loss.
            ordered = dict(sorted(written.items(), key=lambda item: item[0] != act.current))
            await execute.in_thread(self._store.record, self._name, recorded, ordered, act.remove)
            self.domain = recorded or self.domain
            self.tree = snapshot.Tree(after)
            # What QEMU was seen on, not what is recorded: recovery records layers that a QEMU started below them does not have.
            machine = self._machine()
            self._witness(machine.observer.disks if machine else ())

    async def _still_frozen(
        self, recorded: domain_xml.RecordedDomain, forgotten: Iterable[str]
    ) -> domain_xml.RecordedDomain:
        """The domain keeps the fingerprints of snapshots that are forgotten: others may read through their images."""
        gone = (self.tree.snapshots[name] for name in forgotten if name in self.tree.snapshots)
        parts = (part for taken in gone for part in taken.disks if part.stamp)
        known = {one.file: one for one in recorded.layers}
        more = {d.image: domain_xml.FrozenLayer(d.image, d.stamp) for d in parts}
        layers = await execute.in_thread(seeing.there, (known | more).values())
        return attrs.evolve(recorded, layers=tuple(layers))

    async def _fingerprinted(self, act: steps.Record) -> dict[str, snapshot.Snapshot]:
        written = {name: snapshot_xml.parse(text, name) for name, text in act.snapshots.items()}
        if act.fresh:
            return await execute.in_thread(seeing.fingerprinted, written)
        # Decided before a pull has perhaps given one of them another fingerprint.
        return {name: self._with_stamps(value) for name, value in written.items()}

    def _with_stamps(self, value: snapshot.Snapshot) -> snapshot.Snapshot:
        known = self.tree.snapshots.get(value.name)
        stamps = {d.target: d.stamp for d in known.disks if d.stamp} if known else {}
        return snapshot_xml.stamped(value, stamps)

    def _changed(
        self, act: steps.Record, written: dict[str, snapshot.Snapshot]
    ) -> tuple[dict[str, snapshot.Snapshot], dict[str, snapshot.Snapshot]]:
        """The snapshots to be written, and all there are then."""
        after = {n: s for n, s in {**self.tree.snapshots, **written}.items() if n not in act.remove}
        for name, value in after.items():
            wanted = name == act.current if act.current else value.current
            if value.current != wanted:
                written[name] = after[name] = attrs.evolve(value, current=wanted)
        return written, after

    async def fingerprint(self, act: steps.Fingerprint) -> None:
        """Carries out ``steps.Fingerprint``; a snapshot that has been forgotten meanwhile is none of its concern."""
        async with self._turn:
            held = {name: s for name in act.snapshots if (s := self.tree.snapshots.get(name)) is not None}
            written = await execute.in_thread(seeing.fingerprinted, held, act.file)
            layers = await execute.in_thread(seeing.frozen_again, self.domain.layers, act.file)
            recorded = attrs.evolve(self.domain, layers=layers)
            if written != held or recorded != self.domain:
                kept = None if self.bad else recorded
                await execute.in_thread(self._store.record, self._name, kept, written)
                self.domain = recorded
                self.tree = snapshot.Tree({**self.tree.snapshots, **written})

    # --- what is seen ---

    async def remember(self, view: chain.View, hardware: domain_xml.RecordedDomain | None = None) -> bool:
        """What was seen is on record, with a fingerprint of every layer that is frozen and has none yet. True when anything was
        new."""
        async with self._turn:
            disks = describe.disks(self.domain, view, self._witness(()))
            self._witness(view.disks)
            recorded = attrs.evolve(hardware or self.domain, disks=disks, layers=self.domain.layers)
            if new := describe.unmarked(recorded, self.tree, view):
                marked = await execute.in_thread(seeing.frozen, new)
                recorded = attrs.evolve(recorded, layers=(*recorded.layers, *marked))
            if recorded == self.domain:
                return False
            if self.bad is None:
                await execute.in_thread(self._store.record, self._name, recorded, {})
            self.domain = recorded
            return True

    def _witness(self, disks: tuple[chain.Disk, ...]) -> Mapping[str, str]:
        """What the disks of this QEMU were last seen to write to, with what is seen now."""
        machine = self._machine()
        seen = machine.observer.process if machine else None
        before = self._witnessed[1] if self._witnessed[0] == seen else {}
        now = {disk.target: disk.active.file for disk in disks if disk.chain}
        self._witnessed = seen, {**before, **now}
        return self._witnessed[1]


def blank(name: str) -> domain_xml.RecordedDomain:
    """A domain of which nothing is known yet but its name; its UUID is the one it keeps, unless QEMU has one."""
    return domain_xml.RecordedDomain(name=name, uuid=str(uuid.uuid4()))
