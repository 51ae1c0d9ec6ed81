"""QEMU's option syntax, read and written: `-drive` and `-blockdev` of a running process or of a command to be started."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs


def split_options(text: str, implied: str = "") -> list[tuple[str, str]]:
    """The key=value pairs of an option argument; a comma in a value is written `,,` (qemu(1), "Block device options").

    A word without `=` is a flag and gets the value "on"; as the first word it is the value of ``implied``, if there is one.
    """
    pairs: list[tuple[str, str]] = []
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = (word.replace("\0", ",") for word in part.partition("="))
        if not equals and implied and not pairs:
            pairs.append((implied, key))
        else:
            pairs.append((key, value if equals else "on"))
    return pairs


def join_options(pairs: Iterable[tuple[str, str]]) -> str:
    """The reverse of split_options."""
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested JSON as dotted keys: {"file": {"driver": "file"}} becomes {"file.driver": "file"}, a list's members are numbered."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list):
            value = {str(n): member for n, member in enumerate(value)} or value
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of flatten."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *above, key = dotted.split(".")
        level = tree
        for part in above:
            level = level.setdefault(part, {})
        level[key] = value
    return {key: _numbered(value) for key, value in tree.items()}


def _numbered(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        return value
    if list(value) == [str(n) for n in range(len(value))]:
        return [_numbered(member) for member in value.values()]
    return {key: _numbered(member) for key, member in value.items()}


# fmt: off
# Options that take no argument, of QEMU 2.0 to 10.0: whatever follows another option is its argument.
_FLAGS = frozenset({
    "alt-grab", "async-teardown", "audio-help", "ctrl-grab", "curses", "daemonize", "enable-fips",
    "enable-hax", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "localtime",
    "mem-prealloc", "no-acpi", "no-fd-bootchk", "no-frame", "no-hpet", "no-kvm", "no-kvm-irqchip",
    "no-kvm-pit", "no-kvm-pit-reinjection", "no-quit", "no-reboot", "no-shutdown", "no-user-config",
    "nodefaults", "nodefconfig", "nographic", "old-param", "only-migratable", "portrait", "preconfig",
    "rtc-td-hack", "S", "s", "sdl", "semihosting", "show-cursor", "singlestep", "snapshot", "tdf",
    "usb", "version", "win2k-hack", "xen-attach", "xen-create", "xen-domid-restrict",
})
# fmt: on

# What the shorthands stand for (system/vl.c, drive_add): `-hdc x` is `-drive file=x,index=2,media=disk`.
_SHORT: Mapping[str, Mapping[str, str]] = {
    **{f"hd{'abcd'[n]}": {"index": str(n), "media": "disk"} for n in range(4)},
    "cdrom": {"index": "2", "media": "cdrom"},
    "fda": {"if": "floppy", "index": "0"},
    "fdb": {"if": "floppy", "index": "1"},
    "mtdblock": {"if": "mtd"},
    "pflash": {"if": "pflash"},
    "sd": {"if": "sd"},
}
_POSITIONAL = {"index": "0", "media": "disk"}
_BLOCK = frozenset({"drive", "blockdev", "snapshot", *_SHORT})


@attrs.frozen
class Word:
    """One option: ``name`` without dashes ("" for the image that stands alone); ``index`` is the place of its value."""

    name: str
    value: str
    index: int


def words(command: Sequence[str]) -> Iterator[Word]:
    """The options after the program's name, in order. One and two dashes are the same to QEMU."""
    index = 1
    while index < len(command):
        word = command[index]
        if not word.startswith("-"):
            yield Word("", word, index)
        elif (name := _name(word)) in _FLAGS or index + 1 == len(command) or _takes_none(command[index + 1]):
            yield Word(name, "", index)
        else:
            index += 1
            yield Word(name, command[index], index)
        index += 1


def _name(word: str) -> str:
    return word.removeprefix("-").removeprefix("-")


def _takes_none(following: str) -> bool:
    """An option that is newer than our table may be a flag: what comes after it is not swallowed where a disk could be missed."""
    return following.startswith("-") and _name(following) in _BLOCK


@attrs.frozen
class BlockArgument:
    """One argument that opens an image: ``index`` is the place of its value; ``options`` are flat, a shorthand's spelled out.

    ``kind`` is the option's name, "" for the image that stands alone on the command line.
    """

    index: int
    kind: str
    options: dict[str, Any]
    json: bool = False

    @property
    def drive(self) -> bool:
        """It is a `-drive` or short for one: its ``file`` is a file name and its ``id`` is not a node name."""
        return self.kind != "blockdev"

    @property
    def node(self) -> str:
        return str(self.options.get("node-name", ""))

    @property
    def id(self) -> str:
        return str(self.options.get("id", ""))


def block_arguments(command: Sequence[str]) -> list[BlockArgument]:
    """Every argument of ``command`` that opens an image, in order."""
    found = []
    for word in words(command):
        if word.name == "blockdev" and word.value.startswith("{"):
            found.append(BlockArgument(word.index, word.name, flatten(_json(word.value)), json=True))
        elif word.name == "blockdev":
            found.append(BlockArgument(word.index, word.name, dict(split_options(word.value, "driver"))))
        elif word.name == "drive":
            found.append(BlockArgument(word.index, word.name, _spelled_out(dict(split_options(word.value)))))
        elif word.name in _SHORT or not word.name:
            options = {"file": word.value, **_SHORT.get(word.name, _POSITIONAL)}
            found.append(BlockArgument(word.index, word.name, _spelled_out(options)))
    return found


def _spelled_out(options: dict[str, str]) -> dict[str, Any]:
    """A `json:{…}` as file name says the same as dotted options do."""
    file = options.get("file", "")
    if not file.startswith("json:"):
        return {**options}
    inner = flatten(_json(file.removeprefix("json:")))
    if not inner:
        return {**options}
    return {**inner, **{key: value for key, value in options.items() if key != "file"}}


def _json(text: str) -> Mapping[str, Any]:
    """QEMU will complain about what is not JSON; here it simply names no image."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def drive_ids(command: Sequence[str]) -> dict[int, str]:
    """The id of each drive by the place of its argument: given, or made by QEMU of interface, bus and unit.

    QEMU takes the first free unit in the order of the command line, and numbers units through where a bus has no end
    (blockdev.c, drive_new): `virtio0`, `ide1-cd0`, `none0`.
    """
    machine = _machine(command)
    default = _DEFAULT_INTERFACE.get(machine.removeprefix("pc-").partition("-")[0], "ide")
    taken: set[tuple[str, int, int]] = set()
    return {
        argument.index: argument.id or made
        for argument in block_arguments(command)
        if argument.drive
        for made in [_made_id(argument.options, default, machine, taken)]
    }


# Machines whose drives without `if=` are not IDE (`block_default_type` of their class).
_DEFAULT_INTERFACE = {
    "virt": "virtio",
    "s390": "virtio",
    "pseries": "scsi",
    "microvm": "none",
    "none": "none",
}


def _machine(command: Sequence[str]) -> str:
    given = [dict(split_options(w.value, "type")) for w in words(command) if w.name in {"machine", "M"}]
    return next((options["type"] for options in reversed(given) if "type" in options), "")


def _made_id(options: Mapping[str, Any], default: str, machine: str, taken: set[tuple[str, int, int]]) -> str:
    interface = str(options.get("if", default))
    # q35's AHCI has one unit on each of its buses, the PC's IDE two.
    units = {"ide": 1 if "q35" in machine else 2, "scsi": 7}.get(interface, 0)
    try:
        index = int(options.get("index", -1))
        bus, unit = int(options.get("bus", 0)), int(options.get("unit", -1))
    except ValueError:
        return ""
    if index >= 0:
        bus, unit = divmod(index, units) if units else (0, index)
    while unit < 0 or ("unit" not in options and index < 0 and (interface, bus, unit) in taken):
        unit += 1
        if units and unit >= units:
            bus, unit = bus + 1, 0
    taken.add((interface, bus, unit))
    media = "-cd" if options.get("media") == "cdrom" else "-hd"
    media = media if interface in {"ide", "scsi"} else ""
    return f"{interface}{bus}{media}{unit}" if units else f"{interface}{media}{unit}"


def image_options(command: Sequence[str], nodes: Sequence[str], backend: str) -> dict[str, str] | None:
    """`aio`, `discard` and `detect-zeroes` that a disk was started with; None when the command line does not name it.

    ``nodes`` are the disk's nodes, active layer first: an overlay of ours is not on the command line, the layer under it is.
    """
    arguments = block_arguments(command)
    ids = drive_ids(command)
    for argument in arguments:
        if backend and ids.get(argument.index) == backend:
            return _pick(argument.options, {})
    for node in nodes:
        for argument in arguments:
            if argument.node and argument.node == node:
                below = argument.options.get("file")
                storage = next((a for a in arguments if a.node and a.node == below), None)
                return _pick(argument.options, storage.options if storage else {})
    return None


def _pick(options: Mapping[str, Any], storage: Mapping[str, Any]) -> dict[str, str]:
    picked = {}
    for key in ("aio", "discard", "detect-zeroes"):
        value = options.get(key, options.get(f"file.{key}", storage.get(key)))
        if value is not None:
            picked[key] = str(value)
    return picked
