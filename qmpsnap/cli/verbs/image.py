"""Verbs on images that nobody needs, and on those that were removed."""

from __future__ import annotations

import os

from qmpsnap.cli import render
from qmpsnap.cli.client import Document, answered, segment
from qmpsnap.cli.failure import Answered, Failure
from qmpsnap.cli.session import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session


def orphans(session: Session) -> int:
    """``orphans [--remove [FILE]...]``; exit status 1 when some of them could not be moved."""
    files = [os.path.abspath(file) for file in session.args.every("file")]
    if session.args.given("remove"):
        return _remove(session, files)
    if files:
        raise Failure("--file needs --remove")
    answer = session.client.get("/v1/orphans")
    if session.json:
        session.show(answer)
        return 0
    header = ("File", "Domain", "Size", "Why")
    rows = [
        (one["file"], one["domain"] or "-", render.size(one["allocation"]), "; ".join(one["proof"]))
        for one in answer["orphans"]
    ]
    session.say(render.table(header, rows, quiet=session.quiet))
    for reason in answer["unknown"]:
        session.extra(f"\nNothing can be removed: {render.printable(reason)}\n")
    return 0


def _remove(session: Session, files: list[str]) -> int:
    answer = session.client.send("POST", "/v1/orphans/remove", {"files": files})
    if session.json:
        session.show(answer)
    for one in answer["trashed"]:
        file, ident = render.printable(one["file"]), render.printable(one["id"])
        session.extra(f"'{file}' moved to the trash as {ident} until {render.moment(one['until'])}\n")
    if not answer["trashed"]:
        session.extra("No orphans that were ours\n")
    return _complain([answered(error) for error in answer["kept"]])


def trash(session: Session) -> int:
    """``trash [--restore ID] [--empty [ID]...]``; exit status 1 when some were kept."""
    given, idents = session.args.given, session.args.every("id")
    if given("restore") and given("empty"):
        raise Failure("Options --restore and --empty are mutually exclusive")
    if idents and not given("empty"):
        raise Failure("--id needs --empty")
    if given("restore"):
        return _restore(session, session.args.need("restore"))
    if given("empty"):
        return _empty(session, idents)
    answer = session.client.get("/v1/trash")
    if session.json:
        session.show(answer)
        return 0
    header = ("Id", "File", "Size", "Until")
    rows = [
        (one["id"] or "-", one["file"] or one["moved"], render.size(one["allocation"]), _until(one))
        for one in answer["trash"]
    ]
    session.say(render.table(header, rows, quiet=session.quiet))
    for problem in answer["problems"]:
        session.extra(f"\n{render.printable(problem)}\n")
    return 0


def _until(one: Document) -> str:
    return str(one["problem"]) or render.moment(one["until"])


def _restore(session: Session, ident: str) -> int:
    one = session.client.send("POST", f"{_path(ident)}/restore")
    if session.json:
        session.show(one)
    session.extra(f"'{render.printable(one['file'])}' restored\n")
    return 0


def _empty(session: Session, idents: list[str]) -> int:
    if idents:
        deleted, failures = _delete(session, [_path(ident) for ident in idents], idents)
    else:
        answer = session.client.send("DELETE", "/v1/trash")
        deleted, failures = answer["deleted"], [answered(error) for error in answer["kept"]]
    if session.json:
        session.show(Document(deleted=deleted))
    for ident in deleted:
        session.extra(f"{render.printable(ident)} deleted\n")
    return _complain(failures)


def _delete(session: Session, paths: list[str], idents: list[str]) -> tuple[list[str], list[Answered]]:
    """Each one by itself; what was deleted, and why the rest was not."""
    deleted, failures = [], []
    for path, ident in zip(paths, idents, strict=True):
        try:
            session.client.send("DELETE", path)
            deleted.append(ident)
        except Answered as e:
            failures.append(e)
    return deleted, failures


def _path(ident: str) -> str:
    if "/" in ident:
        raise Failure(f"no image with id '{ident}' in the trash")
    return f"/v1/trash/{segment(ident)}"


def _complain(failures: list[Answered]) -> int:
    """Says why some were not done; the exit status for it."""
    complain(*(line for one in failures for line in one.lines))
    return max((one.status for one in failures), default=0)
