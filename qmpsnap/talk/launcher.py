"""Asking qemu-launch. Blocking."""

from __future__ import annotations

import subprocess
import sys

from qmpsnap import errors

_PATIENCE = 60.0


def refusal(domain: str) -> str:
    """Why qemu-launch would not start the machine that is defined by this name; "" when it would. Nothing is started or created."""
    command = [sys.executable, "-m", "qemu_launch.main", "--dry-run", domain]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.ToolFailed(tool="qemu-launch", reason=str(error)) from error
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].removeprefix("error: ")
