"""The state directory: recorded domains and snapshot metadata, read at start and replaced atomically. Blocking."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
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
            (self.paths.trash, 0o700),
            (self.paths.tmp, 0o700),
            (self.paths.run, 0o755),
            (self.paths.machines, 0o755),
            (self.paths.outcomes, 0o700),
        ):
            files.make_folder(folder, mode)

    def clean(self) -> None:
        """What was on its way when an earlier daemon died is gone. Only for the holder of the state's lock."""
        for name in os.listdir(self.paths.tmp):
            with contextlib.suppress(
                errors.FileFailed
            ):  # what stays is in nobody's way: no name is used twice
                files.remove(f"{self.paths.tmp}/{name}")

    def claim(self, *, take_over: bool = False) -> None:
        """The state is this host's from now on; ``StateOfAnotherHost`` when it is another's and is not to be taken over.

        A host is told by its machine-id(5), which a backup of the state directory does not carry along. Where there is none,
        nothing is known and nothing refused. Only for the holder of the state's lock.
        """
        host = _this_host()
        if not host:
            return
        try:
            with open(self.paths.host, encoding="utf-8", errors="replace") as file:
                known = file.read().strip()
        except FileNotFoundError:
            known = host
            take_over = True
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise errors.FileFailed(act="read", file=self.paths.host, reason=reason) from error
        if known != host and not take_over:
            raise errors.StateOfAnotherHost(folder=self.paths.state, file=self.paths.host)
        if take_over:
            files.replace([files.Write(self.paths.host, f"{host}\n".encode(), mode=0o644)], self.paths.tmp)

    def domains(self) -> tuple[list[domain_xml.RecordedDomain], list[errors.RecordDamaged]]:
        """Every recorded domain, and what could not be read."""
        found: list[domain_xml.RecordedDomain] = []
        bad: list[errors.RecordDamaged] = []
        for name in sorted(self._xml(self.paths.domains)):
            try:
                if domain := self.domain(name):
                    found.append(domain)
            except errors.RecordDamaged as error:
                bad.append(error)
        return found, bad

    def domain(self, name: str) -> domain_xml.RecordedDomain | None:
        """The recorded domain, or None; ``RecordDamaged`` when its file cannot be read."""
        path = self.paths.domain_file(name)
        if not os.path.lexists(path):
            return None
        try:
            found = domain_xml.parse(_read(path), path)
        except (errors.BadXml, errors.FileFailed) as error:
            raise errors.RecordDamaged(domain=name, file=path, reason=error.facts["reason"]) from error
        if found.name != name:
            raise errors.RecordDamaged(domain=name, file=path, reason=f"it is the domain '{found.name}'")
        return found

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

    def has_snapshot(self, domain: str, name: str) -> bool:
        """There is a file for the snapshot, whatever is in it."""
        return os.path.lexists(self.paths.snapshot_file(domain, name))

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


def _this_host() -> str:
    """Not the id itself, which machine-id(5) wants kept from others; "" where the host has none (yet)."""
    with contextlib.suppress(OSError), open("/etc/machine-id", "rb") as file:
        found = file.read().strip()
        if re.fullmatch(b"[0-9a-f]{32}", found):
            return hmac.digest(found, b"qmpsnap", "sha256").hex()[:32]
    return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise errors.FileFailed(act="read", file=path, reason=os.strerror(error.errno or 0)) from error
