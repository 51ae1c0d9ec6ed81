"""The trash on disk: removed images in a hidden directory beside the others, and a record of each in our state. Blocking.

Nothing is copied and nothing is ever without a name. An image is moved by link(2), which replaces nothing, a flush of the trash
directory, and only then unlink(2) of the old name: on the worst disk that POSIX allows, a rename(2) between two directories that
a loss of power cuts may leave neither name. What a kill after each act leaves, and what ``settle`` makes of it:

====================  ==============================  =======================================================
act of a removal      after a kill                    ``settle``
====================  ==============================  =======================================================
make the directory    it is empty                     nothing to do
write the record      a record of what is not there   the record is dropped: the image is where it was
link                  two names of one image          the old one stays, the new one and the record are dropped
unlink the old name   it is in the trash              nothing to do
====================  ==============================  =======================================================

A restore is the same backwards: link to the old name, flush, unlink, drop the record; two names become the old one, and a record
without an image is dropped. A deletion unlinks, flushes, and drops the record. A file in a trash directory that no record names is
shown and never touched.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

import attrs

from qmpsnap import errors, faults, paths
from qmpsnap.model import images
from qmpsnap.plan import orphans, trash
from qmpsnap.talk import files

#: Why the image of a record may not be there.
MISSING = "it is not there; is its file system mounted?"


@attrs.frozen
class Stray:
    """A file in a trash directory that no record names."""

    moved: str
    size: int
    allocation: int


def look(file: str) -> orphans.Seen:
    """What the file system says of an image's name."""
    try:
        status = os.lstat(file)
        if stat.S_ISLNK(status.st_mode):
            return orphans.Seen("")
        if not stat.S_ISREG(status.st_mode):
            return orphans.Seen("", problem="it is not a regular file")
        identity = images.Identity("file", status.st_dev, status.st_ino)
        return orphans.Seen(files.canonical(file), identity, files.opened(file))
    except errors.FileFailed as error:
        return orphans.Seen("", problem=str(error))
    except OSError as error:
        return orphans.Seen("", problem=os.strerror(error.errno or 0))


@attrs.frozen
class Trash:
    """The trash of one state directory."""

    paths: paths.Paths

    def records(self) -> tuple[list[trash.Record], list[str]]:
        """Every record, oldest first, and what could not be read: that stays as it is."""
        found, bad = [], []
        with _failing("read", self.paths.trash):
            listed = sorted(os.listdir(self.paths.trash))
        for name in listed:
            try:
                with open(self._file(name), "rb") as file:
                    found.append(trash.load(file.read(), name))
            except (OSError, ValueError) as error:
                bad.append(f"{self._file(name)} cannot be read: {error}")
        return sorted(found, key=lambda one: one.when), bad

    def _file(self, ident: str) -> str:
        return f"{self.paths.trash}/{ident}"

    def move(self, one: trash.Record, identity: images.Identity) -> None:
        """The image is in the trash, durable; on failure it is where it was, or ``settle`` knows."""
        folder, name = os.path.split(one.file)
        with faults.within("trash"), _folders(folder, make=True) as (place, bin_fd):
            faults.point("folder")
            try:
                with faults.within("record"):
                    files.replace([files.Write(self._file(one.id), trash.dump(one))], self.paths.tmp)
                with _failing("move to the trash", one.file):
                    os.link(name, one.id, src_dir_fd=place, dst_dir_fd=bin_fd, follow_symlinks=False)
                    faults.point("linked")
                    os.fsync(bin_fd)
                    faults.point("linked-synced")
                    _check(one, identity, place, bin_fd)
                    os.unlink(name, dir_fd=place)
                    faults.point("unlinked")
                    os.fsync(place)
            except errors.Error:
                with contextlib.suppress(errors.Error):
                    self.settle(one)
                raise
            faults.point("moved")

    def settle(self, one: trash.Record) -> trash.Decision:
        """What a crash has left half way is whole; what was decided."""
        decision = trash.decide(_names(one))
        if decision == "keep":
            return decision
        if decision == "take-back":
            with _folders(os.path.dirname(one.file)) as (place, bin_fd), _failing("restore", one.file):
                os.fsync(place)
                faults.point("linked-synced")
                os.unlink(one.id, dir_fd=bin_fd)
                faults.point("unlinked")
                os.fsync(bin_fd)
                faults.point("restored")
        files.remove(self._file(one.id))
        return decision

    def there(self, one: trash.Record) -> bool:
        """Whether the image is at its place in the trash."""
        return os.path.lexists(one.moved)

    def restore(self, one: trash.Record) -> None:
        """The image is where it was, durable; a file that has its name by now is not touched."""
        folder, name = os.path.split(one.file)
        with faults.within("trash-restore"), _folders(folder) as (place, bin_fd):
            with _failing("restore", one.file):
                try:
                    os.link(one.id, name, src_dir_fd=bin_fd, dst_dir_fd=place, follow_symlinks=False)
                except FileExistsError:
                    raise errors.CannotRestore(file=one.file, reason="there is a file of that name") from None
            faults.point("linked")
            # The rest is what a crash here leaves to be done, and no other way.
            self.settle(one)
            faults.point("dropped")

    def delete(self, one: trash.Record) -> None:
        """The image is gone, durable, and then its record; of one that is not there only the record."""
        with faults.within("trash-empty"):
            if os.path.lexists(one.moved):
                with _folders(os.path.dirname(one.file)) as (_place, bin_fd), _failing("remove", one.moved):
                    os.unlink(one.id, dir_fd=bin_fd)
                    faults.point("unlinked")
                    os.fsync(bin_fd)
            faults.point("deleted")
            files.remove(self._file(one.id))
            faults.point("dropped")


def stamps(some: Iterable[trash.Below]) -> dict[str, str]:
    """The fingerprints that images have now, those that are there."""
    return {one.file: files.fingerprint_of(one.file) for one in some}


def strays(folders: Iterable[str], records: Sequence[trash.Record]) -> list[Stray]:
    """What lies in the trash directories beside these folders' images, and is in none of the records."""
    known = {one.moved for one in records}
    found = []
    for folder in sorted({os.path.realpath(folder) for folder in folders}):
        with contextlib.suppress(OSError), os.scandir(f"{folder}/{trash.FOLDER}") as entries:
            for entry in entries:
                if entry.path not in known:
                    status = entry.stat(follow_symlinks=False)
                    found.append(Stray(entry.path, status.st_size, status.st_blocks * 512))
    return sorted(found, key=lambda one: one.moved)


@contextlib.contextmanager
def _failing(act: str, file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.FileFailed(act=act, file=file, reason=os.strerror(error.errno or 0)) from error


@contextlib.contextmanager
def _folders(folder: str, *, make: bool = False) -> Iterator[tuple[int, int]]:
    """The directory of images and its trash directory, open. What is made is durable, and nobody else's to read; a link in its
    place is not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as opened:
        with _failing("use", f"{folder}/{trash.FOLDER}"):
            place = os.open(folder, flags & ~os.O_NOFOLLOW)
            opened.callback(os.close, place)
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(trash.FOLDER, 0o700, dir_fd=place)
                os.fsync(place)  # one that is there may have been made by a daemon that died before this
            bin_fd = os.open(trash.FOLDER, flags, dir_fd=place)
            opened.callback(os.close, bin_fd)
        yield place, bin_fd


def _names(one: trash.Record) -> trash.Names:
    """``FileFailed`` when it cannot be found out."""
    with _failing("look at", one.moved):
        bin_status = _lstat(os.path.dirname(one.moved))
        there = bin_status is not None and stat.S_ISDIR(bin_status.st_mode)
        return trash.Names(there, _place(_lstat(one.file)), _place(_lstat(one.moved)))


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _place(status: os.stat_result | None) -> tuple[int, int] | None:
    return (status.st_dev, status.st_ino) if status else None


def _check(one: trash.Record, identity: images.Identity, place: int, bin_fd: int) -> None:
    """What was moved is what was looked at, its old name still leads there, and nobody has opened it meanwhile."""
    for fd, name in (bin_fd, one.id), (place, os.path.basename(one.file)):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if images.Identity("file", status.st_dev, status.st_ino) != identity or (
            files.fingerprint(status) != one.stamp
        ):
            raise errors.FileFailed(
                act="move to the trash", file=one.file, reason="it has been changed meanwhile"
            )
    orphans.check_closed(one.file, look(one.moved))
