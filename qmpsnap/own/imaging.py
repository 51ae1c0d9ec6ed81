"""The image graph of the host: what all domains need, held against what lies on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import trio

from qmpsnap import config
from qmpsnap.act import execute
from qmpsnap.model import images as model
from qmpsnap.own import domain, sources
from qmpsnap.talk import images


class Imaging:
    """Looks for all; ``domains`` is the inventory's own table."""

    def __init__(
        self, domains: Mapping[str, domain.Domain], others: sources.Sources, settings: config.Settings
    ) -> None:
        self._domains = domains
        self._sources = others
        self._settings = settings
        self._looker = images.Looker()
        self._turn = trio.Lock()
        self._asked = self._answered = 0
        self._graph = model.Graph({}, ())

    async def graph(self) -> model.Graph:
        """Every image that this host knows, and who needs it, as they are now.

        Whoever asks while a look is under way shares the next one with all others that do: 200 recoveries at the start of a host
        are not 200 looks at 400 images.
        """
        self._asked = ticket = self._asked + 1
        async with self._turn:
            if self._answered < ticket:
                asked = self._asked
                self._graph = await self.look()
                self._answered = asked
            return self._graph

    async def look(self, folders: Collection[str] = ()) -> model.Graph:
        """A look of one's own, at ``folders`` as well."""
        for starting in list(self._domains.values()):
            await starting.read.wait()
        found = [need for one in self._domains.values() for need in one.needs()]
        found += [model.Need("hold", file) for file in self._settings.hold]
        unknown = [text for one in self._domains.values() for text in one.unknown]
        joined = {name for name, one in self._domains.items() if one.loaded}

        def read() -> model.Graph:
            others, bad = self._sources.needs(joined)
            known = [*self._settings.image_dirs, *folders]
            return self._looker.graph([*found, *others], known, [*unknown, *bad])

        return await execute.in_thread(read)
