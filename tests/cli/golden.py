"""Sessions copied from the transcripts of virsh 9.0.0: what a command printed, byte for byte."""

import re
import shlex
from pathlib import Path

HERE = Path(__file__).with_name("golden")
_BLOCK = re.compile(r"^# virsh (?P<command>.*)\n(?P<text>(?:.|\n)*?)\[rc=(?P<status>\d+)\]\n", re.MULTILINE)


class Command:
    """One command of a session and what it did."""

    def __init__(self, command: str, text: str, status: int) -> None:
        self.words = shlex.split(command)
        self.status = status
        stdout, mark, stderr = text.partition("[stderr] ")
        self.stdout = stdout
        self.stderr = mark and stderr.replace("[stderr] ", "")
        self.id = command


def session(name: str) -> list[Command]:
    """The commands of ``golden/NAME.txt`` in their order."""
    found = [Command(m["command"], m["text"], int(m["status"])) for m in _BLOCK.finditer(text(name))]
    assert found, f"golden/{name}.txt has no command"
    return found


def text(name: str) -> str:
    with (HERE / f"{name}.txt").open(newline="", encoding="utf-8") as file:
        return file.read()
