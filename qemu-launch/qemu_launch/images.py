"""Which images a command line opens, and how: every `-drive`, `-blockdev` and their shorthands, nested or in separate nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from qmpsnap.model import command_line

#: A place in a tree of options: the number of the argument, and the dotted prefix ("", "file.") of the level in it.
Level = tuple[int, str]


@attrs.frozen
class Image:
    """A file name on a command line.

    ``key`` is the option that names it, in the argument of ``levels[0]``; ``levels`` lead from there up to the node that a
    device uses. ``disk``: nothing but formats and filters lies between, so that a guest sees this image as its disk.
    ``written``: the guest's writes, or a quorum's, reach this file.
    """

    key: str
    file: str
    levels: tuple[Level, ...]
    disk: bool
    read_only: bool
    written: bool

    @property
    def plain(self) -> bool:
        """It is the `file=` of a `-drive`: QEMU finds out protocol and, without `format=`, format by itself."""
        return self.key == "file"


def find(command: Sequence[str]) -> list[Image]:
    """Every file that ``command`` opens as an image, in order. What is behind nbd: and the like is no file of ours."""
    arguments = command_line.block_arguments(command)
    temporary = any(word.name == "snapshot" for word in command_line.words(command))
    parents = _parents(arguments)
    return [
        _image(arguments, parents, n, key, file, temporary)
        for n, argument in enumerate(arguments)
        for key, file in _files(argument)
    ]


def _files(argument: command_line.BlockArgument) -> Iterator[tuple[str, str]]:
    for key, value in argument.options.items():
        if key == "file" and argument.drive:
            if name := file_name(str(value)):
                yield key, name
        elif key.rpartition(".")[2] == "filename":
            yield key, str(value)


def file_name(name: str) -> str:
    """The file that QEMU opens for ``name``; "" when its protocol is another one (block.c, path_has_protocol)."""
    protocol, colon, rest = name.partition(":")
    if not colon or "/" in protocol:
        return name
    return rest if protocol in {"file", "host_device"} else ""


def _parents(arguments: Sequence[command_line.BlockArgument]) -> dict[str, tuple[int, str]]:
    """By node name: the argument, and the key in it, that uses the node."""
    nodes = {argument.node for argument in arguments if argument.node}
    return {
        value: (n, key)
        for n, argument in enumerate(arguments)
        for key, value in argument.options.items()
        if isinstance(value, str) and value in nodes and not argument.drive and _refers(key)
    }


def _refers(key: str) -> bool:
    return key.rpartition(".")[2] not in {
        "driver",
        "node-name",
        "filename",
        "detect-zeroes",
        "discard",
        "aio",
    }


def _image(
    arguments: Sequence[command_line.BlockArgument],
    parents: dict[str, tuple[int, str]],
    number: int,
    key: str,
    file: str,
    temporary: bool,
) -> Image:
    links, levels = _way_up(arguments, parents, number, key)
    top = arguments[levels[-1][0]]
    read_only = top.options.get("media") == "cdrom" or any(
        truth(arguments[n].options.get(prefix + word, False))
        for n, prefix in levels
        for word in ("read-only", "readonly")
    )
    lost = top.drive and truth(top.options.get("snapshot", temporary))
    return Image(
        key=key,
        file=file,
        levels=tuple(levels),
        disk=set(links) <= {"file"},
        read_only=read_only,
        written=not read_only and not lost and "backing" not in links,
    )


def _way_up(
    arguments: Sequence[command_line.BlockArgument],
    parents: dict[str, tuple[int, str]],
    number: int,
    key: str,
) -> tuple[list[str], list[Level]]:
    """The names of the links from the file up to the node that nobody else on the command line uses, and the levels passed."""
    links: list[str] = []
    levels: list[Level] = []
    while True:
        *above, _last = key.split(".")
        prefixes = ["".join(f"{part}." for part in above[:depth]) for depth in range(len(above) + 1)]
        levels += [(number, prefix) for prefix in reversed(prefixes)]
        links += reversed(above)
        parent = parents.get(arguments[number].node) if not arguments[number].drive else None
        if parent is None or parent[0] in {n for n, _prefix in levels}:
            return links, levels
        number, key = parent
        links.append(key.rpartition(".")[2])


def truth(value: Any) -> bool:
    """A boolean as QEMU reads it."""
    return value is True or str(value) in {"on", "yes", "true", "y"}


def unseen(command: Sequence[str]) -> Iterator[command_line.Word]:
    """Options that may open images which ``find`` does not see."""
    for word in command_line.words(command):
        if word.name == "readconfig" or (word.name == "set" and re.match(r"drive\..*\.file=", word.value)):
            yield word
