"""A verb imports little: the start of the process is most of what the user waits for."""

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import ROOT, Serve
from tests.cli.world import World

FORBIDDEN = (
    "argparse", "asyncio", "attr", "attrs", "cattrs", "dataclasses", "email", "h11", "http", "inspect", "logging",
    "qemu", "rich", "ssl", "starlette", "structlog", "subprocess", "trio", "typing", "unicodedata", "urllib",
)  # fmt: skip

PROGRAM = """
import sys
before = set(sys.modules)
from qmpsnap.cli.main import main
status = main(sys.argv[1:])
print("imported:", *sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "words", [["list"], ["snapshot-list", "daisy", "--tree"], ["snapshot-list", "daisy", "--chain"]]
)
def test_a_verb_imports_nothing_heavy(words: list[str], serve: Serve) -> None:
    daemon = serve(World())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "-c", str(daemon.path), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = done.stderr.rpartition("imported: ")[2].split()
    assert "qmpsnap.cli.client" in imported
    assert [name for name in imported if name.split(".")[0] in FORBIDDEN] == []
    assert [
        name for name in imported if name.startswith("qmpsnap.") and not name.startswith("qmpsnap.cli")
    ] == []


def test_only_the_verb_that_runs_is_imported(serve: Serve) -> None:
    daemon = serve(World())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "-c", str(daemon.path), "list"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [name for name in done.stderr.split() if name.startswith("qmpsnap.cli.verbs.")]
    assert found == ["qmpsnap.cli.verbs.domain"]
