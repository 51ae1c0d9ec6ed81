"""What the verbs ask of the daemon, and what they say: our own ones, and what virsh's transcripts leave open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import golden, peer, world
from tests.cli.conftest import ROOT, Run, Serve, Spawn
from tests.cli.peer import Answer, Hangup, Json, Request
from tests.cli.world import World

DONE = world.operation("done")
CREATE = "POST /v1/domains/daisy/snapshots"


def creating(**result: object) -> World:
    handler = World()
    handler.otherwise = Answer(world.operation("done", result=result), 202)
    return handler


def test_create(run: Run, serve: Serve) -> None:
    """Every option that the API knows arrives there; --atomic and --validate are always true."""
    daemon = serve(creating(name="s1"))
    words = [
        "daisy",
        "s1",
        "why",
        "--disk-only",
        "--atomic",
        "--validate",
        "--no-metadata",
        "--reuse-external",
    ]
    words += [
        "--diskspec",
        "vda,snapshot=external,driver=qcow2,stype=file,file=/a,,b",
        "--diskspec",
        "vdb,snapshot=no",
    ]
    assert run("snapshot-create-as", *words, "vdc") == (0, "Domain snapshot s1 created\n", "")
    [request] = daemon.requests
    assert request.line == CREATE
    assert request.body == {
        "name": "s1",
        "description": "why",
        "disks": [
            {"target": "vda", "snapshot": "external", "file": "/a,b", "driver": "qcow2"},
            {"target": "vdb", "snapshot": "no"},
            {"target": "vdc"},
        ],
        "reuse_external": True,
        "no_metadata": True,
        "dry_run": False,
    }


def test_create_without_a_name(run: Run, serve: Serve) -> None:
    """The daemon chooses the name; the answer says which."""
    daemon = serve(creating(name="1795446929"))
    assert run("snapshot-create-as", "daisy", "--disk-only") == (
        0,
        "Domain snapshot 1795446929 created\n",
        "",
    )
    assert daemon.requests[0].body is not None
    assert "name" not in daemon.requests[0].body


def test_create_in_two_steps(run: Run, serve: Serve) -> None:
    """An answer of 202 is followed to its end."""
    handler = World()
    handler.otherwise = Answer(world.operation(), 202)
    last = world.operation("done", result={"name": "s1"})

    def answer(request: Request) -> Answer:
        if request.target.endswith("/events"):
            return Answer(pieces=[peer.event(world.operation()), peer.event(last)])
        return handler(request)

    serve(answer)
    assert run("-q", "snapshot-create-as", "daisy", "s1", "--disk-only") == (0, "", "")


def test_create_that_fails_later(run: Run, serve: Serve) -> None:
    handler = World()
    broken = peer.error_object(
        "operation failed: failed to format image: 'No space left on device'", "command-failed"
    )
    handler.otherwise = Answer(world.operation("failed", error=broken), 202)
    serve(handler)
    expected = "error: operation failed: failed to format image: 'No space left on device'\n"
    assert run("snapshot-create-as", "daisy", "s1", "--disk-only") == (1, "\n", expected)


def test_dry_run(run: Run, serve: Serve) -> None:
    handler = World()
    handler.otherwise = Answer(
        world.operation("done", plan={"steps": ["create /i/s1", "switch vda to \x1b/i/s1"]})
    )
    daemon = serve(handler)
    expected = " 1. create /i/s1\n 2. switch vda to \\x1b/i/s1\n\n"
    assert run("snapshot-create-as", "daisy", "s1", "--disk-only", "--dry-run") == (0, expected, "")
    assert daemon.requests[0].body is not None
    assert daemon.requests[0].body["dry_run"] is True


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--disk-only --quiesce", "--quiesce is not supported yet"),
        ("--disk-only --halt", "--halt is not supported yet"),
        ("--memspec /m", "--memspec (saving memory) is not supported yet"),
        (
            "--live",
            "a snapshot with the machine's memory is not supported yet: add --disk-only to snapshot its disks",
        ),
        (
            "",
            "a snapshot with the machine's memory is not supported yet: add --disk-only to snapshot its disks",
        ),
        (
            "--disk-only --diskspec vda,stype=block,file=/dev/x",
            "stype=block is not supported yet: use stype=file",
        ),
    ],
)
def test_what_is_not_supported_yet(words: str, line: str, run: Run, serve: Serve) -> None:
    """A clear line, and nothing is asked of the daemon."""
    daemon = serve(World())
    result = run("snapshot-create-as", "daisy", "s1", *words.split())
    assert result == (1, "\n", f"error: Operation not supported: {line}\n")
    assert daemon.lines() == []


def test_keep_relative(run: Run, serve: Serve) -> None:
    serve(World())
    line = "error: Operation not supported: --keep-relative is not supported yet\n"
    assert run("blockpull", "daisy", "vda", "--base", "/b", "--keep-relative") == (1, "\n", line)


@pytest.mark.parametrize(
    ("options", "query", "text"),
    [
        ("", "", "Domain snapshot snap2-daisy deleted\n\n"),
        ("--children", "&children=true", "Domain snapshot snap2-daisy deleted\n\n"),
        ("--children-only", "&children_only=true", "Domain snapshot snap2-daisy children deleted\n\n"),
    ],
)
def test_delete_metadata(options: str, query: str, text: str, run: Run, serve: Serve) -> None:
    handler = World()
    handler.otherwise = Answer(DONE, 202)
    daemon = serve(handler)
    assert run("snapshot-delete", "daisy", "snap2-daisy", "--metadata", *options.split()) == (0, text, "")
    assert daemon.lines() == [f"DELETE /v1/domains/daisy/snapshots/snap2-daisy?metadata=true{query}"]


def test_delete_current(run: Run, serve: Serve) -> None:
    handler = World(snapshots=world.three_snapshots())
    handler.otherwise = Answer(DONE, 202)
    daemon = serve(handler)
    run("snapshot-delete", "daisy", "--current", "--metadata")
    assert daemon.lines()[-1] == "DELETE /v1/domains/daisy/snapshots/snap3-daisy?metadata=true"


def test_delete_needs_metadata(run: Run, serve: Serve) -> None:
    """Deleting data is another verb of another day."""
    daemon = serve(World())
    status, out, err = run("snapshot-delete", "daisy", "s1")
    assert (status, out) == (1, "\n")
    assert err == (
        "error: Failed to delete snapshot s1\n"
        "error: Operation not supported: deleting a snapshot's data is not supported yet: "
        "use --metadata to forget the snapshot and keep its images\n"
    )
    assert daemon.lines() == []


@pytest.mark.parametrize(("code", "lines"), [("no-snapshot", 1), ("disk-busy", 2)])
def test_a_failed_delete(code: str, lines: int, run: Run, serve: Serve) -> None:
    """As in virsh: ``Failed to delete`` stands before the reason, but not before a name that is none."""
    handler = World()
    handler.otherwise = peer.error("because", code)
    serve(handler)
    status, _, err = run("snapshot-delete", "daisy", "s1", "--metadata")
    assert (status, err) == (1, "error: Failed to delete snapshot s1\n" * (lines - 1) + "error: because\n")


def test_current(run: Run, serve: Serve) -> None:
    """Without a name the document of the current one; with a name that one becomes current."""
    handler = World(snapshots=world.three_snapshots())
    handler.otherwise = Answer(DONE, 202)
    daemon = serve(handler)
    document = "<domainsnapshot>\n  <name>snap3-daisy</name>\n</domainsnapshot>\n\n"
    assert run("snapshot-current", "daisy") == (0, document, "")
    assert run("snapshot-dumpxml", "daisy", "snap3-daisy", "--security-info") == (0, document, "")
    assert run("snapshot-current", "daisy", "snap1-daisy") == (0, "Snapshot snap1-daisy set as current\n", "")
    assert daemon.lines()[-1] == "PUT /v1/domains/daisy/current"
    assert daemon.requests[-1].body == {"name": "snap1-daisy"}


@pytest.mark.parametrize("verb", ["snapshot-info", "snapshot-parent", "snapshot-list", "snapshot-delete"])
def test_no_current_snapshot(verb: str, run: Run, serve: Serve) -> None:
    serve(World())
    line = "error: Domain snapshot not found: the domain does not have a current snapshot\n"
    assert run(verb, "daisy", "--current") == (1, "\n", line)


def test_attach_and_detach(run: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    """Paths are the caller's, so they are made absolute."""
    handler = World()
    handler.otherwise = Answer(world.domain(), 201)
    daemon = serve(handler)
    monkeypatch.chdir(short_dir)
    assert run("attach", "daisy", "qmp.sock", "--agent", "/a.sock") == (0, "Domain 'daisy' attached\n\n", "")
    assert daemon.requests[0].body == {
        "name": "daisy",
        "monitor": f"{short_dir}/qmp.sock",
        "agent": "/a.sock",
    }
    handler.otherwise = Answer(b"", 204)
    assert run("detach", "daisy") == (0, "Domain 'daisy' detached\n\n", "")
    assert daemon.lines()[-1] == "DELETE /v1/domains/daisy"


def domains() -> World:
    return World(
        world.domain("on", 2, snapshots=1),
        world.domain("Held", 10, state="paused"),
        world.domain("off", None, snapshots=2),
        world.domain("lost", 3, state="no state", monitor={"path": "/m", "state": "hung", "detail": ""}),
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("", "on lost Held"),
        ("--all", "on lost Held off"),
        ("--inactive", "off"),
        ("--state-shutoff", "off"),
        ("--state-running", "on"),
        ("--state-running --state-paused", "on Held"),
        ("--state-other", "lost"),
        ("--all --state-shutoff --state-running", "on off"),
        ("--all --with-snapshot", "on off"),
        ("--all --without-snapshot", "lost Held"),
        ("--all --with-snapshot --without-snapshot", "on lost Held off"),
    ],
)
def test_list_filters(options: str, names: str, run: Run, serve: Serve) -> None:
    """Active ones by id, then the others by name; filters of one group add up."""
    serve(domains())
    expected = "".join(f"{name}\n" for name in names.split()) + "\n"
    assert run("list", "--name", *options.split()) == (0, expected, "")


def test_list(run: Run, serve: Serve) -> None:
    """A machine that cannot be asked is listed with the reason."""
    serve(domains())
    table = " 2    on     running\n 3    lost   no state (hung)\n 10   Held   paused\n -    off    shut off\n"
    assert run("-q", "list", "--all") == (0, table, "")
    assert run("list", "--uuid") == (0, f"{world.UUID}\n" * 3 + "\n", "")
    assert run("list", "--uuid", "--name")[1].splitlines()[0] == f"{world.UUID} on"
    assert run("list", "--all", "--id", "--name")[1] == "2 on\n3 lost\n10 Held\n- off\n\n"
    assert run("domstate", "lost", "--reason") == (0, "no state (hung)\n\n", "")
    assert run("domstate", "on", "--reason") == (0, "running (unknown)\n\n", "")
    assert run("domstate", "off") == (0, "shut off\n\n", "")


def test_dominfo(run: Run, serve: Serve) -> None:
    """What is not known is a dash."""
    handler = World(world.domain(number=None, qemu="", pid=None))
    handler.domains["daisy"]["monitor"]["detail"] = "nobody listens"
    serve(handler)
    assert run("dominfo", "daisy") == (0, golden.text("dominfo") + "\n", "")


def test_empty_drive(run: Run, serve: Serve) -> None:
    """A drive without a medium has dashes."""
    cdrom = world.disk(target="sda", sizes=(None, None, None), device="cdrom")
    serve(World(disks=[world.disk("/a.qcow2"), cdrom]))
    assert run("-q", "domblklist", "daisy") == (0, " vda   /a.qcow2\n sda   -\n", "")
    assert (
        run("-q", "domblkinfo", "daisy", "--all", "--human")[1].splitlines()[1]
        == " sda   -            -            -"
    )
    assert run("-q", "domblkinfo", "daisy", "/a.qcow2") == run("-q", "domblkinfo", "daisy", "vda")


def branches() -> World:
    tree = (("a", None), ("b", "a"), ("c", "b"), ("d", "a"), ("e", None), ("Z", "e"))
    handler = World(snapshots=world.snapshots(*tree, current="c"))
    handler.snapshots[4] |= {"state": "shutoff", "location": "external"}
    handler.snapshots[5] |= {"state": "running", "location": "internal"}
    return handler


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("", "a b c d e Z"),
        ("--roots", "a e"),
        ("--leaves", "c d Z"),
        ("--no-leaves", "a b e"),
        ("--leaves --no-leaves", "a b c d e Z"),
        ("--roots --leaves", ""),
        ("--metadata", "a b c d e Z"),
        ("--no-metadata", ""),
        ("--disk-only", "a b c d"),
        ("--inactive", "e"),
        ("--active", "Z"),
        ("--active --inactive", "e Z"),
        ("--internal", "Z"),
        ("--external --internal", "a b c d e Z"),
        ("--from a", "b d"),
        ("--from a --descendants", "b c d"),
        ("--from a --descendants --leaves", "c d"),
        ("--from c", ""),
        ("--current --descendants", ""),
        ("--topological", "a b c d e Z"),
        ("--topological --no-leaves", "a b e"),
        ("--topological --leaves", "c d Z"),
    ],
)
def test_snapshot_filters(options: str, names: str, run: Run, serve: Serve) -> None:
    """virsh's filters (seen with its test driver): groups narrow, options of one group add up."""
    serve(branches())
    expected = "".join(f"{name}\n" for name in names.split()) + "\n"
    assert run("snapshot-list", "daisy", "--name", *options.split()) == (0, expected, "")


def test_trees_of_a_part(run: Run, serve: Serve) -> None:
    """With --from the start is the root; a child whose parent is filtered out is not drawn, as in virsh."""
    serve(branches())
    assert run("snapshot-list", "daisy", "--tree", "--from", "b")[1] == "b\n  |\n  +- c\n    \n\n"
    assert run("snapshot-list", "daisy", "--tree", "--current")[1] == "c\n\n\n"
    assert run("-q", "snapshot-list", "daisy", "--tree", "--inactive")[1] == "e\n\n"
    assert run("snapshot-list", "daisy", "--tree", "--internal")[1] == "\n"


def test_chain(run: Run, serve: Serve) -> None:
    """``--chain`` is the tree, then the chains, then a table."""
    disk = world.disk("/i/snap3.qcow2", "/export/vmimgs/snap1-daisy.qcow2", "/export/vmimgs/daisy.qcow2")
    handler = World(disks=[disk], snapshots=world.three_snapshots())
    handler.snapshots[1] |= {"revertible": False, "why_not": "snap1-daisy.qcow2 was written to"}
    serve(handler)
    tree = run("-q", "snapshot-list", "daisy", "--tree")[1]
    assert run("snapshot-list", "daisy", "--chain") == (0, f"{tree}{golden.text('chain')}\n", "")
    assert run("snapshot-list", "daisy", "--tree", "--chain")[1] == f"{tree}{golden.text('chain')}\n"
    line = "error: Options --chain and --name are mutually exclusive\n"
    assert run("snapshot-list", "daisy", "--chain", "--name") == (1, "\n", line)


def test_job_by_path(run: Run, serve: Serve) -> None:
    """A path does not fit into a URL: it is looked up first, as the active layer only."""
    handler = World(disks=[world.disk("/i/s3.qcow2", "/i/s2.qcow2", job=world.job(operation="op1"))])
    handler.otherwise = Answer(world.job(), 200)
    daemon = serve(handler)
    assert run("blockjob", "daisy", "/i/s3.qcow2", "--bandwidth", "2") == (0, "\n", "")
    assert daemon.lines()[-1] == "PUT /v1/domains/daisy/disks/vda/job/bandwidth"
    assert daemon.requests[-1].body == {"bandwidth": 2 << 20}
    line = "error: invalid argument: disk '/i/s2.qcow2' not found in domain\n"
    assert run("blockjob", "daisy", "/i/s2.qcow2", "--abort") == (1, "\n", line)


def test_no_job_of_a_machine_that_is_off(run: Run, serve: Serve) -> None:
    serve(World(world.domain(number=None), disks=[world.disk("/a")]))
    line = "error: Requested operation is not valid: domain is not running\n"
    assert run("blockjob", "daisy", "vda", "--info") == (1, "\n", line)


READ_VERBS = [
    ("list", {"domains": [world.domain()]}),
    ("dominfo daisy", world.domain()),
    ("domstate daisy --reason", world.domain()),
    ("domblklist daisy", {"disks": [world.disk("/a")]}),
    ("domblkinfo daisy vda", world.disk("/a")),
    ("domblkinfo daisy --all", {"disks": [world.disk("/a")]}),
    ("snapshot-list daisy --leaves", {"snapshots": world.three_snapshots()[2:], "current": "snap3-daisy"}),
    ("snapshot-info daisy snap2-daisy", world.three_snapshots()[1]),
    ("snapshot-current daisy", world.three_snapshots()[2]),
    ("snapshot-parent daisy snap2-daisy", world.three_snapshots()[0]),
    ("blockjob daisy vda", {"jobs": []}),
]


@pytest.mark.parametrize(("words", "document"), READ_VERBS, ids=[words for words, _ in READ_VERBS])
@pytest.mark.parametrize("where", ["before", "after"])
def test_json(words: str, document: Json, where: str, run: Run, serve: Serve) -> None:
    """Every read verb gives the API's own objects: sorted keys, one newline at the end, unknown fields kept."""
    serve(World(disks=[world.disk("/a")], snapshots=world.three_snapshots()))
    option = ["--output", "json"]
    status, out, err = run(*option, *words.split()) if where == "before" else run(*words.split(), *option)
    assert (status, err) == (0, "")
    assert json.loads(out) == document
    assert out == json.dumps(document, indent=2, sort_keys=True) + "\n"


def test_json_of_a_chain_has_the_disks(run: Run, serve: Serve) -> None:
    serve(World(disks=[world.disk("/a")], snapshots=[]))
    out = run("snapshot-list", "daisy", "--chain", "--output=json")[1]
    assert json.loads(out) == {"current": None, "disks": [world.disk("/a")], "snapshots": []}


def test_json_keeps_the_terminal_safe(run: Run, serve: Serve) -> None:
    serve(World(snapshots=[world.snapshot("\x1b[2J\x9b日")]))
    out = run("snapshot-list", "daisy", "--output", "json")[1]
    assert r"\u001b[2J\u009b\u65e5" in out


def test_an_error_as_json_leaves_stdout_empty(run: Run, serve: Serve) -> None:
    serve(World())
    assert run("--output", "json", "dominfo", "nosuch") == (1, "", "error: failed to get domain 'nosuch'\n")


def test_a_reader_that_leaves(spawn: Spawn, serve: Serve) -> None:
    """``qmpsnap … | head``: no traceback, the status of a process that SIGPIPE ended."""
    serve(World(snapshots=[world.snapshot(f"s{n}" + "x" * 100) for n in range(2000)]))
    read, write = os.pipe()
    process = spawn("snapshot-list", "daisy", "--name", stdout=write)
    os.close(write)
    assert os.read(read, 100).startswith(b"s0x")
    os.close(read)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(spawn: Spawn, serve: Serve) -> None:
    serve(World())
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = spawn("list", stdout=full.fileno())
        assert (
            process.communicate(timeout=20)[1] == "error: cannot write to stdout: No space left on device\n"
        )
    assert process.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "status"), [("-q list", 0), ("list --bogus", 1), ("dominfo nosuch", 1)])
def test_closed_streams(closed: str, words: str, status: int, serve: Serve) -> None:
    """Nobody reads: the verb runs all the same, and nothing lands on the wrong stream."""
    daemon = serve(World())
    script = f'exec "$0" -m qmpsnap.cli.main -c "$1" {words} {closed}'
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", script, sys.executable, str(daemon.path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "daisy" not in done.stderr
    assert "error" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode(serve: Serve) -> None:
    """A name that the locale cannot write is escaped."""
    daemon = serve(World(snapshots=[world.snapshot("é☃")]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qmpsnap.cli.main",
            "-c",
            str(daemon.path),
            "snapshot-list",
            "daisy",
            "--name",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\xe9\\u2603\n\n"


def test_hangup_is_no_traceback(spawn: Spawn, serve: Serve) -> None:
    serve(lambda request: Hangup())
    process = spawn("list")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "\n")
    assert "Traceback" not in err
