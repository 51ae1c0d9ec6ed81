"""What a verb works with: its options, the daemon, and the two ways to say something."""

from __future__ import annotations

import json
import sys

from qmpsnap.cli.client import Client, segment
from qmpsnap.cli.failure import Failure, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.client import Document
    from qmpsnap.cli.parser import Args

FORMATS = ("text", "json")
NO_CURRENT = "Domain snapshot not found: the domain does not have a current snapshot"


class Session:
    """One run of one verb."""

    __slots__ = ("args", "client", "json", "quiet")

    def __init__(self, args: Args, client: Client, *, quiet: bool, output: str | None) -> None:
        chosen = args.raw("output") or output or "text"
        if chosen not in FORMATS:
            raise Usage(f"unsupported output format '{chosen}': use text or json")
        self.args = args
        self.client = client
        self.json = chosen == "json"
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Write what was asked for."""
        if sys.stdout is not None:
            sys.stdout.write(text)

    def extra(self, text: str) -> None:
        """Write what only a person wants to read: nothing with --quiet or --output json."""
        if not self.quiet and not self.json:
            self.say(text)

    def show(self, document: Document) -> None:
        """Write an object of the API: sorted keys, ASCII only, a newline at the end."""
        self.say(json.dumps(document, sort_keys=True, indent=2) + "\n")

    def domain(self) -> str:
        """The path of the domain that the verb was called with."""
        name = self.args.need("domain")
        if "/" in name:
            # A router would see two segments; no domain has such a name.
            raise Failure(f"failed to get domain '{name}'")
        return f"/v1/domains/{segment(name)}"

    def snapshot(self, name: str) -> str:
        """The path of a snapshot of that domain."""
        if "/" in name:
            raise Failure(f"Domain snapshot not found: no domain snapshot with matching name '{name}'")
        return f"{self.domain()}/snapshots/{segment(name)}"


def complain(*lines: str) -> None:
    """Write each line behind ``error:`` to stderr, after what stdout has got."""
    from qmpsnap.cli.render import printable

    if sys.stdout is not None:
        sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.write("".join(f"error: {printable(line)}\n" for line in lines))
        sys.stderr.flush()
