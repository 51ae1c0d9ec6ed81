"""Where domains come from: what we recorded, what is defined, what qemu-launch has started. Blocking: called from a worker thread.

Asked every second, so it reads only what has changed: recorded domains once, for only we write them, and a definition when its
time of change is another.
"""

from __future__ import annotations

import os

import structlog

from qmpsnap import config, errors
from qmpsnap.model import domain_xml
from qmpsnap.talk import store

_log = structlog.stdlib.get_logger(__name__)


class Sources:
    """The domains of one state directory and one configuration. ``recorded`` are those that were attached or seen before."""

    def __init__(self, home: store.Store) -> None:
        self._paths = home.paths
        domains, bad = home.domains()
        self.recorded = {domain.name: domain for domain in domains}
        self._definitions: dict[str, tuple[int, str | None]] = {}
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
        for name in _names(self._paths.definitions, ".toml"):
            monitor = self._defined(name)
            if monitor is not None:
                found[name] = monitor or found.get(name, self._paths.monitor(name))
        return found

    def _defined(self, name: str) -> str | None:
        """The monitor that the definition names ("" for the one that qemu-launch makes); None when it cannot be read."""
        path = self._paths.definition_file(name)
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError:
            return None
        known = self._definitions.get(name)
        if known is None or known[0] != changed:
            self._definitions[name] = (changed, _read(path, name))
        return self._definitions[name][1]


def _read(path: str, name: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return config.definition(file.read(), path, name).monitor
    except errors.Error as error:
        _log.error("Not read", error=str(error))
    except (OSError, UnicodeDecodeError) as error:
        _log.error("Not read", error=f"{path}: {error}")
    return None


def _names(folder: str, suffix: str) -> list[str]:
    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return []
    return [n.removesuffix(suffix) for n in found if n.endswith(suffix) and not n.startswith(".")]
