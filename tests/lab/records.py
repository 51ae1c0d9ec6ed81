"""What the marker writer left on a disk, read from outside the guest.

Round n of the writer appends one record to each disk in turn and syncs it before it goes on. So in every
cut that is one point in time `last` of disk 0 less `last` of disk 1 is 0 or 1, and no record is missing.
"""

import dataclasses
import itertools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab import images
from tests.lab.errors import LabError

RECORD = re.compile(rb"(S(\d{12}) D\d T(\d{12}) L(\d{8}) )C([0-9a-f]{8}) *\n")
SIZE = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """A log: how many whole records, the first's and last's number, and what is wrong with it.

    `bad` counts damaged records, `holes` the places where the next number is not one more, `tail` the bytes
    after the last record's place.
    """

    count: int
    first: int
    last: int
    bad: int
    holes: int
    tail: int

    @property
    def whole(self) -> bool:
        """Whether every record from the first to the last is there and undamaged."""
        return self.bad == self.holes == self.tail == 0


def check_log(data: bytes) -> Records:
    """Read a log of the writer."""
    numbers: list[int] = []
    bad = 0
    whole = len(data) - len(data) % SIZE
    for start in range(0, whole, SIZE):
        found = RECORD.fullmatch(data[start : start + SIZE])
        if found is None or sum(found[1]) % 2**32 != int(found[5], 16):
            bad += 1
        else:
            numbers.append(int(found[2]))
    return Records(
        count=len(numbers),
        first=numbers[0] if numbers else 0,
        last=numbers[-1] if numbers else 0,
        bad=bad,
        holes=sum(1 for one, next_ in itertools.pairwise(numbers) if next_ != one + 1),
        tail=len(data) - whole,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Offline:
    """A disk's file system as found, and its log after the journal was replayed on a copy.

    `needs_recovery` is the mark of a cut in a running file system: not set when it was frozen or unmounted.
    `sound` tells whether `e2fsck` finds nothing wrong once the journal is replayed.
    """

    needs_recovery: bool
    sound: bool
    records: Records


def offline(image: str | Path, format: str = "qcow2") -> Offline:  # noqa: A002 - QEMU's word
    """Look into an image, read through its chain, also while a machine writes to layers above it.

    Everything happens on a copy. The log is read after the replay: without it, records that were durable
    are missing (81 seen where 310 were).
    """
    with tempfile.TemporaryDirectory(prefix="offline-") as directory:
        raw = Path(directory) / "raw"
        images.convert(image, raw, format)
        needs_recovery = "needs_recovery" in _tool("dumpe2fs", "-h", raw).stdout.decode(errors="replace")
        _tool("e2fsck", "-fy", raw)
        sound = _tool("e2fsck", "-fn", raw).returncode == 0
        log = _tool("debugfs", "-R", "cat /log", raw)
        return Offline(needs_recovery, sound, check_log(log.stdout))


def _tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    # e2fsprogs live in sbin, which is not in a user's path
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise LabError(f"{name} (e2fsprogs) is not installed")
    return subprocess.run([found, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
