"""Verbs on block jobs: pull, and the job of a disk."""

from __future__ import annotations

import sys
import time

from qmpsnap.cli import progress, render
from qmpsnap.cli.client import Document, segment
from qmpsnap.cli.failure import Answered, DeadlinePassed, Failure, Lost, Unreachable
from qmpsnap.cli.follow import Unknown, failure, follow, shown_on
from qmpsnap.cli.interrupt import HeldInterrupts
from qmpsnap.cli.session import complain
from qmpsnap.cli.verbs import scaled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpsnap.cli.session import Session

PULL = "Block Pull"
INTERRUPTED = 130
# virsh's names for QEMU's job types; a commit that is ready is one of the active layer.
_JOB_NAMES = {"stream": PULL, "commit": "Block Commit", "mirror": "Block Copy", "backup": "Backup"}


def pull(session: Session) -> int:
    """``blockpull``: started in the background, or with --wait followed to its end."""
    args = session.args
    for option in ("verbose", "async"):
        if args.given(option) and not args.given("wait"):
            # virsh takes --timeout for --wait only after this check.
            raise Failure(f"Option --wait is required by option --{option}")
    body = _pull_request(session)
    timeout = scaled.seconds(args)
    target = f"{session.domain()}/pull"
    if not (args.given("wait") or timeout) or args.given("dry-run"):
        return _start(session, session.client.send("POST", target, body))
    with HeldInterrupts() as interrupts, progress.begin(PULL, verbose=args.given("verbose")) as display:
        operation = session.client.send("POST", target, body)
        final, aborted = _wait(session, operation, interrupts, display, timeout)
    return _report(session, final, aborted=aborted)


def _pull_request(session: Session) -> dict[str, object]:
    args = session.args
    path, base = args.need("path"), args.text("base")
    bandwidth = scaled.bandwidth(args)
    if args.given("keep-relative"):
        if base is None:
            raise Failure(
                "invalid argument: flag VIR_DOMAIN_BLOCK_REBASE_RELATIVE is valid only with non-null base"
            )
        raise Failure("Operation not supported: --keep-relative is not supported yet")
    return {"disk": path, "base": base, "bandwidth": bandwidth or 0, "dry_run": args.given("dry-run")}


def _start(session: Session, operation: Document) -> int:
    """Say that the pull runs; one that failed at once says so."""
    if operation["state"] == "failed":
        raise failure(operation)
    if session.json:
        session.show(operation)
    elif session.args.given("dry-run"):
        from qmpsnap.cli.verbs.snapshot_create import plan_text

        session.say(plan_text(operation))
    else:
        session.extra("Block Pull started")
    return 0


def _wait(
    session: Session,
    operation: Document,
    interrupts: HeldInterrupts,
    display: progress.Silent,
    timeout: int | None,
) -> tuple[Document, bool]:
    """The pull's last state, and whether we asked for its end."""
    show = shown_on(display)
    show(operation)
    deadline = time.monotonic() + timeout if timeout else None
    try:
        interrupts.release()
        return follow(session.client, operation, show, deadline=deadline), False
    except (KeyboardInterrupt, DeadlinePassed):
        return _abort(session, operation, show), True


def _abort(session: Session, operation: Document, show: Callable[[Document], None]) -> Document:
    """Abort the job, as virsh does on Ctrl-C and --timeout, and wait for its end unless --async.

    A pull that ends before the abort arrives has ended well or badly by itself.
    """
    try:
        _ask_for_abort(session, operation)
        if session.args.given("async"):
            return Document(operation, state="failed", error=None)
        return follow(session.client, operation, show)
    except (Unreachable, Lost) as e:
        raise Unknown(operation["id"], e.lines[-1]) from e
    except KeyboardInterrupt as e:
        raise Failure(f"not waiting for operation {operation['id']} any more", status=INTERRUPTED) from e


def _ask_for_abort(session: Session, operation: Document) -> None:
    disk = _disk_of(session, operation)
    if disk is None:
        return
    try:
        session.client.send("POST", f"{session.domain()}/disks/{segment(disk)}/job/abort")
    except Answered as e:
        if e.code != "no-job":
            raise


def _disk_of(session: Session, operation: Document) -> str | None:
    """The target of the disk that the operation's job works on, or None when it has no job any more."""
    disks = session.client.get(f"{session.domain()}/disks")["disks"]
    return next(
        (str(d["target"]) for d in disks if d["job"] and d["job"]["operation"] == operation["id"]), None
    )


def _report(session: Session, final: Document, *, aborted: bool) -> int:
    if session.json:
        session.show(final)
    if final["state"] == "done":
        session.extra("\nPull complete")
        return 0
    error = failure(final)
    if final["state"] == "recovering":
        raise error
    if aborted or (isinstance(error, Answered) and error.code == "job-aborted"):
        session.extra("\nPull aborted")
        return 1
    session.extra("\nPull failed")
    complain(*error.lines)
    return error.status


def job(session: Session) -> None:
    """``blockjob``: show a disk's job, set its speed, or abort it."""
    given = session.args.given
    for mode, other in [
        (a, b) for a in ("raw", "info", "bytes") for b in ("abort", "pivot", "async", "bandwidth")
    ]:
        if given(mode) and given(other) and (mode, other) != ("bytes", "bandwidth"):
            raise Failure(f"Options --{mode} and --{other} are mutually exclusive")
    path = session.args.need("path")
    if given("bandwidth"):
        _set_bandwidth(session, path)
    elif given("pivot"):
        raise Failure("Operation not supported: --pivot is not supported yet: a pull has nothing to pivot to")
    elif given("abort") or given("async"):
        _abort_job(session, path)
    else:
        _show_job(session, path)


def _set_bandwidth(session: Session, path: str) -> None:
    speed = scaled.bandwidth(session.args)
    answer = session.client.send("PUT", f"{_job_path(session, path)}/bandwidth", {"bandwidth": speed})
    if session.json:
        session.show(answer)


def _abort_job(session: Session, path: str) -> None:
    operation = session.client.send("POST", f"{_job_path(session, path)}/abort")
    # A job that somebody else started belongs to no operation of ours: there is nothing to follow.
    if "state" in operation and not session.args.given("async"):
        operation = follow(session.client, operation)
    if session.json:
        session.show(operation)


def _job_path(session: Session, path: str) -> str:
    target = path
    if "/" in path:
        disk = _find(session.client.get(f"{session.domain()}/disks")["disks"], path)
        target = str(disk["target"])
    return f"{session.domain()}/disks/{segment(target)}/job"


def _find(disks: list[Document], path: str) -> Document:
    disk = next((disk for disk in disks if path in (disk["target"], disk["source"])), None)
    if disk is None:
        raise Failure(f"invalid argument: disk '{path}' not found in domain")
    return disk


def _show_job(session: Session, path: str) -> None:
    found = _find(session.client.get(f"{session.domain()}/disks")["disks"], path)["job"]
    if session.json:
        session.show(Document(jobs=[found] if found else []))
    elif found:
        _show_raw(session, found) if session.args.given("raw") else _show_progress(session, found)
    else:
        if session.client.get(session.domain())["state"] == "shut off":
            raise Failure("Requested operation is not valid: domain is not running")
        session.extra(f"No current block job for {render.printable(path)}")


def job_name(job: Document) -> str:
    """virsh's name for a job."""
    name = _JOB_NAMES.get(job["type"], str(job["type"]))
    return f"Active {name}" if job["type"] == "commit" and job["ready"] else name


def _show_raw(session: Session, job: Document) -> None:
    speed = job["bandwidth"] if session.args.given("bytes") else job["bandwidth"] >> 20
    session.say(
        f" type={render.printable(job_name(job))}\n bandwidth={speed}\n cur={job['current']}\n end={job['total']}\n"
    )


def _show_progress(session: Session, job: Document) -> None:
    value = progress.percent(job["current"], job["total"], finished=bool(job["ready"]))
    if sys.stderr is not None:
        sys.stderr.write(progress.line(render.printable(job_name(job)), value))
        sys.stderr.flush()
    speed = job["bandwidth"]
    session.say(f"    Bandwidth limit: {speed} bytes/s ({render.size(speed)}/s)\n" if speed else "\n")
