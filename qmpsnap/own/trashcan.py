"""Orphans and the trash: one act at a time, each after a look at everything, with its images claimed.

Whoever asks may leave: an act goes on, and a kill is survived at every point of it (``talk.trash`` says what each leaves behind).
What an earlier daemon left half way is settled before anything else, and again before every act.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import attrs
import structlog
import trio

from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import domain_xml, images
from qmpsnap.own import carry
from qmpsnap.own import operations as own_operations
from qmpsnap.plan import orphans, trash
from qmpsnap.talk import files
from qmpsnap.talk import trash as bins

_log = structlog.stdlib.get_logger(__name__)

#: How often the trash is looked through for what may be deleted.
_EMPTY_EVERY = 3600.0


@attrs.frozen
class Contents:
    """What is in the trash: records, those of them whose image is not there, files that no record names, records that cannot be
    read."""

    records: tuple[trash.Record, ...]
    missing: frozenset[str]
    strays: tuple[bins.Stray, ...]
    problems: tuple[str, ...]


@attrs.frozen
class Outcome:
    """What was done of several, and why the rest was not."""

    done: tuple[trash.Record, ...]
    kept: tuple[errors.Error, ...] = ()


class Trashcan:
    """The trash of one state directory; ``run`` empties it."""

    def __init__(
        self,
        home: carry.Home,
        graph: Callable[[Collection[str]], Awaitable[images.Graph]],
        recorded: Callable[[], Sequence[domain_xml.RecordedDomain]],
        operations: Callable[[], Collection[str]],
    ) -> None:
        self._home = home
        self._graph = graph
        self._recorded = recorded
        self._operations = operations
        self._bins = bins.Trash(home.store.paths)
        self._turn = trio.Lock()
        self._settled = trio.Event()

    async def run(self) -> None:
        """Deletes what has been in the trash for its time: at the start and every hour, for ever."""
        while True:
            try:
                async with self._turn:
                    await self._expire()
            except errors.Error as error:
                _log.warning("Trash not looked through", error=str(error))
            except Exception:  # noqa: BLE001, RUF100 - the supervisor: what gets here is a bug, and it is logged
                _log.exception("Trash not looked through")
            finally:
                self._settled.set()
            await trio.sleep(_EMPTY_EVERY)

    async def _expire(self) -> None:
        records = await self._settle()
        self._settled.set()
        due = trash.due(records, time.time())
        for error in (await self._delete(due)).kept if due else ():
            _log.warning("Kept in the trash", error=str(error))

    # --- orphans ---

    async def find_orphans(self) -> tuple[list[orphans.Orphan], list[str]]:
        """The orphans, and what could not be found out: meanwhile none can be removed."""
        facts = await self._look()
        problems = [f"{name}: {seen.problem}" for name, seen in facts.seen.items() if seen.problem]
        return orphans.find(facts), [*facts.graph.unknown, *problems]

    async def remove(self, named: Sequence[str]) -> Outcome:
        """Orphans are in the trash: those named, or all that were ours. Refused as a whole; what fails at the act itself is told
        beside what was done."""
        wanted = await execute.in_thread(_absolute, named)
        async with self._turn:
            await self._settle()
            chosen = [one.file for one in orphans.choose(await self._look(wanted), wanted)]
            if not chosen:
                return Outcome(())
            claim = own_operations.new_id()
            self._home.claims.take(claim, "", chosen, ())
            try:
                facts = await self._look(chosen)
                return await self._move(orphans.choose(facts, chosen), facts.graph)
            finally:
                self._home.claims.drop(claim)

    async def _move(self, chosen: Iterable[orphans.Orphan], graph: images.Graph) -> Outcome:
        done: list[trash.Record] = []
        for one in chosen:
            ident, days = own_operations.new_id(), self._home.settings.trash_days
            record = trash.record(one, graph, ident, time.time(), days)
            try:
                await execute.in_thread(self._bins.move, record, one.identity)
            except errors.Error as error:
                if not done:
                    raise
                return Outcome(tuple(done), (error,))  # what is below it needs it still
            _log.info("Moved to the trash", file=one.file, id=record.id)
            done.append(record)
        return Outcome(tuple(done))

    async def _look(self, named: Collection[str] = ()) -> orphans.Facts:
        recorded = self._recorded()
        former = await execute.in_thread(_existing, orphans.former_folders(recorded))
        graph = await self._graph(former)
        folders = {*self._home.settings.image_dirs, *former}
        # After the images: a temporary file that was seen belongs to an operation that is open, or to one that has ended.
        facts = orphans.Facts(graph, folders, recorded, operations=tuple(self._operations()))
        seen = await execute.in_thread(_see, {*orphans.candidates(facts), *named})
        return attrs.evolve(facts, seen=seen)

    # --- the trash ---

    async def contents(self) -> Contents:
        """What is in the trash; nothing is changed."""
        await self._settled.wait()
        graph = await self._graph(())
        folders = orphans.places(graph, self._home.settings.image_dirs)

        def look() -> Contents:
            records, bad = self._bins.records()
            missing = frozenset(one.id for one in records if not self._bins.there(one))
            places = {*folders, *(os.path.dirname(one.file) for one in records)}
            return Contents(tuple(records), missing, tuple(bins.strays(places, records)), tuple(bad))

        return await execute.in_thread(look)

    async def restore(self, ident: str) -> trash.Record:
        """The image is back at its old place, and reads as it did."""
        async with self._turn:
            records, away = await self._settle_all()
            for one in away:
                if one.id == ident and await execute.in_thread(files.fingerprint_of, one.file) == one.stamp:
                    return one  # it was cut, and has just been finished
            one = _find(records, ident)
            claim = own_operations.new_id()
            self._home.claims.take(claim, "", {one.file}, {below.file for below in one.below})
            try:
                stamps = await execute.in_thread(bins.stamps, one.below)
                trash.check_restore(one, stamps, records)
                await execute.in_thread(self._bins.restore, one)
            finally:
                self._home.claims.drop(claim)
        _log.info("Restored from the trash", file=one.file, id=one.id)
        return one

    async def delete(self, ident: str) -> None:
        """The image is deleted now, unless somebody has begun to need it."""
        async with self._turn:
            one = _find(await self._settle(), ident)
            for error in (await self._delete([one], missing_too=True)).kept:
                raise error

    async def empty(self) -> Outcome:
        """Everything is deleted now, but for what somebody has begun to need."""
        async with self._turn:
            return await self._delete(await self._settle())

    async def _delete(self, records: Iterable[trash.Record], *, missing_too: bool = False) -> Outcome:
        """``missing_too``: what is not there, because its file system is not mounted or somebody has taken it, is forgotten."""
        done: list[trash.Record] = []
        kept: list[errors.Error] = []
        graph = await self._graph(())
        for one in records:
            try:
                await execute.in_thread(self._delete_one, one, graph, missing_too)
                _log.info("Deleted from the trash", file=one.file, id=one.id)
                done.append(one)
            except errors.Error as error:
                kept.append(error)
        return Outcome(tuple(done), tuple(kept))

    def _delete_one(self, one: trash.Record, graph: images.Graph, missing_too: bool) -> None:
        if self._bins.there(one):
            trash.check_delete(one, graph, bins.look(one.moved))
        elif not missing_too:
            raise errors.FileFailed(act="remove", file=one.moved, reason=bins.MISSING)
        self._bins.delete(one)

    async def _settle(self) -> list[trash.Record]:
        return (await self._settle_all())[0]

    async def _settle_all(self) -> tuple[list[trash.Record], list[trash.Record]]:
        """Nothing is half way; the records of what is in the trash, and those that had to be dropped."""

        def settle() -> tuple[list[trash.Record], list[trash.Record]]:
            kept: list[trash.Record] = []
            away: list[trash.Record] = []
            for one in self._bins.records()[0]:
                try:
                    decision = self._bins.settle(one)
                    (kept if decision == "keep" else away).append(one)
                    if decision != "keep":
                        _log.info("Not in the trash", file=one.file, id=one.id)
                except errors.Error as error:
                    _log.warning("Trash not settled", id=one.id, error=str(error))
            return kept, away

        return await execute.in_thread(settle)


def _find(records: Iterable[trash.Record], ident: str) -> trash.Record:
    found = next((one for one in records if one.id == ident), None)
    if found is None:
        raise errors.NotInTrash(trash=ident)
    return found


def _absolute(named: Iterable[str]) -> list[str]:
    """The names with the links of their directories resolved, each once; ``BadRequest`` for what is no absolute name."""
    for file in named:
        if not file.startswith("/") or "\0" in file:
            raise errors.BadRequest(reason=f"'{file}' is not an absolute path @ $.files")
    return list(dict.fromkeys(files.canonical(file) for file in named))


def _existing(folders: Iterable[str]) -> set[str]:
    return {folder for folder in folders if os.path.isdir(folder)}


def _see(names: Iterable[str]) -> dict[str, orphans.Seen]:
    return {name: bins.look(name) for name in sorted(names)}
