"""The settings of the daemon and the definitions of machines, as typed values read from TOML.

A wrong key or type is ``ConfigError`` with file, table and key; a value that is not there has the default named here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs

from qmpsnap import errors

Bus = Literal["virtio", "scsi", "sata", "ide"]
OverlayWay = Literal["auto", "blockdev"]
T = TypeVar("T")


@attrs.frozen
class Settings:
    """``qmpsnap.toml``."""

    # How an overlay comes into QEMU. "auto": blockdev-snapshot-sync onto a file made before, and blockdev-add only for disks
    # that would lose an option by it. "blockdev": always opened before the transaction, which opens nothing then; with 8
    # disks the longest write was 15 ms instead of 20 in one run of tests/bench, within its noise. We close the nodes after a pull.
    overlay: OverlayWay = "auto"
    # Group that may use the read-write socket; empty: only the daemon's own user.
    group: str = ""
    # Seconds that a monitor may stay silent before the machine is shown as hung.
    greeting_timeout: float = 2.0
    # Directories with images besides those of the disks that we know: `orphans` looks there, and clones are found there.
    image_dirs: tuple[str, ...] = ()
    # Images that stay as they are whatever nobody seems to need: absolute paths.
    hold: tuple[str, ...] = ()
    # Days that a removed image stays in the trash.
    trash_days: int = 7


@attrs.frozen
class DiskDefinition:
    """One ``[[disk]]``: the image that the disk began with; the active layer is in our state, not here."""

    target: str
    file: str
    format: str
    bus: Bus = "virtio"


@attrs.frozen
class Definition:
    """``config/domain/NAME.toml``: a machine that qemu-launch starts, or the monitor of one that somebody else starts."""

    name: str
    uuid: str = ""
    memory: str = "256M"
    vcpus: int = 1
    accel: str = ""
    machine: str = "q35"
    cpu: str = ""
    firmware: str = ""
    agent: bool = False
    monitor: str = ""
    extra_args: tuple[str, ...] = ()
    disk: tuple[DiskDefinition, ...] = ()


def settings(text: str, origin: str) -> Settings:
    """The settings in ``text``; ``origin`` is the file's name for messages."""
    return _build(Settings, _toml(text, origin), origin, "")


def definition(text: str, origin: str, name: str) -> Definition:
    """The machine in ``text``; ``name`` (of the file) is its name unless the text says the same."""
    table = _toml(text, origin)
    if table.setdefault("name", name) != name:
        raise errors.ConfigError(
            file=origin, key="name", reason=f"is '{table['name']}', but the file names '{name}'"
        )
    disks = table.pop("disk", [])
    if not isinstance(disks, list):
        raise errors.ConfigError(file=origin, key="disk", reason="must be written as [[disk]]")
    built = tuple(_build(DiskDefinition, d, origin, f"disk[{n}].") for n, d in enumerate(disks))
    for n, disk in enumerate(built):
        if not disk.file.startswith("/"):
            raise errors.ConfigError(file=origin, key=f"disk[{n}].file", reason="must be an absolute path")
    if len({d.target for d in built}) < len(built):
        raise errors.ConfigError(file=origin, key="disk.target", reason="names a target twice")
    return attrs.evolve(_build(Definition, table, origin, ""), disk=built)


def _toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.ConfigError(file=origin, key="", reason=f"is not TOML: {error}") from error


def _build(kind: type[T], table: Mapping[str, Any], origin: str, prefix: str) -> T:
    if not isinstance(table, dict):
        raise errors.ConfigError(file=origin, key=prefix.rstrip("."), reason="must be a table")
    fields = {field.name: field for field in attrs.fields(kind)}  # type: ignore[arg-type]  # T is an attrs class here
    for key in table:
        if key not in fields or key == "disk":
            raise errors.ConfigError(
                file=origin, key=prefix + key, reason=f"is unknown; known: {', '.join(sorted(fields))}"
            )
    values = {key: _value(value, fields[key].type, origin, prefix + key) for key, value in table.items()}
    missing = [n for n, f in fields.items() if f.default is attrs.NOTHING and n not in values]
    if missing:
        raise errors.ConfigError(file=origin, key=prefix + missing[0], reason="is missing")
    return kind(**values)


_TYPES = {"str": str, "int": int, "bool": bool, "float": (int, float)}
_CHOICES = {"Bus": get_args(Bus), "OverlayWay": get_args(OverlayWay)}


def _value(value: Any, kind: Any, origin: str, key: str) -> Any:
    name = str(kind)
    if choices := _CHOICES.get(name):
        if value in choices:
            return value
        raise errors.ConfigError(file=origin, key=key, reason=f"is {value!r}; allowed: {', '.join(choices)}")
    if name.startswith("tuple[str"):
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise errors.ConfigError(file=origin, key=key, reason="must be a list of strings")
    wanted = _TYPES[name]
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):  # type: ignore[arg-type]  # a type, or a tuple of types
        raise errors.ConfigError(file=origin, key=key, reason=f"must be a {name}, not {value!r}")
    return value
