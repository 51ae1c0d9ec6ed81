"""Where domains come from: what we recorded, what is defined, what qemu-launch has started. Blocking: called from a worker thread.

Asked every second, so it reads only what has changed: recorded domains once, for only we write them, and a definition when its
time of change is another.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import structlog

from qmpsnap import config, errors
from qmpsnap.model import domain_xml, images
from qmpsnap.talk import needs, store

_log = structlog.stdlib.get_logger(__name__)


class Sources:
    """The domains of one state directory and one configuration. ``recorded`` are those that were attached or seen before."""

    def __init__(self, home: store.Store) -> None:
        self._paths = home.paths
        self._store = home
        domains, bad = home.domains()
        self.recorded = {domain.name: domain for domain in domains}
        #: Records that could not be read at the start, by domain.
        self.bad = {str(error.facts["domain"]): str(error) for error in bad}
        self._definitions: dict[str, tuple[int, config.Definition | None]] = {}
        for error in bad:
            _log.error("Not read", error=str(error))

    def add(self, domain: domain_xml.RecordedDomain) -> None:
        """A domain was attached."""
        self.recorded[domain.name] = domain

    def remove(self, name: str) -> None:
        """A domain was detached; a definition may still name it."""
        self.recorded.pop(name, None)

    def monitors(self) -> dict[str, str]:
        """Every domain's monitor by its name. What cannot be read is said once, and again when it has changed."""
        found = {name: self._paths.monitor(name) for name in _names(self._paths.machines, "")}
        for name, domain in self.recorded.items():
            found[name] = domain.monitor or self._paths.monitor(name)
        defined_names = _names(self._paths.definitions, ".toml")
        self._definitions = {n: d for n, d in self._definitions.items() if n in defined_names}
        for name in defined_names:
            defined = self._defined(name)
            if defined is not None:
                found[name] = defined.monitor or found.get(name, self._paths.monitor(name))
        return found

    def needs(self, joined: Collection[str]) -> tuple[list[images.Need], list[str]]:
        """What is needed by those who are not among the domains ``joined``, and what could not be read."""
        found: list[images.Need] = []
        unknown = [
            text for name, text in self.bad.items() if name not in joined
        ]  # the others say so themselves
        for name, (_changed, defined) in self._definitions.items():
            if defined is None:
                unknown.append(f"{self._paths.definition_file(name)} cannot be read")
            elif name not in self.recorded:
                found += needs.of_definition(defined)
        for name in set(needs.listed(self._paths.snapshots)) - set(joined):
            theirs, damaged = needs.of_snapshots(self._store, name)
            found += theirs
            unknown += damaged
        return found, unknown

    def _defined(self, name: str) -> config.Definition | None:
        """The definition; None when it cannot be read."""
        path = self._paths.definition_file(name)
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError:
            return None
        known = self._definitions.get(name)
        if known is None or known[0] != changed:
            self._definitions[name] = (changed, _read(path, name))
        return self._definitions[name][1]


def _read(path: str, name: str) -> config.Definition | None:
    try:
        return needs.definition(path, name)
    except errors.Error as error:
        _log.error("Not read", error=str(error))
    return None


def _names(folder: str, suffix: str) -> list[str]:
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return []
    return [n.removesuffix(suffix) for n in found if n.endswith(suffix) and not n.startswith(".")]
