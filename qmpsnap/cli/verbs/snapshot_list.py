"""``snapshot-list``: virsh's filters, columns and tree, and our --chain."""

from __future__ import annotations

from qmpsnap.cli import render
from qmpsnap.cli.client import Document
from qmpsnap.cli.failure import Failure
from qmpsnap.cli.session import NO_CURRENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session

_EXCLUSIVE = (
    ("tree", "name"),
    ("parent", "roots"),
    ("parent", "tree"),
    ("roots", "tree"),
    ("roots", "from"),
    ("roots", "current"),
    ("chain", "name"),
    ("chain", "parent"),
    ("chain", "roots"),
)


def list_snapshots(session: Session) -> None:
    """``snapshot-list``."""
    given = session.args.given
    _refuse_contradictions(session)
    answer = session.client.get(f"{session.domain()}/snapshots")
    start = _start(session, answer)
    chosen = choose(answer["snapshots"], session.args.given, start)
    drawn = given("tree") or given("chain")
    if session.json:
        disks = {"disks": session.client.get(f"{session.domain()}/disks")["disks"]} if given("chain") else {}
        session.show(Document(snapshots=chosen, current=answer["current"], **disks))
    elif drawn:
        tree = with_start(answer["snapshots"], chosen, start)
        session.say(render.tree(tree))
        if given("chain"):
            disks = session.client.get(f"{session.domain()}/disks")["disks"]
            order = [name for name, _ in in_tree_order(tree)]
            shown = {snapshot["name"]: snapshot for snapshot in answer["snapshots"]}
            session.say(chain_text([shown[name] for name in order], disks))
    elif given("name"):
        session.say("".join(render.printable(snapshot["name"]) + "\n" for snapshot in chosen))
    else:
        session.say(_table(session, chosen))


def _refuse_contradictions(session: Session) -> None:
    given = session.args.given
    for one, other in _EXCLUSIVE:
        if given(one) and given(other):
            raise Failure(f"Options --{one} and --{other} are mutually exclusive")
    session.args.text("from")
    if given("from") and given("current"):
        raise Failure("--from and --current are mutually exclusive")
    if given("descendants") and not (given("from") or given("current")):
        raise Failure("--descendants requires either --from or --current")
    for option in ("leaves", "no-leaves"):
        if given(option) and (given("tree") or given("chain")):
            raise Failure(f"--{option} and --{'tree' if given('tree') else 'chain'} are mutually exclusive")


def _start(session: Session, answer: Document) -> str | None:
    """The snapshot whose children are asked for."""
    start = session.args.text("from")
    if session.args.given("current"):
        start = answer["current"]
        if start is None:
            raise Failure(NO_CURRENT)
    if start is not None and all(snapshot["name"] != start for snapshot in answer["snapshots"]):
        raise Failure(f"Domain snapshot not found: no domain snapshot with matching name '{start}'")
    return start


def choose(snapshots: list[Document], given: Given, start: str | None) -> list[Document]:
    """The snapshots that pass every group of filters, in the order asked for; two filters of a group add up."""
    if start is not None:
        names = _below(snapshots, start, deep=given("descendants"))
        snapshots = [snapshot for snapshot in snapshots if snapshot["name"] in names]
    groups: list[dict[str, Test]] = [
        {"leaves": lambda s: s["children"] == 0, "no-leaves": lambda s: s["children"] > 0},
        {"metadata": lambda s: True, "no-metadata": lambda s: False},
        {
            "inactive": lambda s: s["state"] == "shutoff",
            "active": lambda s: s["state"] not in ("shutoff", "disk-snapshot"),
            "disk-only": lambda s: s["state"] == "disk-snapshot",
        },
        {
            "internal": lambda s: s["location"] == "internal",
            "external": lambda s: s["location"] == "external",
        },
        {"roots": lambda s: s["parent"] is None},
    ]
    for group in groups:
        tests = [test for option, test in group.items() if given(option)]
        if tests:
            snapshots = [snapshot for snapshot in snapshots if any(test(snapshot) for test in tests)]
    ordered = sorted(snapshots, key=lambda snapshot: render.sort_key(snapshot["name"]))
    return _parents_first(ordered) if given("topological") else ordered


def _below(snapshots: list[Document], start: str, *, deep: bool) -> set[str]:
    children: dict[str | None, list[str]] = {}
    for snapshot in snapshots:
        children.setdefault(snapshot["parent"], []).append(snapshot["name"])
    names: set[str] = set()
    todo = list(children.get(start, []))
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            todo += children.get(name, []) if deep else []
    return names


def _parents_first(ordered: list[Document]) -> list[Document]:
    by_name = {snapshot["name"]: snapshot for snapshot in ordered}
    pairs = [(s["name"], s["parent"] if s["parent"] in by_name else None) for s in ordered]
    return [by_name[name] for name, _ in in_tree_order(pairs)]


def in_tree_order(parents: Parents) -> Parents:
    """The pairs as a drawing of the tree lists them; what hangs on no root is left out, as there."""
    children: dict[str | None, list[str]] = {}
    for name, parent in parents:
        children.setdefault(parent, []).append(name)
    ordered: Parents = []
    stack: Parents = [(name, None) for name in reversed(children.get(None, []))]
    while stack:
        name, parent = stack.pop()
        ordered.append((name, parent))
        stack += [(child, name) for child in reversed(children.get(name, []))]
    return ordered


def with_start(snapshots: list[Document], chosen: list[Document], start: str | None) -> Parents:
    """(name, parent) pairs for a tree; with --from the start itself is the root."""
    pairs: Parents = [(snapshot["name"], snapshot["parent"]) for snapshot in chosen]
    if start is None:
        return pairs
    return [(start, None), *(pair for pair in pairs if pair[0] != start)]


def _table(session: Session, snapshots: list[Document]) -> str:
    header = ["Name", "Creation Time", "State"]
    rows = [[s["name"], render.moment(s["creation_time"]), s["state"]] for s in snapshots]
    if session.args.given("parent"):
        header.append("Parent")
        for row, snapshot in zip(rows, snapshots, strict=True):
            row.append(snapshot["parent"] or "")
    return render.table(header, rows, quiet=session.quiet)


def chain_text(snapshots: list[Document], disks: list[Document]) -> str:
    """Each disk's chain, base first, and for each snapshot which image holds its state and whether it is still there.

    The tree above it says what was taken after what; after a pull or a commit the chain differs from it.
    """
    chains = {disk["target"]: [layer["file"] for layer in reversed(disk["chain"])] for disk in disks}
    lines = [f"{target}: {' <- '.join(files)} (active)" for target, files in chains.items() if files]
    text = "".join(render.printable(line) + "\n" for line in lines)
    rows = [row for snapshot in snapshots for row in _chain_rows(snapshot, chains)]
    return text + ("\n" + render.table(("Name", "Disk", "Image", "In chain", "Revert"), rows) if rows else "")


def _chain_rows(snapshot: Document, chains: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """A row for each disk of the snapshot; name and verdict stand in the first."""
    verdict = (
        "yes" if snapshot["revertible"] else f"no: {snapshot['why_not']}" if snapshot["why_not"] else "no"
    )
    rows: list[tuple[str, ...]] = []
    for disk in snapshot["disks"] or [Document(target="-", image="-")]:
        there = "yes" if disk["image"] in chains.get(disk["target"], []) else "no"
        label = ("", "") if rows else (snapshot["name"], verdict)
        rows.append((label[0], disk["target"], disk["image"] or "-", there, label[1]))
    return rows


if TYPE_CHECKING:
    from collections.abc import Callable

    Given = Callable[[str], bool]
    Test = Callable[[Document], bool]
    Parents = list[tuple[str, str | None]]
