"""Run the client in this process or in one of its own, against a peer on a real socket."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from qmpsnap.cli.main import main
from tests.cli.peer import Handler, Peer

ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


class Run(Protocol):
    def __call__(self, *words: str) -> Result: ...


class Serve(Protocol):
    def __call__(self, handler: Handler) -> Peer: ...


class Spawn(Protocol):
    def __call__(self, *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]: ...


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The transcripts were made in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def socket_path(short_dir: Path) -> Path:
    return short_dir / "qmpsnap.sock"


@pytest.fixture
def serve(socket_path: Path) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:
        yield lambda handler: stack.enter_context(Peer(socket_path, handler))


@pytest.fixture
def run(socket_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> Result:
        status = main(["-c", str(socket_path), *words])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def spawn(socket_path: Path) -> Iterator[Spawn]:
    """Start the client as a process; those that still run at the end are killed."""
    with contextlib.ExitStack() as stack:

        def spawn(*words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "qmpsnap.cli.main", "-c", str(socket_path), *words],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=stdout,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn
