"""The state directory: recorded domains and snapshot metadata, read at start and replaced atomically. Blocking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

import attrs

from qmpsnap import errors, faults, paths
from qmpsnap.model import domain_xml, names, snapshot, snapshot_xml
from qmpsnap.talk import files


@attrs.frozen
class Store:
    """Files of one state directory. A file that cannot be read is left alone and reported, never guessed at."""

    paths: paths.Paths

    def prepare(self) -> None:
        """The directories exist."""
        for folder, mode in (
            (self.paths.state, 0o755),
            (self.paths.snapshots, 0o755),
            (self.paths.domains, 0o755),
            (self.paths.journal, 0o700),
            (self.paths.tmp, 0o700),
            (self.paths.run, 0o755),
            (self.paths.machines, 0o755),
            (self.paths.outcomes, 0o700),
        ):
            files.make_folder(folder, mode)

    def clean(self) -> None:
        """What was on its way when an earlier daemon died is gone. Only for the holder of the state's lock."""
        for name in os.listdir(self.paths.tmp):
            os.unlink(f"{self.paths.tmp}/{name}")

    def domains(self) -> tuple[list[domain_xml.RecordedDomain], list[errors.Error]]:
        """Every recorded domain, and what could not be read."""
        found, bad = [], []
        for name in sorted(self._xml(self.paths.domains)):
            path = self.paths.domain_file(name)
            try:
                domain = domain_xml.parse(_read(path), path)
                if domain.name != name:
                    raise errors.BadXml(origin=path, reason=f"it is the domain '{domain.name}'")
                found.append(domain)
            except errors.Error as error:
                bad.append(error)
        return found, bad

    def domain(self, name: str) -> domain_xml.RecordedDomain | None:
        """The recorded domain, or None; ``Corrupt`` when its file cannot be read."""
        path = self.paths.domain_file(name)
        return domain_xml.parse(_read(path), path) if os.path.exists(path) else None

    def snapshots(self, domain: str) -> tuple[snapshot.Tree, list[errors.Error]]:
        """The domain's snapshots, and what could not be read. Files that are not ``NAME.xml`` are not ours to judge."""
        found, bad = [], []
        folder = self.paths.snapshot_dir(domain)
        for name in sorted(self._xml(folder)):
            path = f"{folder}/{name}.xml"
            try:
                found.append(snapshot_xml.parse(_read(path), path))
            except errors.Error as error:
                bad.append(error)
        return snapshot.Tree.of(found), bad

    def _xml(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [n.removesuffix(".xml") for n in os.listdir(folder) if n.endswith(".xml")]
        return []

    def record(
        self,
        domain: str,
        recorded: domain_xml.RecordedDomain | None,
        snapshots: Mapping[str, snapshot.Snapshot],
        removed: Sequence[str] = (),
    ) -> None:
        """The domain and the snapshots are on disk as given, the removed ones gone; durable.

        The boot layer comes first: from then on a boot is right, whatever is missing after it.
        """
        writes = [self._domain(recorded)] if recorded else []
        folder = self.paths.snapshot_dir(domain)
        if snapshots:
            files.make_folder(folder, 0o755)
        writes += [
            files.Write(self.paths.snapshot_file(domain, name), snapshot_xml.build(value).encode())
            for name, value in snapshots.items()
        ]
        files.replace(writes, self.paths.tmp)
        for n, name in enumerate(removed, 1):
            files.remove(self.paths.snapshot_file(domain, name))
            faults.point(f"removed-{n}")
        if removed:
            with contextlib.suppress(
                OSError
            ):  # it is not empty, or not there: either way it stays as libvirt leaves it
                os.rmdir(folder)

    def _domain(self, recorded: domain_xml.RecordedDomain) -> files.Write:
        names.check(recorded.name, "domain")
        return files.Write(
            self.paths.domain_file(recorded.name), domain_xml.build(recorded).encode(), mode=0o644
        )

    def forget(self, domain: str) -> None:
        """The domain is no longer recorded."""
        files.remove(self.paths.domain_file(domain))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise errors.FileFailed(act="read", file=path, reason=os.strerror(error.errno or 0)) from error
