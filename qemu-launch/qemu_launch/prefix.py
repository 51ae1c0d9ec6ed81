"""An existing command line made to start on the active layers: the same command, but for the images."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs

from qemu_launch import images
from qmpsnap import errors
from qmpsnap.model import command_line, observe
from qmpsnap.model.images import Identity


@attrs.frozen
class Layer:
    """An image that a disk can be started on; ``block``: it is a block device."""

    file: str
    format: str
    block: bool = False


@attrs.frozen
class Known:
    """A disk as recorded: its active layer (``present``: the file is there), and every image known to be part of it.

    ``family`` reaches beyond the active layer's chain: a pull takes images out of the chain that a command line or definition
    goes on naming; the snapshots of the disk still know them. ``names`` are their names, for those that are gone.
    """

    target: str
    active: Layer
    identity: Identity | None
    family: frozenset[Identity]
    names: frozenset[str] = frozenset()

    @property
    def present(self) -> bool:
        return self.identity is not None

    def includes(self, file: str, identity: Identity | None) -> bool:
        return file in self.names if identity is None else identity in self.family


@attrs.frozen
class Swap:
    """One image of a command line and the active layer that takes its place."""

    image: images.Image
    known: Known


def choose(
    domain: str,
    found: Sequence[images.Image],
    known: Sequence[Known],
    identify: Mapping[str, Identity | None],
    settled: Collection[str] = (),
) -> list[Swap]:
    """What to swap so that every disk starts on its active layer; an image that is active, or new, stays.

    ``ActiveMissing``, ``ImageAmbiguous``; and ``ImageStrange`` when a recorded disk is not on the command line while an image
    that nothing knows is: the disk could have been renamed, and to start it on an old state would lose the newest. Files that
    are ``settled`` are not doubted: a definition has said which disk they are.
    """
    swaps, met, strange = [], set[str](), []
    for image in (i for i in found if i.disk):
        identity = identify[image.file]
        matches = [k for k in known if k.includes(image.file, identity)]
        exact = [k for k in matches if identity is not None and k.identity == identity]
        met |= {k.target for k in exact or matches}
        if not matches and image.written and image.file not in settled:
            strange.append(image)
        elif not exact and matches and not image.read_only:
            swaps.append(Swap(image, _one(domain, image, matches)))
    lost = [k for k in known if k.target not in met]
    if strange and lost:
        disk = next((k for k in lost if not k.present), lost[0])
        raise _strange(domain, strange[0].file, disk)
    return swaps


def _one(domain: str, image: images.Image, matches: Sequence[Known]) -> Known:
    if len(matches) > 1:
        layers = ", ".join(f"{k.target} ({k.active.file})" for k in matches)
        raise errors.ImageAmbiguous(given=image.file, domain=domain, layers=layers)
    return layer_of(domain, matches[0])


def layer_of(domain: str, known: Known) -> Known:
    """The disk, if its active layer is there."""
    if not known.present:
        raise errors.ActiveMissing(target=known.target, domain=domain, file=known.active.file)
    return known


def _strange(domain: str, given: str, known: Known) -> errors.Error:
    layer_of(domain, known)
    return errors.ImageStrange(given=given, target=known.target, domain=domain, active=known.active.file)


def rewrite(command: Sequence[str], swaps: Iterable[Swap]) -> list[str]:
    """``command`` with the layers in place of the images; everything else stays as it was written.

    A shorthand becomes the `-drive` that it is short for, with the format: what QEMU finds out by looking at a raw image is
    the guest's to choose.
    """
    arguments = command_line.block_arguments(command)
    options = [dict(argument.options) for argument in arguments]
    touched: set[int] = set()
    for swap in swaps:
        touched |= _Edit(arguments, options).swap(swap.image, swap.known.active)
    words = list(command)
    for n in sorted(touched, reverse=True):
        argument = arguments[n]
        text = _written(attrs.evolve(argument, options=options[n]))
        if argument.kind in {"blockdev", "drive"}:
            words[argument.index] = text
        else:
            first = argument.index - 1 if argument.kind else argument.index
            words[first : argument.index + 1] = ["-drive", text]
    return words


def _written(argument: command_line.BlockArgument) -> str:
    if argument.json:
        return json.dumps(command_line.unflatten(argument.options), ensure_ascii=False)
    return command_line.join_options((key, _word(value)) for key, value in argument.options.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


# Options of a protocol node; when one without a format gets a format node, they go down with it.
_PROTOCOL = ("driver", "filename", "aio", "aio-max-batch", "locking", "pr-manager", "drop-cache")


@attrs.frozen
class _Edit:
    """Changes to the options of one command line."""

    arguments: Sequence[command_line.BlockArgument]
    options: Sequence[dict[str, Any]]

    def swap(self, image: images.Image, layer: Layer) -> set[int]:
        """The arguments that were changed so that ``image`` is ``layer``."""
        number, prefix = image.levels[0]
        if image.plain:
            self.options[number]["file"] = layer.file
            return {number} | self._format((number, prefix), layer)
        own = self.options[number]
        own[image.key] = layer.file
        if own.get(prefix + "driver") in {"file", "host_device"}:
            own[prefix + "driver"] = "host_device" if layer.block else "file"
        form = next((level for level in image.levels[1:] if self._is_format(level)), None)
        if form is not None:
            return {number} | self._format(form, layer)
        self._deepen(number, prefix, layer)
        return {number}

    def _is_format(self, level: images.Level) -> bool:
        number, prefix = level
        return self.options[number].get(prefix + "driver") not in observe.FILTERS

    def _format(self, level: images.Level, layer: Layer) -> set[int]:
        """The level has the layer's format, and takes its backing file from the image's header."""
        number, prefix = level
        own, drive = self.options[number], self.arguments[number].drive and not prefix
        key = "format" if drive and "driver" not in own else "driver"
        own[prefix + key] = layer.format
        backing = own.pop(prefix + "backing", None)
        for name in [name for name in own if name.startswith(prefix + "backing.")]:
            del own[name]
        return {number} | {
            n for n, a in enumerate(self.arguments) if backing and a.node == backing and self._protect(n)
        }

    def _protect(self, number: int) -> bool:
        """A node that was named as backing file is now part of the chain below: opened twice, it must not be writable."""
        self.options[number]["read-only"] = True if self.arguments[number].json else "on"
        return True

    def _deepen(self, number: int, prefix: str, layer: Layer) -> None:
        """The device sat on the file itself: a format node comes between, under the same name."""
        own = self.options[number]
        moved = {f"{prefix}file.{name}": own.pop(prefix + name) for name in _PROTOCOL if prefix + name in own}
        own[prefix + "driver"] = layer.format
        own.update(moved)


def with_monitor(command: Sequence[str], path: str) -> list[str]:
    """``command`` with a monitor at ``path`` for qmpsnapd: QEMU serves one client per monitor, so it is one of our own."""
    socket = [("path", path), ("server", "on"), ("wait", "off")]
    return [
        *command,
        *("-chardev", f"socket,id=qmpsnap,{command_line.join_options(socket)}"),
        *("-mon", "chardev=qmpsnap,mode=control"),
    ]
