"""qemu-launch: starts plain QEMU on the layers that are really active, and becomes it.

It ends in exec(2), so that whoever supervises the machine sees QEMU itself: its pid, its signals, its exit status.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import attrs

from qemu_launch import definition, gate, guard, host, images, known, prefix
from qmpsnap import errors, paths
from qmpsnap.model import images as model
from qmpsnap.model import names
from qmpsnap.talk import images as image_files
from qmpsnap.talk import needs, store

_EPILOG = """\
Without --name the machine is built from its definition, config/domain/DOMAIN.toml, and what follows -- is added to the command.
With --name the command after -- is kept, but for the images: each disk that qmpsnapd has recorded starts on its active layer."""


@attrs.frozen
class Request:
    """What the command line asks for; ``rest`` is what follows ``--``."""

    domain: str
    prefix: bool
    dry_run: bool
    as_given: bool
    wait: float
    rest: tuple[str, ...]


def parse(argv: Sequence[str]) -> Request:
    """The request; exits with status 2 and a usage message when it is none."""
    own, rest = list(argv), list[str]()
    if "--" in own:
        place = own.index("--")
        own, rest = own[:place], own[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="qemu-launch",
        description=__doc__.split("\n")[0] if __doc__ else None,
        usage="qemu-launch [options] DOMAIN [-- QEMU-ARGUMENT...]\n"
        "       qemu-launch [options] --name DOMAIN -- QEMU-COMMAND...",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "domain", nargs="?", metavar="DOMAIN", help="the machine to start from its definition"
    )
    parser.add_argument("--name", metavar="DOMAIN", help="the machine that the command after -- starts")
    parser.add_argument("--dry-run", action="store_true", help="print the command, start and create nothing")
    parser.add_argument(
        "--as-given", action="store_true", help="use the images as named, whatever layers are recorded"
    )
    parser.add_argument(
        "--wait", type=float, default=gate.PATIENCE, metavar="SECONDS",
        help="how long to wait for an unfinished operation (default %(default)g)",
    )  # fmt: skip
    given = parser.parse_args(own)
    if (given.domain is None) == (given.name is None):
        parser.error("either DOMAIN or --name DOMAIN")
    if given.name is not None and not rest:
        parser.error("--name needs a command after --")
    return Request(
        domain=given.domain or given.name or "",
        prefix=given.name is not None,
        dry_run=given.dry_run,
        as_given=given.as_given,
        wait=given.wait,
        rest=tuple(rest),
    )


def note(text: str) -> None:
    """One line for the log of whoever starts us."""
    print(f"qemu-launch: {text}", file=sys.stderr)


@attrs.frozen
class Launch:
    """One start: from a request to a command."""

    request: Request
    paths: paths.Paths

    @property
    def _state(self) -> known.State:
        return known.State(store.Store(self.paths), note)

    def command(self) -> list[str]:
        """The command to execute, on the active layers, with our monitor; nothing is created.

        ``Refused`` when it could not be started without harm.
        """
        domain, state = self.request.domain, self._state
        disks = [] if self.request.as_given else state.disks(domain)
        if self.request.prefix:
            command, settled = list(self.request.rest), list[str]()
        else:
            command, settled = self._defined(disks)
        if disks:
            _refuse_unseen(command)
        found = images.find(command)
        swaps = prefix.choose(domain, found, disks, _identify(found), settled)
        for swap in swaps:
            note(f"{swap.known.target}: {swap.image.file} -> {swap.known.active.file}")
        command = prefix.rewrite(command, swaps)
        final = images.find(command)
        own = [disk.identity for disk in disks if disk.identity is not None]
        guard.check(final, _identify(final), state.graph(), own, note)
        return prefix.with_monitor(command, definition.checked(self.paths.monitor(domain)))

    def _defined(self, disks: Sequence[prefix.Known]) -> tuple[list[str], list[str]]:
        """The command of the definition, and the files of its disks."""
        domain = self.request.domain
        file = self.paths.definition_file(domain)
        defined = needs.definition(file, domain)
        if defined.monitor:
            raise errors.ConfigError(file=file, key="monitor", reason="says that somebody else starts it")
        layers = [self._layer(disk.target, disk.file, disk.format, disks) for disk in defined.disk]
        folder = self.paths.machine_dir(domain)
        sockets = definition.Sockets(folder)
        for path in (sockets.qmp, sockets.console, sockets.agent):
            definition.checked(path)
        accel, why = ("", "") if defined.accel else host.accelerator()
        if accel:
            note(f"accelerator {accel}" + (f" ({why})" if why else ""))
        chosen = definition.Host(_emulator(), accel, self._uuid())
        command = definition.command(defined, layers, folder, chosen)
        return [*command, *self.request.rest], [layer.file for layer in layers]

    def _layer(self, target: str, file: str, form: str, disks: Sequence[prefix.Known]) -> prefix.Layer:
        """What the disk starts on: its recorded active layer, or the definition's file while nothing is recorded."""
        disk = next((d for d in disks if d.target == target), None)
        if disk is None:
            return known.layer(file, form)
        prefix.layer_of(self.request.domain, disk)
        if not disk.includes(file, image_files.identity(file)):
            raise errors.ImageStrange(
                given=file, target=target, domain=self.request.domain, active=disk.active.file
            )
        if disk.active.file != file:
            note(f"{target}: {file} -> {disk.active.file}")
        return disk.active

    def _uuid(self) -> str:
        recorded = self._state.store.domain(self.request.domain)
        return recorded.uuid if recorded else host.machine_uuid(self.request.domain)


def _emulator() -> str:
    """The program of a defined machine; tests take another QEMU's by the environment."""
    return os.environ.get("QMPSNAP_QEMU") or "qemu-system-x86_64"


def _identify(found: Sequence[images.Image]) -> dict[str, model.Identity | None]:
    return {image.file: image_files.identity(image.file) for image in found}


def _refuse_unseen(command: Sequence[str]) -> None:
    """``DrivesUnseen`` for drives that are not on the command line itself."""
    for word in images.unseen(command):
        if word.name != "readconfig" or _has_drives(word.value):
            raise errors.DrivesUnseen(option=f"-{word.name} {word.value}")


def _has_drives(file: str) -> bool:
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            return re.search(r"^\s*\[(drive|blockdev)\b", text.read(), re.MULTILINE) is not None
    except OSError:
        return False  # QEMU will say the same


def execute(command: Sequence[str], inherited: int) -> NoReturn:
    """This process is the command; ``inherited`` stays open in it. Returns never, ``FileFailed`` when there is no such program."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.set_inheritable(inherited, True)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)  # Python ignores them, and exec would hand that on
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise errors.FileFailed(
            act="execute", file=command[0], reason=os.strerror(error.errno or 0)
        ) from error


def run(request: Request) -> int:
    """The machine runs in place of this process; returns only after a dry run."""
    names.check(request.domain, "domain")
    where = paths.find(os.environ, os.getuid())
    launch = Launch(request, where)
    way = gate.Gate(where, request.domain, time.monotonic() + request.wait)
    if request.dry_run:
        way.refuse_undecided()
        print(shlex.join(launch.command()))
        return 0
    definition.checked(where.monitor(request.domain))
    lock = way.enter()
    execute(launch.command(), lock)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 when the machine cannot be started, 2 for a command line that is none; else QEMU's own."""
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except errors.Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
