"""Images for tests, made and read by the `qemu-img` and `qemu-io` of the QEMU under test."""

# ruff: noqa: A002 - "format" is what QEMU and its users call it

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.errors import GuestIOError, LabError

KIB = 1024
MIB = 1024 * KIB
BLOCK = 4096

# qemu-img measures how fast keys are derived, and on virtual hosts finds its processor clock standing still: 22
# of 40 times on one.
UNSTEADY_CLOCK = "Unable to get accurate CPU usage"
ENCRYPTION_TRIES = 40


def qemu_binary() -> str:
    """Name the QEMU under test: `$QMPSNAP_QEMU`, else the one in the path."""
    return os.environ.get("QMPSNAP_QEMU") or "qemu-system-x86_64"


def tool(name: str, binary: str | None = None) -> str:
    """Name the `qemu-img` or `qemu-io` that belongs to a QEMU: its sibling if there is one, else the path's."""
    found = shutil.which(binary or qemu_binary())
    if found is not None:
        sibling = Path(found).parent / name
        if os.access(sibling, os.X_OK):
            return str(sibling)
    return name


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def _must(*command: str | Path) -> str:
    result = _run(*command)
    if result.returncode != 0:
        raise LabError(f"{' '.join(str(part) for part in command)}: {result.stdout.strip()}")
    return result.stdout


def escape(value: str | Path) -> str:
    """Write a value for QEMU's `key=value,…` options, where a comma is doubled."""
    return str(value).replace(",", ",,")


def _options(path: str | Path, format: str) -> str:
    # Options, because as a plain name a path with a colon or a `json:` prefix means something else.
    return f"driver={format},file.driver=file,file.filename={escape(Path(path).absolute())}"


def image(
    path: str | Path,
    size: int | None = None,
    format: str = "qcow2",
    backing: str | Path | None = None,
    backing_format: str | None = None,
    options: str | None = None,
) -> Path:
    """Create an image and return its path. With a backing file the size may be left out."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(path)  # qemu-img would overwrite it in silence
    command: list[str | Path] = [tool("qemu-img"), "create", "-q", "-f", format]
    if backing is not None:
        # -u: qemu-img would lock the backing file and fail when a machine writes to it
        command += ["-b", backing, "-F", backing_format or "qcow2", "-u"]
        if size is None:
            # the header's name is relative to the new image, not to the working directory
            size = virtual_size(path.parent / backing, backing_format or "qcow2")
    if options is not None:
        command += ["-o", options]
    command.append(path.absolute())
    if size is not None:
        command.append(str(size))
    _must(*command)
    return path


def encrypted_image(path: str | Path, size: int, format: str, passphrase: str) -> Path:
    """Create an image that LUKS encrypts: format `luks`, or `qcow2` with the encryption inside."""
    path = Path(path)
    path.write_bytes(_encrypted(size, format, passphrase))
    return path


@functools.cache  # 2 s each: QEMU measures the key derivation
def _encrypted(size: int, format: str, passphrase: str) -> bytes:
    prefix = "" if format == "luks" else "encrypt."
    options = f"{prefix}key-secret=key,{prefix}iter-time=10"
    if format != "luks":
        options += ",encrypt.format=luks"
    secret = f"secret,id=key,data={passphrase}"
    command = [tool("qemu-img"), "create", "-q", "-f", format, "--object", secret, "-o", options]
    with tempfile.TemporaryDirectory(prefix="encrypted-") as directory:
        path = Path(directory) / "image"
        for _ in range(ENCRYPTION_TRIES):
            result = _run(*command, path, str(size))
            if UNSTEADY_CLOCK not in result.stdout:
                break
        if result.returncode != 0:
            raise LabError(f"qemu-img create {format}: {result.stdout.strip()}")
        return path.read_bytes()


def info(path: str | Path, format: str = "qcow2") -> dict[str, Any]:
    """Read an image's header, also while a machine writes to it."""
    text = _must(tool("qemu-img"), "info", "-U", "--output=json", "--image-opts", _options(path, format))
    found: dict[str, Any] = json.loads(text)
    return found


def virtual_size(path: str | Path, format: str = "qcow2") -> int:
    """Return the size that a guest sees, in bytes."""
    size: int = info(path, format)["virtual-size"]
    return size


def chain(path: str | Path, format: str = "qcow2") -> list[Path]:
    """Return an image and the backing files below it as the headers name them, active layer first."""
    text = _must(
        tool("qemu-img"),
        "info",
        "-U",
        "--backing-chain",
        "--output=json",
        "--image-opts",
        _options(path, format),
    )
    below = [layer["full-backing-filename"] for layer in json.loads(text) if "full-backing-filename" in layer]
    return [Path(path), *(Path(name) for name in below)]


def check(path: str | Path, format: str = "qcow2") -> None:
    """Raise unless `qemu-img check` finds the image's own tables sound (leaked clusters are no harm)."""
    result = _run(tool("qemu-img"), "check", "-U", "-q", "--image-opts", _options(path, format))
    if result.returncode not in {0, 3}:
        raise LabError(f"qemu-img check {path}: {result.stdout.strip()}")


def write_pattern(path: str | Path, format: str, pattern: int, offset: int, length: int) -> None:
    """Fill a part of an image with one byte. Fails while a machine has the image open."""
    command = f"write -P {pattern} {offset} {length}"
    text = _must(tool("qemu-io"), "-c", command, "--image-opts", _options(path, format))
    if f"wrote {length}/{length} bytes at offset {offset}" not in text:
        raise LabError(f"qemu-io {path}: {command}: {text.strip()}")


def read_ok(
    path: str | Path, pattern: int, offset: int, length: int, share: bool = True, format: str = "qcow2"
) -> bool:
    """Tell whether a part of an image, read through its whole chain, holds nothing but this byte.

    `share` reads also while a machine writes; what QEMU has not flushed yet may then be missing.
    Raises when the image cannot be read at all: an unreadable image is never just "not equal".
    """
    command = f"read -P {pattern} {offset} {length}"
    flags = ["-r", "-U"] if share else ["-r"]
    result = _run(tool("qemu-io"), *flags, "-c", command, "--image-opts", _options(path, format))
    return matched(result.stdout, command, offset, length)


def matched(text: str, command: str, offset: int, length: int) -> bool:
    if f"read {length}/{length} bytes at offset {offset}" not in text:
        raise GuestIOError(f"{command}: {text.strip() or 'no answer'}")
    return "Pattern verification failed" not in text


def convert(path: str | Path, raw: Path, format: str = "qcow2") -> None:
    """Write what a guest would see, through the whole chain, to a sparse raw file."""
    _must(tool("qemu-img"), "convert", "-U", "-O", "raw", "--image-opts", _options(path, format), raw)


def content_digest(path: str | Path, format: str = "qcow2") -> str:
    """Digest the bytes that a guest would see, through the whole chain, and the size of the disk.

    Equal contents give equal digests however they are stored (format, chain, holes, allocated zeroes).
    Reads also while a machine writes.
    """
    with tempfile.TemporaryDirectory(prefix="digest-") as directory:
        raw = Path(directory) / "raw"
        convert(path, raw, format)
        digest = hashlib.sha256(str(raw.stat().st_size).encode())
        for offset, block in _data_blocks(raw):
            digest.update(offset.to_bytes(8, "big"))
            digest.update(block)
        return digest.hexdigest()


def _data_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks that are not all zero, by their offset."""
    zero = bytes(BLOCK)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: nothing but a hole up to the end
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            start -= start % BLOCK
            for offset in range(start, end, BLOCK):
                block = os.pread(file.fileno(), BLOCK, offset)
                if block != zero[: len(block)]:
                    yield offset, block
            offset = end


def version(binary: str | None = None) -> tuple[int, int, int]:
    """Return a QEMU's version."""
    text = _must(binary or qemu_binary(), "--version")
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise LabError(f"no version in {text!r}")
    return int(found[1]), int(found[2]), int(found[3])
