"""``check``: everything that is wrong with a domain, and taking it for right."""

from __future__ import annotations

from qmpsnap.cli import render
from qmpsnap.cli.client import Document, segment
from qmpsnap.cli.follow import change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session

#: The exit status when something is wrong: 1 is for a check that could not be made.
WRONG = 3

# `qemu-img check` reads all tables of every image: minutes for very large ones.
_PATIENCE = 3600.0


def check(session: Session) -> int:
    """``check [DOMAIN]``: exit status 0 when nothing is wrong, 3 when something is."""
    session.client.patience = _PATIENCE
    if session.args.given("accept"):
        return _accept(session)
    given = session.args.text("domain") is not None
    paths = [session.domain()] if given else _all(session)
    full = "" if session.args.given("quick") else "?full=true"
    answers = [session.client.get(f"{path}/check{full}") for path in paths]
    if session.json:
        session.show(Document(domains=answers))
    else:
        for answer in answers:
            session.say(_text(answer))
    wrong = any(one["severity"] != "notice" for answer in answers for one in answer["findings"])
    return WRONG if wrong else 0


def _all(session: Session) -> list[str]:
    names = [domain["name"] for domain in session.client.get("/v1/domains")["domains"]]
    return [f"/v1/domains/{segment(name)}" for name in sorted(names, key=render.sort_key)]


def _text(answer: Document) -> str:
    counts = ", ".join(_count(answer[what], what) for what in ("disks", "snapshots", "images"))
    bad = sum(one["severity"] != "notice" for one in answer["findings"])
    verdict = _count(bad, "problems") if bad else "nothing is wrong"
    lines = [f"{answer['domain']}: {verdict} ({counts})"]
    for one in answer["findings"]:
        lines.append(f"  {one['severity']}: {one['where']}: {one['problem']}")
        if one["advice"]:
            lines.append(f"    {one['advice']}")
    return "".join(render.printable(line) + "\n" for line in lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what.removesuffix('s') if number == 1 else what}"


def _accept(session: Session) -> int:
    """``check DOMAIN --accept``: what runs and what was written to is right, a person has looked."""
    session.args.need("domain")
    body: dict[str, object] = {"dry_run": session.args.given("dry-run")}
    operation = change(session.client, "POST", f"{session.domain()}/accept", body)
    if session.json:
        session.show(operation)
        return 0
    accepted = operation["result"]["accepted"]
    session.say("".join(f"accepted: {render.printable(one)}\n" for one in accepted) or "nothing to accept\n")
    return 0
