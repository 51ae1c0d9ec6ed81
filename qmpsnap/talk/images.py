"""Images as they lie on disk: what a name leads to, what its header says is below it, and the graph of all. Blocking.

Read here and not by `qemu-img info`: a host has hundreds of images, a process for each would take 16 ms (measured), and of a
chain with a missing link qemu-img shows nothing at all. Other formats than qcow2 are asked of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator

import attrs

from qmpsnap import errors
from qmpsnap.model import header, images
from qmpsnap.talk import files, qemu_img

# Nearly every header ends in the first block; the rest is read where one does not.
_FIRST = 4096


class Looker:
    """Looks at images; a header is read again only when the image has been written to."""

    def __init__(self) -> None:
        self._headers: dict[images.Identity, tuple[str, header.Header]] = {}

    def look(self, file: str, form: str = "") -> images.Found:
        """What the name leads to. ``form`` is the format as somebody knows it: of a raw image nothing is read, because a guest
        could have written any header there."""
        try:
            status = os.stat(file)
        except (OSError, ValueError) as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
            return images.Found(file, None, bad="" if gone else str(error))
        return self._look(file, form, status)

    def _look(self, file: str, form: str, status: os.stat_result) -> images.Found:
        found = images.Found(
            file,
            _identity(status),
            form,
            stamp=files.fingerprint(status),
            written=status.st_mtime_ns,
            length=status.st_size,
            allocated=status.st_blocks * 512,
        )
        if found.identity is None or form == "raw":
            return found
        try:
            head = self._header(file, found.identity, f"{status.st_ctime_ns}:{found.stamp}")
        except (OSError, errors.ToolFailed) as error:
            return attrs.evolve(found, bad=str(error))
        if not head.backing:
            return attrs.evolve(found, format=head.format or form)
        name = header.file_name(head.backing)
        if not name:
            return attrs.evolve(found, format=head.format, strange=head.backing)
        # Relative to the image's directory, as QEMU takes it.
        name = os.path.normpath(os.path.join(os.path.dirname(file), name))
        return attrs.evolve(found, format=head.format, backing=name, backing_format=head.backing_format)

    def _header(self, file: str, identity: images.Identity, stamp: str) -> header.Header:
        known = self._headers.get(identity)
        if known is None or known[0] != stamp:
            known = self._headers[identity] = stamp, _read(file)
        return known[1]

    def chain(self, file: str, form: str) -> Iterator[images.Found]:
        """The image and those below it, top first, as far as they are there. ``FileFailed`` for one that cannot be read."""
        seen: set[images.Identity] = set()
        while file:
            found = self.look(file, form)
            if found.bad:
                raise errors.FileFailed(act="read", file=file, reason=found.bad)
            if found.identity is None or found.identity in seen:
                return
            seen.add(found.identity)
            yield found
            file, form = found.backing, found.backing_format

    def graph(
        self, needs: Iterable[images.Need], folders: Iterable[str] = (), unknown: Iterable[str] = ()
    ) -> images.Graph:
        """All that ``needs`` lead to, and every image in the directories of those and in ``folders``."""
        needs = tuple(needs)
        found: dict[str, images.Found] = {}
        raw: set[images.Identity] = set()
        problems = list(unknown)
        for need in needs:
            self._follow(need.file, need.format, found, raw)
        known = {one.identity for one in found.values()}
        places = {os.path.dirname(one.file) for one in found.values() if one.identity} | set(folders)
        for place in sorted(places):
            try:
                with os.scandir(place) as entries:
                    names = [entry.path for entry in entries]
            except OSError as error:
                problems.append(f"{place} cannot be read: {error.strerror}")
                continue
            for name in names:
                if name not in found:
                    self._meet(name, found, known, raw)
        problems += [f"{one.file} cannot be read: {one.bad}" for one in found.values() if one.bad]
        return images.Graph(found, needs, tuple(problems))

    def _follow(
        self, file: str, form: str, found: dict[str, images.Found], raw: set[images.Identity]
    ) -> None:
        """The image, and what is below it as far as nobody has looked yet."""
        while file and file not in found:
            one = found[file] = self.look(file, form)
            if form == "raw" and one.identity is not None:
                raw.add(one.identity)
            file, form = one.backing, one.backing_format

    def _meet(
        self,
        file: str,
        found: dict[str, images.Found],
        known: Collection[images.Identity | None],
        raw: Collection[images.Identity],
    ) -> None:
        """A file of a directory: it counts if it is an image by its header, or another name of one that we know."""
        try:
            status = os.stat(file)
        except OSError:
            return  # it is gone, or leads nowhere
        identity = _identity(status)
        if identity is None or identity.kind != "file":
            return
        one = self._look(file, "raw" if identity in raw else "", status)
        if one.format not in {"", "raw"} or one.bad or identity in known:
            found[file] = one
            self._follow(one.backing, one.backing_format, found, set())


def identity(file: str) -> images.Identity | None:
    """What the name leads to; None where nothing is, or nothing that could hold an image."""
    try:
        return _identity(os.stat(file))
    except (OSError, ValueError):
        return None


def _identity(status: os.stat_result) -> images.Identity | None:
    if stat.S_ISBLK(status.st_mode):
        return images.Identity("block", status.st_rdev, 0)
    if stat.S_ISREG(status.st_mode):
        return images.Identity("file", status.st_dev, status.st_ino)
    return None


def _read(file: str) -> header.Header:
    # A name that was a regular file a moment ago may be a pipe by now: never wait for one.
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.pread(fd, _FIRST, 0)
        if header.longer(head):
            head = os.pread(fd, header.HEAD, 0)
    finally:
        os.close(fd)
    found = header.parse(head)
    if found.format in {"", "qcow", "qcow2"}:
        return found
    told = qemu_img.info(file)
    below = str(told.get("backing-filename", ""))
    return header.Header(found.format, below, str(told.get("backing-filename-format", "")))
