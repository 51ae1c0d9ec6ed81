"""`make demo`: the first session on a small real guest that writes all the while; each step shown, contents checked.

The guest is started by hand, as a user would have it: qmpsnap joins it by its monitor. At the end the guest is switched off and
started again by qemu-launch from the same command line, and must find its newest write.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab import guest, images
from tests.lab.daemon import Daemon

_BIN = Path(sys.executable).parent
_OPTIONS = guest.Options(disks=1)
_ROUNDS = 20


def main() -> None:
    """The whole demo; ends with status 1 and one line if anything is not as promised."""
    with tempfile.TemporaryDirectory(prefix="qmpsnap-demo-") as temp:
        folder = Path(temp)
        root = folder / "root"
        root.mkdir()
        with Daemon(root) as daemon:
            say("A small real guest boots; it writes numbered records, each flushed to its disk.")
            with guest.Guest.cold(folder, _OPTIONS) as machine:
                machine.writer_start()
                states = session(machine, daemon, folder)
                last = machine.writer_stop()
                machine.run("sync")
                command = machine.command
                machine.quit()
            say("The guest is off. What does each image hold, read from outside?")
            check_states(states, last)
            say("qemu-launch starts the old command line, which names the base, on the active layer.")
            boot_again(folder, daemon, command, last)
    say("All as promised.")


def say(text: str) -> None:
    """A headline between the steps."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(env: Mapping[str, str], *command: str | Path) -> None:
    """Shows a command as it would be typed, runs it, shows what it says; ends the demo if it fails."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    program = str(_BIN / words[0]) if (_BIN / words[0]).exists() else words[0]
    done = subprocess.run([program, *words[1:]], env=env, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        fail(f"{words[0]} ended with status {done.returncode}")


def fail(reason: str) -> None:
    """Ends the demo."""
    raise SystemExit(f"demo: {reason}")


def session(machine: guest.Guest, daemon: Daemon, folder: Path) -> list[Path]:
    """The article's session, while the guest writes. The images, base first: each but the last holds a snapshot's state."""
    env = daemon.env
    say("qmpsnapd joins the running QEMU by its monitor.")
    run(env, "qmpsnap", "attach", "daisy", machine.monitor_path)
    run(env, "qmpsnap", "list")
    run(env, "qmpsnap", "domblklist", "daisy", "--details")
    say("Three snapshots, while the guest goes on writing.")
    states = [folder / "disk0.qcow2"]
    for n in (1, 2, 3):
        machine.writer_reached(machine.writer_last() + _ROUNDS)
        states.append(folder / f"snap{n}-daisy.qcow2")
        create = ["snapshot-create-as", "daisy", f"snap{n}-daisy", f"snap{n} description"]
        run(env, "qmpsnap", *create, "--diskspec", f"vda,file={states[-1]}", "--disk-only", "--atomic")
    machine.writer_reached(machine.writer_last() + _ROUNDS)
    run(env, "qemu-img", "info", "-U", states[-1])
    run(env, "qmpsnap", "snapshot-list", "daisy", "--tree")
    say("The newest layer takes in the one below it: the chain gets shorter, no snapshot changes.")
    before = [images.content_digest(state) for state in states[:-1]]
    pull = ["blockpull", "--domain", "daisy", "--path", str(states[3]), "--base", str(states[1])]
    run(env, "qmpsnap", *pull, "--wait", "--verbose")
    run(env, "qmpsnap", "snapshot-list", "daisy", "--tree", "--chain")
    if [images.content_digest(state) for state in states[:-1]] != before:
        fail("a snapshot's content has changed")
    return states


def check_states(states: Sequence[Path], last: int) -> None:
    """Every image holds a whole run of records from the first on, longer than the one before; the newest holds the last."""
    found = [guest.offline(state).records for state in states]
    for state, records in zip(states, found, strict=True):
        print(
            f"{state.name}: records 1 to {records.last}, {'none' if records.whole else 'SOME'} missing or damaged"
        )
    ends = [records.last for records in found]
    if not all(records.whole for records in found) or ends != sorted(set(ends)) or ends[-1] != last:
        fail(f"contents are wrong: {ends}, and the guest's last record was {last}")


def boot_again(folder: Path, daemon: Daemon, command: Sequence[str], last: int) -> None:
    """The guest, started by qemu-launch with its first command line, sees its last record."""
    prefix = [str(_BIN / "qemu-launch"), "--name", "daisy", "--"]
    print(f"$ qemu-launch --name daisy -- {command[0]} …", flush=True)
    with guest.Guest.cold(folder, _OPTIONS, prefix=prefix, env=daemon.env) as machine:
        seen = machine.writer_check()[0]["last"]
        run(daemon.env, "qmpsnap", "domblklist", "daisy")
        machine.quit()
    print(f"The guest reads records up to {seen}; the last one it had written was {last}.")
    if seen != last:
        fail("the guest was started on the wrong layer")


if __name__ == "__main__":
    main()
