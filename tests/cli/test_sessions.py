"""Whole commands against the transcripts of virsh 9.0.0: the same stdout, stderr and exit status."""

from collections.abc import Callable

import pytest

from tests.cli import golden, peer, world
from tests.cli.conftest import Run, Serve
from tests.cli.golden import Command
from tests.cli.world import I, World


def _before() -> World:
    return World(disks=[world.disk(f"{I}/daisy.qcow2")])


def _snapshots() -> World:
    files = [f"{I}/{name}.qcow2" for name in ("snap3-daisy", "snap2-daisy", "snap1-daisy", "daisy")]
    return World(disks=[world.disk(*files)], snapshots=world.three_snapshots())


def _pulled() -> World:
    files = [f"{I}/{name}.qcow2" for name in ("snap3-daisy", "snap1-daisy", "daisy")]
    return World(disks=[world.disk(*files)], snapshots=world.three_snapshots())


WORLDS: dict[str, Callable[[], World]] = {
    "before": _before,
    "snapshots": _snapshots,
    "pulled": _pulled,
    "off": lambda: World(world.domain(number=None)),
}


def _cases(*names: str) -> list[object]:
    return [
        pytest.param(name, command, id=f"{name}: {command.id}")
        for name in names
        for command in golden.session(name)
        if command.words[0] != "blockpull" and command.words != ["snapshot-current", "daisy"]
    ]


@pytest.mark.parametrize(("name", "command"), _cases("before", "snapshots", "pulled", "off"))
def test_the_blog_scenario(name: str, command: Command, run: Run, serve: Serve) -> None:
    """Every list and info of the blog scenario prints what virsh printed."""
    serve(WORLDS[name]())
    assert run(*command.words) == (command.status, command.stdout, command.stderr)


@pytest.mark.parametrize("command", golden.session("refused"), ids=lambda command: command.id)
def test_refusals(command: Command, run: Run, serve: Serve) -> None:
    """An error is virsh's line on stderr, whether the client or the daemon finds it; stdout gets an empty line."""
    handler = World(disks=[world.disk(f"{I}/long.qcow2")], snapshots=world.snapshots(("s1", None)))
    handler.otherwise = peer.error(command.stderr.removeprefix("error: ").rstrip("\n"))
    if command.words[1:2] == ["nosuch"]:
        handler.otherwise = peer.error("failed to get domain 'nosuch'", "no-domain", 404)
    if command.words[:3] == ["snapshot-current", "daisy", "nosuch"]:
        text = "Domain snapshot not found: no domain snapshot with matching name 'nosuch'"
        handler.otherwise = peer.error(text, "no-snapshot", 404)
    serve(handler)
    assert run(*command.words) == (command.status, command.stdout, command.stderr)


CLIENT_SIDE = [
    "file=relative.qcow2",
    "bogus=1",
    "snapshot=internal",
    "snapshot=bogus",
    "--live",
    "--quiesce",
    "--memspec",
    "--async",
    "--bandwidth abc",
    "--timeout x",
    "as daisy ''",
]


@pytest.mark.parametrize("part", CLIENT_SIDE)
def test_what_is_syntax_is_refused_without_a_request(part: str, run: Run, serve: Serve) -> None:
    """The daemon is not asked to change anything when the words themselves are wrong."""
    [command] = [command for command in golden.session("refused") if part in command.id]
    daemon = serve(World())
    run(*command.words)
    assert [line for line in daemon.lines() if not line.startswith("GET")] == []


def test_names_beyond_ascii(run: Run, serve: Serve) -> None:
    """Columns stay in line under names with spaces, accents and symbols."""
    first, second = golden.session("names")
    names = ("1795446929", "1795446930", "name with spaces", "named", "uni-é-☃")
    times = (1795446929, 1795446930, 1795446931, 1795446930, 1795446932)
    handler = World(snapshots=[world.snapshot(n, when=t) for n, t in zip(names, times, strict=True)])
    serve(handler)
    assert run(*first.words) == (0, first.stdout, "")
    rows = (("defb", 61), ("off1", 66), ("onlya", 61), ("qedov", 63), ("two", 60))
    handler.snapshots = [world.snapshot(n, when=1795446900 + s) for n, s in rows]
    handler.snapshots[1]["state"] = "shutoff"
    assert run(*second.words) == (0, second.stdout, "")


JOBS = [
    world.job("commit", 6291456, 6291456, ready=True),
    world.job("commit", 6291456, 6291456, ready=True),
    world.job("commit", 6291456, 6291456, ready=True),
    world.job("commit", 6291456, 6291456, ready=True),
    world.job("commit", 6291456, 6291456, ready=True),
    None,
    None,
    world.job("stream", 2097152, 21474836480, 1048576),
    world.job("stream", 3145728, 21474836480, 1048576),
    world.job("stream", 8388608, 21474836480, 1048576),
    world.job("stream", 8388608, 21474836480, 1048576),
    world.job("stream", 9388608, 21474836480, 2097152),
    world.job("stream", 9388608, 21474836480, 2097152),
]


@pytest.mark.parametrize(
    ("command", "job"),
    [
        pytest.param(c, j, id=c.id)
        for c, j in zip(golden.session("jobs"), JOBS, strict=True)
        if "--pivot" not in c.id
    ],
)
def test_block_jobs(command: Command, job: peer.Json | None, run: Run, serve: Serve) -> None:
    """``blockjob`` shows, limits and aborts as virsh does."""
    handler = World(disks=[world.disk(f"{I}/s3.qcow2", job=job)])
    handler.otherwise = peer.Answer(
        world.operation("failed", error=peer.error_object("aborted", "job-aborted")), 202
    )
    serve(handler)
    assert run(*command.words) == (command.status, command.stdout, command.stderr)


def test_print_xml(run: Run, serve: Serve) -> None:
    """``--print-xml`` shows the document that virsh would send (transcript 9-s4)."""
    serve(World())
    words = ("daisy", "pname", 'desc with <xml> & "quotes"', "--disk-only", "--print-xml")
    result = run("snapshot-create-as", *words, "--diskspec", f"vda,file={I}/p.qcow2")
    assert result == (0, golden.text("print-xml"), "")
