"""Fixtures that every test may use, and the rule for what the host lacks."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests import requires
from tests.lab.guest import DEFAULT, Guest, Options
from tests.lab.qemu import Machine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "systemd: needs systemd as the service manager")
    config.addinivalue_line("markers", "fuse: mounts a file system of our own")
    requires.required()  # a typing error must not make everything skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail before any fixture starts something."""
    for name in requires.NEEDS:
        if item.get_closest_marker(name) is not None:
            requires.need(name)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for sockets (pytest's own is not), removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class StartMachine(Protocol):
    """Start one more machine: `Machine`'s arguments, but for the directory, which is made if not given."""

    def __call__(
        self,
        args: Sequence[str | Path] = (),
        *,
        directory: str | Path | None = None,
        machine_type: str = "q35",
        memory: int = 32,
        name: str | None = None,
        paused: bool = False,
        firmware: bool = True,
        monitor: bool = True,
        binary: str | None = None,
        prefix: Sequence[str | Path] = (),
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Machine: ...


@pytest.fixture
def machine(short_dir: Path) -> Iterator[StartMachine]:
    """Start machines; all are killed afterwards, by their pid."""
    with contextlib.ExitStack() as started:
        count = itertools.count()

        def start(
            args: Sequence[str | Path] = (), *, directory: str | Path | None = None, **keywords: Any
        ) -> Machine:
            return started.enter_context(
                Machine(directory or short_dir / f"m{next(count)}", args, **keywords)
            )

        yield start


class StartGuest(Protocol):
    """Start one more guest: `Guest.warm`'s or, when `cold`, `Guest.cold`'s arguments."""

    def __call__(
        self,
        options: Options = DEFAULT,
        *,
        cold: bool = False,
        disks: Sequence[str | Path] = (),
        directory: str | Path | None = None,
        prefix: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
    ) -> Guest: ...


@pytest.fixture
def guest(short_dir: Path) -> Iterator[StartGuest]:
    """Start real guests, resumed in half a second, or booted when `cold` or with `disks`; all are killed."""
    with contextlib.ExitStack() as started:
        count = itertools.count()

        def start(
            options: Options = DEFAULT,
            *,
            cold: bool = False,
            disks: Sequence[str | Path] = (),
            directory: str | Path | None = None,
            prefix: Sequence[str | Path] = (),
            env: Mapping[str, str] | None = None,
        ) -> Guest:
            where = directory or short_dir / f"g{next(count)}"
            if cold or disks:
                one = Guest.cold(where, options, disks=disks, prefix=prefix, env=env)
            else:
                one = Guest.warm(where, options, prefix=prefix, env=env)
            return started.enter_context(one)

        yield start


@pytest.fixture
def other_qemu() -> str:
    """The path of a second QEMU, of another version."""
    return requires.other_qemu()
