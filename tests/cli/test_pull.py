"""``blockpull`` and ``wait``: followed to the end, through Ctrl-C, time-outs and restarts of the daemon."""

import itertools
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpsnap.cli import follow
from qmpsnap.cli.client import Client, Document
from qmpsnap.cli.failure import DeadlinePassed
from tests.cli import golden, peer, world
from tests.cli.conftest import Result, Run, Serve, Spawn
from tests.cli.peer import Answer, Hangup, Json, Peer, Request, error_object, event
from tests.cli.world import World

PULL = "POST /v1/domains/daisy/pull"
EVENTS = "GET /v1/operations/op1/events"
LOOK = "GET /v1/operations/op1"
ABORT = "POST /v1/domains/daisy/disks/vda/job/abort"
ABORTED = world.operation("failed", error=error_object("block job of disk vda was aborted", "job-aborted"))


class Pull(World):
    """A daemon that pulls: each stream of events is the next of ``streams``, the last one again and again."""

    def __init__(self, *streams: Answer | Hangup) -> None:
        super().__init__(disks=[world.disk("/i/s3.qcow2", job=world.job())])
        self.answers: dict[str, Answer | Hangup] = {
            PULL: Answer(world.operation(), 202),
            LOOK: Answer(world.operation()),
            ABORT: Answer(world.operation(), 202),
        }
        self._streams = itertools.chain(streams, itertools.repeat(streams[-1]) if streams else ())

    def __call__(self, request: Request) -> Answer | Hangup:  # type: ignore[override]  # a world never hangs up
        if request.line == EVENTS:
            return next(self._streams)
        return self.answers.get(request.line) or super().__call__(request)


def states(*operations: Json) -> Answer:
    return Answer(pieces=[event(one) for one in operations])


def test_pull_with_progress(run: Run, serve: Serve) -> None:
    """The words of the blog, and virsh's bytes on both streams."""
    [command] = [c for c in golden.session("pulled") if c.words[0] == "blockpull"]
    daemon = serve(Pull(states(world.operation(current=4, total=100), world.operation("done", 100, 100))))
    status, out, err = run(*command.words)
    assert (status, out) == (command.status, command.stdout)
    assert err == "\rBlock Pull: [  0 %]" + command.stderr
    assert daemon.requests[0].body == {
        "disk": "/export/vmimgs/snap3-daisy.qcow2",
        "base": "/export/vmimgs/snap1-daisy.qcow2",
        "bandwidth": 0,
        "dry_run": False,
    }


def test_pull_in_the_background(run: Run, serve: Serve) -> None:
    daemon = serve(Pull())
    assert run("blockpull", "daisy", "vda", "--bandwidth", "5") == (0, "Block Pull started\n", "")
    assert daemon.lines() == [PULL]
    assert daemon.requests[0].body == {"disk": "vda", "base": None, "bandwidth": 5 << 20, "dry_run": False}


@pytest.mark.parametrize(
    ("words", "speed"), [("5k --bytes", 5120), ("2G", 2 << 30), ("7 --bytes", 7), ("0", 0)]
)
def test_bandwidth(words: str, speed: int, run: Run, serve: Serve) -> None:
    daemon = serve(Pull())
    run("blockpull", "daisy", "vda", "--bandwidth", *words.split())
    assert daemon.requests[0].body is not None
    assert daemon.requests[0].body["bandwidth"] == speed


def test_a_plan_only(run: Run, serve: Serve) -> None:
    handler = Pull()
    steps = [f"step {n}" for n in range(1, 11)]
    handler.answers[PULL] = Answer(world.operation("done", plan={"steps": steps}))
    serve(handler)
    expected = "".join(f"{n:2}. step {n}\n" for n in range(1, 11)) + "\n"
    assert run("blockpull", "daisy", "vda", "--wait", "--dry-run") == (0, expected, "")


def test_a_pull_that_is_done_at_once(run: Run, serve: Serve) -> None:
    """Nothing to pull: the answer is the end already, and nothing is followed."""
    handler = Pull()
    handler.answers[PULL] = Answer(world.operation("done"))
    daemon = serve(handler)
    result = run("blockpull", "daisy", "vda", "--wait", "--verbose")
    assert result == (0, "\nPull complete\n", "\rBlock Pull: [100 %]")
    assert daemon.lines() == [PULL]


def test_a_pull_that_fails(run: Run, serve: Serve) -> None:
    """virsh says ``Pull failed``; we say why, too."""
    reason = error_object(
        "block job of disk vda failed: No space left on device", "job-failed", "command-failed"
    )
    serve(Pull(states(world.operation(current=50, total=100), world.operation("failed", error=reason))))
    assert run("blockpull", "daisy", "vda", "--wait") == (
        1,
        "\nPull failed\n",
        "error: block job of disk vda failed: No space left on device\n",
    )


def test_a_pull_that_somebody_else_aborts(run: Run, serve: Serve) -> None:
    serve(Pull(states(ABORTED)))
    assert run("blockpull", "daisy", "vda", "--wait") == (1, "\nPull aborted\n", "")


def test_a_pull_as_json(run: Run, serve: Serve) -> None:
    """The last state of the operation, and nothing else."""
    serve(Pull(states(world.operation("done", 7, 7))))
    status, out, err = run("--output", "json", "blockpull", "daisy", "vda", "--wait")
    assert (status, err) == (0, "")
    assert out.startswith('{\n  "domain": "daisy",\n  "error": null,\n')
    assert out.endswith('"verb": "block-pull"\n}\n')


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends the streams that are held open, at the latest with the test."""
    event = threading.Event()
    yield event
    event.set()


def held(release: threading.Event, *first: Json, last: Json | None = None) -> Answer:
    """A stream that stays open until the test, or the abort, releases it."""

    def pieces() -> Iterator[bytes]:
        for one in first:
            yield event(one)
        assert release.wait(20), "never released"
        if last is not None:
            yield event(last)

    return Answer(pieces=pieces())


class Abortable(Pull):
    """The abort lets the second stream end; ``final`` is the last state."""

    def __init__(self, final: Json) -> None:
        self.release = threading.Event()
        running = world.operation(current=10, total=100)
        super().__init__(held(self.release, running), held(self.release, running, last=final))

    def __call__(self, request: Request) -> Answer | Hangup:  # type: ignore[override]  # as above
        if request.line == ABORT:
            self.release.set()
        return super().__call__(request)


def test_timeout(run: Run, serve: Serve) -> None:
    """``--timeout`` waits, aborts the job and says so as virsh does."""
    daemon = serve(Abortable(ABORTED))
    result = run("blockpull", "daisy", "vda", "--timeout", "1")
    assert result == (1, "\nPull aborted\n", "")
    assert ABORT in daemon.lines()


def test_timeout_with_async(run: Run, serve: Serve) -> None:
    """``--async`` does not wait for the job's end."""
    daemon = serve(Abortable(ABORTED))
    result = run("blockpull", "daisy", "vda", "--wait", "--timeout", "1", "--async")
    assert result == (1, "\nPull aborted\n", "")
    assert daemon.lines()[-1] == ABORT


def test_a_pull_that_ends_before_the_abort(run: Run, serve: Serve) -> None:
    """Whoever was faster wins: a pull that is complete is complete."""
    handler = Abortable(world.operation("done", 100, 100))
    handler.answers[ABORT] = peer.error("disk vda does not have an active block job", "no-job")
    serve(handler)
    assert run("blockpull", "daisy", "vda", "--timeout", "1") == (0, "\nPull complete\n", "")


def test_a_job_that_is_gone_is_not_aborted(run: Run, serve: Serve, release: threading.Event) -> None:
    """Another pull may run on the disk by now: only the job of our operation is aborted."""
    handler = Pull(held(release, world.operation()), states(world.operation("done")))
    handler.disks[0]["job"] = world.job(operation="another")
    daemon = serve(handler)
    assert run("blockpull", "daisy", "vda", "--timeout", "1") == (0, "\nPull complete\n", "")
    assert ABORT not in daemon.lines()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read stderr until the text has come."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        char = process.stderr.read(1)
        assert char, f"ended after {seen!r}"
        seen += char
    return seen


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=20)
    return Result(process.returncode, out, err)


def test_interrupt(spawn: Spawn, serve: Serve) -> None:
    """Ctrl-C aborts the job, not only the client."""
    daemon = serve(Abortable(ABORTED))
    process = spawn("blockpull", "daisy", "vda", "--wait", "--verbose")
    wait_for(process, "[ 10 %]")
    process.send_signal(signal.SIGINT)
    assert ended(process) == (1, "\nPull aborted\n", "")
    assert ABORT in daemon.lines()


def test_interrupt_before_the_answer(spawn: Spawn, serve: Serve) -> None:
    """A pull whose id we do not know yet is not lost: the interrupt is held until the answer."""
    handler = Abortable(ABORTED)
    asked, go = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer | Hangup:
        if request.line == PULL:
            asked.set()
            assert go.wait(20)
        return handler(request)

    daemon = serve(slow)
    process = spawn("blockpull", "daisy", "vda", "--wait")
    assert asked.wait(20)
    process.send_signal(signal.SIGINT)
    go.set()
    assert ended(process) == (1, "\nPull aborted\n", "")
    assert daemon.lines()[0] == PULL
    assert ABORT in daemon.lines()


def test_second_interrupt(spawn: Spawn, serve: Serve, release: threading.Event) -> None:
    """The first Ctrl-C aborts, the second one stops waiting for that."""
    waits = threading.Event()
    running = world.operation(current=10, total=100)
    handler = Pull(held(release, running), held(release, running))
    streams = itertools.count()

    def watch(request: Request) -> Answer | Hangup:
        if request.line == EVENTS and next(streams) == 1:
            waits.set()
        return handler(request)

    serve(watch)
    process = spawn("blockpull", "daisy", "vda", "--wait", "--verbose")
    wait_for(process, "[ 10 %]")
    process.send_signal(signal.SIGINT)
    assert waits.wait(20)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "\n", "error: not waiting for operation op1 any more\n")


def test_the_daemon_is_restarted_while_we_wait(run: Run, socket_path: Path) -> None:
    """A stream that breaks is taken up again by the operation's id, with a new daemon at the same place."""
    gone, back = threading.Event(), threading.Event()

    def break_off() -> Iterator[bytes]:
        yield event(world.operation(current=10, total=100))
        gone.set()
        raise BrokenPipeError  # the connection ends without the last chunk

    first = Pull(Answer(pieces=break_off()))
    first.answers[LOOK] = Hangup()
    second = Pull(states(world.operation("recovering", 10, 100), world.operation("done", 100, 100)))

    def restart() -> None:
        with Peer(socket_path, first) as old:
            started.set()
            assert gone.wait(20)
            assert old.lines()[:2] == [PULL, EVENTS]
        with Peer(socket_path, second) as new:
            assert back.wait(20)
            assert EVENTS in new.lines()

    started = threading.Event()
    daemon = threading.Thread(target=restart)
    daemon.start()
    assert started.wait(20)
    result = run("blockpull", "daisy", "vda", "--wait", "--verbose")
    back.set()
    daemon.join(20)
    seen = ("  0", " 10", "100")
    assert result == (0, "\nPull complete\n", "".join(f"\rBlock Pull: [{value} %]" for value in seen))


def test_a_stream_that_ends_early_is_checked(run: Run, serve: Serve) -> None:
    """An operation that ended before we came has no events left: it is asked for."""
    handler = Pull(states())
    handler.answers[LOOK] = Answer(world.operation("done"))
    serve(handler)
    assert run("blockpull", "daisy", "vda", "--wait") == (0, "\nPull complete\n", "")


def test_an_operation_that_the_daemon_forgot(run: Run, serve: Serve) -> None:
    """Exit status 2, and what to look at."""
    serve(Pull(peer.error("no operation with id 'op1'", "no-operation", 404)))
    status, out, err = run("blockpull", "daisy", "vda", "--wait")
    assert (status, out) == (2, "\n")
    assert err == (
        "error: no operation with id 'op1'\n"
        "error: the outcome of operation op1 is unknown; to look at the chains: qmpsnap snapshot-list --chain\n"
    )


def test_a_daemon_that_does_not_come_back(socket_path: Path) -> None:
    """After a while we say that the outcome is unknown, and how to look again: exit status 2."""
    seen: list[Document] = []
    operation = Document(world.operation())
    with pytest.raises(follow.Unknown) as caught:
        follow.follow(Client(str(socket_path)), operation, seen.append, patience=0.25)
    assert seen == []
    assert caught.value.status == 2
    assert "No such file or directory" in caught.value.lines[0]
    assert caught.value.lines[1].endswith("to look again: qmpsnap wait op1")


def test_a_busy_daemon_is_asked_again(serve: Serve, socket_path: Path) -> None:
    """An error that says nothing about the operation is no end of it."""
    serve(
        Pull(
            peer.error("too many connections", "too-many-connections", 423, "busy"),
            states(world.operation("done")),
        )
    )
    final = follow.follow(Client(str(socket_path)), Document(world.operation()))
    assert final["state"] == "done"


def test_a_deadline_while_the_daemon_is_away(socket_path: Path) -> None:
    with pytest.raises(DeadlinePassed):
        follow.follow(Client(str(socket_path)), Document(world.operation()), deadline=0.0)


def test_timeout_while_the_daemon_is_away(run: Run, socket_path: Path) -> None:
    """The job cannot be aborted: the outcome is unknown, not ``aborted``."""
    handler = Pull(Hangup())
    leave = threading.Event()

    def answer(request: Request) -> Answer | Hangup:
        if request.line == EVENTS:
            leave.set()
        return handler(request)

    def daemon() -> None:
        with Peer(socket_path, answer):
            started.set()
            assert leave.wait(20)

    started = threading.Event()
    thread = threading.Thread(target=daemon)
    thread.start()
    assert started.wait(20)
    status, out, err = run("blockpull", "daisy", "vda", "--timeout", "1")
    thread.join(20)
    assert (status, out) == (2, "\n")
    assert err.endswith("to look again: qmpsnap wait op1\n")


def test_wait_for_an_operation(run: Run, serve: Serve) -> None:
    """``wait ID`` takes up what another client began."""
    serve(Pull(states(world.operation(current=55, total=100), world.operation("done", 100, 100))))
    seen = ("  0", " 55", "100")
    expected = "".join(f"\rBlock Pull: [{value} %]" for value in seen)
    assert run("wait", "op1", "--verbose") == (0, "\nOperation op1 done\n", expected)


def test_wait_for_an_operation_that_fails(run: Run, serve: Serve) -> None:
    """The error and the exit status are the operation's."""
    failed = world.operation("failed", error=error_object("cannot undo", "incomplete", "incomplete", 3))
    serve(Pull(states(failed)))
    assert run("wait", "op1") == (3, "\n", "error: cannot undo\n")


RECOVERING = world.operation("recovering", error=error_object("QEMU is gone", "incomplete", "incomplete", 3))


@pytest.mark.parametrize("words", ["blockpull daisy vda --wait", "snapshot-current daisy s1"])
def test_what_is_left_to_recovery_is_told(words: str, run: Run, serve: Serve) -> None:
    """Recovery may wait for QEMU: the client says so and how to wait for it, instead of hanging."""
    handler = Pull(states(world.operation(), RECOVERING))
    handler.otherwise = Answer(world.operation(), 202)
    serve(handler)
    expected = "error: QEMU is gone\nerror: operation op1 goes on in the daemon: qmpsnap wait op1\n"
    assert run(*words.split()) == (3, "\n", expected)


def test_wait_waits_for_recovery(run: Run, serve: Serve) -> None:
    """Who waits for an operation by its id wants its end."""
    handler = Pull(states(RECOVERING, world.operation("done")))
    handler.answers[LOOK] = Answer(RECOVERING)
    daemon = serve(handler)
    assert run("wait", "op1") == (0, "Operation op1 done\n", "")
    assert daemon.lines() == [LOOK, EVENTS]


def test_abort_a_job_of_somebody_else(run: Run, serve: Serve) -> None:
    """A job that no operation of ours started is aborted, and there is nothing to wait for."""
    handler = Pull()
    handler.answers[ABORT] = Answer({"aborted": "vda"}, 202)
    serve(handler)
    assert run("blockjob", "daisy", "vda", "--abort") == (0, "\n", "")


def test_wait_for_nothing(run: Run, serve: Serve) -> None:
    handler = Pull()
    handler.answers[LOOK] = peer.error("no operation with id 'op1'", "no-operation", 404)
    serve(handler)
    assert run("wait", "op1") == (1, "\n", "error: no operation with id 'op1'\n")
    assert run("wait", "a/b") == (1, "\n", "error: no operation with id 'a/b'\n")


def test_interrupted_wait_leaves_the_operation_alone(
    spawn: Spawn, serve: Serve, release: threading.Event
) -> None:
    daemon = serve(Pull(held(release, world.operation(current=10, total=100))))
    process = spawn("wait", "op1", "--verbose")
    wait_for(process, "[ 10 %]")
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "")
    assert daemon.lines() == [LOOK, EVENTS]
