"""``wait``: follow an operation by its id, for example after the client that started it was lost."""

from __future__ import annotations

from qmpsnap.cli import progress, render
from qmpsnap.cli.client import segment
from qmpsnap.cli.failure import Failure
from qmpsnap.cli.follow import failure, follow, shown_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session

_LABELS = {"block-pull": "Block Pull"}


def wait(session: Session) -> None:
    """``wait OPERATION``: returns when it is done; fails with its error when it failed."""
    name = session.args.need("operation")
    if "/" in name:
        raise Failure(f"no operation with id '{name}'")
    operation = session.client.get(f"/v1/operations/{segment(name)}")
    label = render.printable(_LABELS.get(operation["verb"]) or operation["verb"])
    with progress.begin(label, verbose=session.args.given("verbose")) as display:
        show = shown_on(display)
        show(operation)
        final = follow(session.client, operation, show, to_the_end=True)
    if session.json:
        session.show(final)
    if final["state"] != "done":
        raise failure(final)
    # The line of the progress is still open.
    start = "\n" if session.args.given("verbose") else ""
    session.extra(f"{start}Operation {render.printable(name)} done")
