"""Verbs on one snapshot."""

from __future__ import annotations

from qmpsnap.cli import render
from qmpsnap.cli.client import Document
from qmpsnap.cli.failure import Answered, Failure
from qmpsnap.cli.follow import change
from qmpsnap.cli.session import NO_CURRENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session


def chosen_name(session: Session) -> str:
    """The snapshot that --snapshotname or --current means; raises Failure as virsh when none or both are given."""
    name = session.args.text("snapshotname")
    by_current = session.args.given("current")
    if name is not None and by_current:
        raise Failure("--snapshotname and --current are mutually exclusive")
    if name is not None:
        return name
    if not by_current:
        raise Failure("--snapshotname or --current is required")
    current = session.client.get(f"{session.domain()}/snapshots")["current"]
    if current is None:
        raise Failure(NO_CURRENT)
    return str(current)


def info(session: Session) -> None:
    """``snapshot-info``."""
    snapshot = session.client.get(session.snapshot(chosen_name(session)))
    if session.json:
        session.show(snapshot)
        return
    session.say(
        render.fields(
            [
                ("Name", snapshot["name"]),
                ("Domain", session.args.need("domain")),
                ("Current", _yes(snapshot["current"])),
                ("State", snapshot["state"]),
                ("Location", snapshot["location"]),
                ("Parent", snapshot["parent"] or "-"),
                ("Children", str(snapshot["children"])),
                ("Descendants", str(snapshot["descendants"])),
                ("Metadata", "yes"),
            ]
        )
    )


def _yes(value: object) -> str:
    return "yes" if value else "no"


def parent(session: Session) -> None:
    """``snapshot-parent``: with --output json the parent itself."""
    name = chosen_name(session)
    above = session.client.get(session.snapshot(name))["parent"]
    if above is None:
        raise Failure(f"snapshot '{name}' has no parent")
    if session.json:
        session.show(session.client.get(session.snapshot(above)))
        return
    session.say(render.printable(above))


def current(session: Session) -> None:
    """``snapshot-current``: show it, or make another one current."""
    name = session.args.text("snapshotname")
    if name is not None and session.args.given("name"):
        raise Failure("Options --name and --snapshotname are mutually exclusive")
    if name is not None:
        _make_current(session, name)
        return
    found = session.client.get(f"{session.domain()}/snapshots")["current"]
    if found is None:
        raise Failure(f"domain '{session.args.need('domain')}' has no current snapshot")
    if session.json:
        session.show(session.client.get(session.snapshot(found)))
    elif session.args.given("name"):
        session.say(render.printable(found))
    else:
        _say_xml(session, found)


def _make_current(session: Session, name: str) -> None:
    operation = change(session.client, "PUT", f"{session.domain()}/current", {"name": name})
    if session.json:
        session.show(operation)
    session.extra(f"Snapshot {render.printable(name)} set as current")


def dumpxml(session: Session) -> None:
    """``snapshot-dumpxml``: libvirt's document."""
    _say_xml(session, session.args.need("snapshotname"))


def _say_xml(session: Session, name: str) -> None:
    document = render.safe_xml(session.client.text(f"{session.snapshot(name)}/xml"))
    session.say(document.rstrip("\n") + "\n")


def delete(session: Session) -> None:
    """``snapshot-delete --metadata``: the snapshot is forgotten, no image changes."""
    name = chosen_name(session)
    only, children = session.args.given("children-only"), session.args.given("children")
    if not session.args.given("metadata"):
        raise Failure(
            f"Failed to delete snapshot {name}",
            "Operation not supported: deleting a snapshot's data is not supported yet: "
            "use --metadata to forget the snapshot and keep its images",
        )
    what = "&children_only=true" if only else "&children=true" if children else ""
    target = f"{session.snapshot(name)}?metadata=true{what}"
    operation = _deleted(session, name, target)
    if session.json:
        session.show(operation)
    session.extra(f"Domain snapshot {render.printable(name)} {'children ' if only else ''}deleted\n")


def _deleted(session: Session, name: str, target: str) -> Document:
    try:
        return change(session.client, "DELETE", target)
    except Answered as e:
        if e.code in ("no-domain", "no-snapshot"):
            raise
        raise Failure(f"Failed to delete snapshot {name}", *e.lines, status=e.status) from e
