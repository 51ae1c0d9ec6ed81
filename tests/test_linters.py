"""Format, lint and types are part of the tests: what they say is a failure like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy", "qmpsnap", "qemu-launch/qemu_launch", "tests"],
    ],
    ids=["format", "lint", "types"],
)
def test_clean(command: list[str]) -> None:
    """The tool has nothing to say."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
