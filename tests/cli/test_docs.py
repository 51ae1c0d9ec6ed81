"""What the documents show is true: their sessions run, their examples parse, their tables are the code's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpsnap import config
from qmpsnap.model import jobs
from qmpsnap.server import openapi
from tests.conftest import StartMachine
from tests.lab import layouts
from tests.lab.daemon import Daemon
from tests.requires import requires_qemu

ROOT = Path(__file__).parent.parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def _steps(session: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block with what they print."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


@pytest.fixture
def server(short_dir: Path) -> Iterator[Daemon]:
    (short_dir / "root").mkdir()
    with Daemon(short_dir / "root") as daemon:
        yield daemon


def _plain(text: str) -> str:
    """Widths of tables depend on the paths in them; progress on the machine's speed."""
    text = re.sub(r"\r?Block Pull: \[ *\d+ %\]", "", text)
    return re.sub(r"-{5,}", "-----", re.sub(r"[ \t]+", " ", text)).strip()


@requires_qemu
def test_the_readme_session(server: Daemon, short_dir: Path) -> None:
    """Every command of the README does what is shown there."""
    folder = short_dir / "vm"
    folder.mkdir()
    env = {**server.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    steps = [step for block in _blocks(ROOT / "README.md", "console") for step in _steps(block)]
    with _killed(folder / "pid") as pidfile:
        for command, shown in steps:
            typed = command.replace("/srv/vm", str(folder)).replace(
                "-daemonize", f"-daemonize -pidfile {pidfile}"
            )
            done = subprocess.run(
                ["bash", "-c", typed],
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            printed = done.stdout.replace(str(folder), "/srv/vm").replace(
                f"{server.root}/run", "/run/qmpsnap"
            )

            assert _plain(printed) == _plain(shown), command


@contextlib.contextmanager
def _killed(pidfile: Path) -> Iterator[Path]:
    """Whatever process wrote its pid there ends with the test."""
    try:
        yield pidfile
    finally:
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), signal.SIGKILL)


@requires_qemu
def test_the_curl_examples(server: Daemon, machine: StartMachine, short_dir: Path) -> None:
    """The API's examples work as they stand, and answer JSON without an error."""
    setup = layouts.layout("drive-virtio").prepare(short_dir)
    started = machine(setup.args, **setup.keywords)
    assert server.cli("attach", "daisy", str(started.monitor_path)).status == 0
    lines = [
        line for block in _blocks(ROOT / "docs/control-protocol.md", "sh") for line in block.splitlines()
    ]
    assert lines
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], env=server.env, capture_output=True, text=True, check=False
        )
        assert "error" not in (json.loads(done.stdout) or {}) or json.loads(done.stdout)["error"] is None, (
            line
        )


def test_the_protocol_lists_every_call() -> None:
    """What the API serves is described, and what is described is served."""
    text = (ROOT / "docs/control-protocol.md").read_text()
    described = {(m.lower(), p) for m, p in re.findall(r"`(GET|POST|PUT|DELETE) (/v1/[^\s`?]*)", text)}

    assert described == {(method, path) for method, path, *_rest in openapi.OPERATIONS}


def test_definitions_and_settings_are_real() -> None:
    """The TOML that is shown is accepted."""
    for block in _blocks(ROOT / "docs/machines.md", "toml"):
        if "greeting_timeout" in block:
            assert config.settings(block, "q") == config.Settings()
        else:
            assert config.definition(block, "d", "daisy").name == "daisy"
        assert tomllib.loads(block)


def _drawn() -> str:
    rows = "\n".join(
        f"| {status} | {', '.join(sorted(after)) or 'nothing: the end'} |"
        for status, after in jobs.TABLE.items()
    )
    return f"""# States of a block job

Drawn from the table in `qmpsnap/model/jobs.py`. The words are QEMU's (QAPI, `JobStatus`); `vanished` is ours: a query no longer
shows the job. Events may be missed, so a status may be followed by any later one.

| status | may become |
|---|---|
{rows}
"""


def test_states_are_drawn_from_the_table() -> None:
    """docs/states.md is the table of the code."""
    path = ROOT / "docs/states.md"
    if os.environ.get("QMPSNAP_REGENERATE"):
        path.write_text(_drawn())

    assert path.read_text() == _drawn()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file of ours is a file."""
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
