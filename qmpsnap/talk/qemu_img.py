"""qemu-img, and the acts on images that need it. Blocking: called from worker threads."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Container, Mapping
from typing import Any

from qmpsnap import errors, faults
from qmpsnap.model import qcow2
from qmpsnap.plan import recovery
from qmpsnap.talk import files

#: The tool itself; tests take another QEMU's by the environment.
TOOL = os.environ.get("QMPSNAP_QEMU_IMG", "qemu-img")

# A qemu-img that hangs on dead storage must not hold an operation for ever; a map of a very large image takes seconds.
_PATIENCE = 600.0


def _run(*arguments: str, good: Container[int] = (0,)) -> str:
    try:
        done = subprocess.run(
            [TOOL, *arguments],
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        reason = f"{error.strerror} (Debian: apt-get install qemu-utils)"
        raise errors.ToolFailed(tool=TOOL, reason=reason) from error
    except subprocess.TimeoutExpired as error:
        raise errors.ToolFailed(
            tool=f"{TOOL} {arguments[0]}", reason=f"no answer in {_PATIENCE:.0f} s"
        ) from error
    if done.returncode not in good:
        # It names itself by the last part of its path, whatever path it was called by.
        reason = done.stderr.decode(errors="replace").strip().replace(f"{os.path.basename(TOOL)}: ", "")
        raise errors.ToolFailed(
            tool=f"{TOOL} {arguments[0]}", reason=reason or f"exit status {done.returncode}"
        )
    return done.stdout.decode(errors="replace")


def make_overlay(file: str, temp: str, backing: str, backing_format: str, size: int, like: str) -> None:
    """An empty overlay is at ``file``, whole and durable, with owner, group and mode of ``like``; or nothing is left of it.

    ``FileFailed`` when ``file`` exists: link(2) does not replace, and a foreign file is never opened. The backing file is not
    opened either: QEMU has it locked.
    """
    name = os.fsencode(backing)
    if len(name) > qcow2.LONGEST_BACKING:
        raise errors.CannotCreateFile(file=file, reason="the name of its backing file is too long for qcow2")
    try:
        status = os.stat(like)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            faults.point("reserved")
            _write(fd, qcow2.empty_overlay(name, backing_format, size))
            faults.point("formatted")
            with contextlib.suppress(PermissionError):
                os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, status.st_mode & 0o7777)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(temp, file)
        faults.point("linked")
        os.unlink(temp)
    except OSError as error:
        _forget(temp)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise errors.CannotCreateFile(file=file, reason=reason) from error
    files.sync(os.path.dirname(file))


def _write(fd: int, layout: qcow2.Layout) -> None:
    try:
        # The zeroes have their blocks, too: that the disk is full is to be found out now, not by the guest's first write.
        os.posix_fallocate(fd, 0, layout.length)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # a file system without it
            raise
        os.ftruncate(fd, layout.length)
    with open(fd, "wb", closefd=False) as image:
        for offset, part in layout.parts:
            image.seek(offset)
            image.write(part)


def _forget(temp: str) -> None:
    with contextlib.suppress(OSError):  # what a broken disk keeps, the undo of the step removes
        os.unlink(temp)


def overlay_state(file: str, backing: str) -> recovery.Overlay:
    """How an overlay of ``backing`` lies on disk: recovery asks; nothing is changed."""
    if not os.path.lexists(file):
        return "absent"
    header = info(file)
    if header.get("format") != "qcow2" or header.get("backing-filename") != backing:
        return "foreign"
    return "data" if holds_data(file) else "empty"


def holds_data(file: str) -> bool:
    """Something is stored in the qcow2 image itself. What is below it is not opened: it may be missing."""
    try:
        file.encode()
    except UnicodeEncodeError:  # no JSON can name it
        return any(e["present"] and e["depth"] == 0 for e in extents(file, "qcow2"))
    alone = {"driver": "qcow2", "file": {"driver": "file", "filename": file}, "backing": None}
    found = json.loads(_run("map", "-U", "--output=json", f"json:{json.dumps(alone)}"))
    return any(extent["present"] for extent in found)


def remove_overlay(file: str, temp: str, backing: str) -> None:
    """``temp`` is gone, and ``file`` too if it is an overlay of ``backing`` that holds nothing and nobody has open.

    An empty overlay can be removed without loss whoever made it; anything else stays as it is.
    """
    files.remove(temp)
    if overlay_state(file, backing) == "empty" and not files.opened_for_writing(file):
        files.remove(file)


def info(file: str) -> Mapping[str, Any]:
    """`qemu-img info` of one image, also while QEMU has it open (-U)."""
    answer: dict[str, Any] = json.loads(_run("info", "-U", "--output=json", _named(file)))
    return answer


def backing_chain(file: str, form: str) -> list[Mapping[str, Any]]:
    """`qemu-img info --backing-chain`, active layer first."""
    chain: list[Mapping[str, Any]] = json.loads(
        _run("info", "-U", "--backing-chain", "--output=json", "-f", form, _named(file))
    )
    return chain


def extents(file: str, form: str) -> list[Mapping[str, Any]]:
    """`qemu-img map`: start, length, depth (0 is the image itself), present (allocated there), also while QEMU has it open."""
    answer: list[Mapping[str, Any]] = json.loads(_run("map", "-U", "--output=json", "-f", form, _named(file)))
    return answer


def check(file: str, form: str) -> tuple[int, int]:
    """Errors and leaked clusters that `qemu-img check` finds; leaks waste space and harm nothing (a killed QEMU leaves some).

    Nothing is repaired. ``ToolFailed`` when it cannot tell.
    """
    answer = json.loads(_run("check", "--output=json", "-f", form, _named(file), good=(0, 2, 3)) or "{}")
    return answer.get("corruptions", 0) + answer.get("check-errors", 0), answer.get("leaks", 0)


def rebase(file: str, backing: str, backing_format: str) -> None:
    """The header names ``backing``; contents are not touched (-u). Fails while a QEMU has the image open."""
    _run("rebase", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, _named(file))
    files.sync(file)


def _named(file: str) -> str:
    """The file as an argument: absolute, so that it is never an option; `:` before the first `/` would name a protocol."""
    return file if file.startswith("/") else f"./{file}"
