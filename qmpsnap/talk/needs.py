"""Who needs which image, by what lies on disk: recorded domains, snapshots, definitions. Blocking, read-only."""

from __future__ import annotations

import os

from qmpsnap import config, errors
from qmpsnap.model import images, snapshot
from qmpsnap.talk import store


def of_store(home: store.Store) -> tuple[list[images.Need], list[str]]:
    """Every need of every domain of the state directory, and what could not be read."""
    domains, bad = home.domains()
    recorded = {domain.name: domain for domain in domains}
    found: list[images.Need] = []
    unknown = [str(error) for error in bad]
    for domain in domains:
        found += images.needs_of(domain, snapshot.Tree({}))
    for name in listed(home.paths.definitions, ".toml"):
        if name not in recorded:
            try:
                found += of_definition(definition(home.paths.definition_file(name), name))
            except errors.NoDefinition:
                continue
            except errors.Error as error:
                unknown.append(str(error))
    for name in listed(home.paths.snapshots):
        needs, damaged = of_snapshots(home, name)
        found += needs
        unknown += damaged
    return found, unknown


def of_snapshots(home: store.Store, domain: str) -> tuple[list[images.Need], list[str]]:
    """What the snapshots of a domain need, and which cannot be read."""
    tree, bad = home.snapshots(domain)
    return list(images.snapshot_needs(domain, tree)), [str(error) for error in bad]


def of_definition(defined: config.Definition) -> list[images.Need]:
    """What a machine needs that has never been started."""
    return [images.Need("active", d.file, defined.name, d.target, d.format) for d in defined.disk]


def definition(file: str, name: str) -> config.Definition:
    """The machine in a definition file; ``NoDefinition`` when it is not there."""
    try:
        with open(file, "rb") as text:
            content = text.read()
    except FileNotFoundError as error:
        raise errors.NoDefinition(domain=name, file=file) from error
    except OSError as error:
        raise errors.FileFailed(act="read", file=file, reason=os.strerror(error.errno or 0)) from error
    try:
        return config.definition(content.decode(), file, name)
    except UnicodeDecodeError as error:
        raise errors.ConfigError(file=file, key="", reason="is not UTF-8") from error


def listed(folder: str, suffix: str = "") -> list[str]:
    """The names in a directory that end so, without that end; none where it is not there."""
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.FileFailed(act="read", file=folder, reason=os.strerror(error.errno or 0)) from error
    return [n.removesuffix(suffix) for n in found if n.endswith(suffix) and not n.startswith(".")]
