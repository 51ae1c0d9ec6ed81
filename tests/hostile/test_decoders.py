"""What peers and files say, damaged at random: it means something, or it is refused by an error of ours; nothing else comes out."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpsnap import errors, paths
from qmpsnap.model import chain, domain_xml, header, observe, replies
from qmpsnap.talk import journal, wire
from tests import requires
from tests.hostile import peers
from tests.lab.images import image

ROOT = Path(__file__).parent.parent

#: Random values, but never a failure because the host was busy.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: What stands where something else should stand.
NONSENSE: list[Any] = [
    *(None, True, 0, -1, 2**63, 10**30, 1.5, float("nan"), "", "x", "a\nb", "json:{", "json:[]", "é", "x" * 2000),
    *([], {}, [[]], [None], {"": {}}, ["x"], {"x": "y"}),
]  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of every object and list in a JSON value, as its container and key."""
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@st.composite
def damaged(draw: st.DrawFn, good: Any) -> Any:
    """The value with members taken out, doubled, or replaced by nonsense."""
    value = copy.deepcopy({"root": good})
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(value))
        container, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replaced", "removed", "swapped"]))
        if how == "removed" and container is not value:
            del container[key]
        elif how == "swapped" and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = copy.deepcopy(draw(st.sampled_from(NONSENSE)))
    return value["root"]


def refusal(call: Callable[[], object]) -> errors.Error | None:
    """The error of ours that the call raises, or None when it raises nothing."""
    try:
        call()
    except errors.Error as error:
        return error
    return None


def check_line(error: errors.Error) -> None:
    """It is one printable line, and not a long one."""
    assert str(error).isprintable()
    assert len(str(error)) < 300


# answers of QEMU

#: As QEMU 7.2 has shown it for a stream of ours that waits to be finalized.
JOBS = [
    {"auto-finalize": False, "io-status": "ok", "device": "qs-1", "auto-dismiss": True, "busy": False, "len": 1048576}
    | {"offset": 1048576, "status": "pending", "paused": False, "speed": 0, "ready": False, "type": "stream"}
]  # fmt: skip


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """What a real QEMU answers, by command."""
    folder = Path(tempfile.mkdtemp(prefix="qd-", dir="/tmp"))
    recorded = json.loads(peers.record(folder))
    shutil.rmtree(folder)
    found = {key.removesuffix(" {}"): value for key, value in recorded.items() if key.endswith(" {}")}
    return {
        **found,
        "query-block-jobs": JOBS,
        "query-jobs": [{"id": "qs-1", "status": "pending", "error": "no"}],
    }


def _read(found: dict[str, Any]) -> None:
    """As the look reads it."""
    graph = observe.graph(found["x-debug-query-block-graph"])
    for job in observe.jobs(found["query-block-jobs"], found["query-jobs"], graph):
        assert isinstance(job, chain.Job)
    block, stats = found["query-block"], found["query-blockstats"]
    if not observe.consistent(block, stats):
        return
    devices = {qdev: observe.Device("virtio-blk-device") for qdev in observe.plugged(block)}
    for disk in observe.disks(block, stats, devices, (), ("qemu", "-drive", "id=x"), lambda name: name):
        assert all(isinstance(layer.size, int) and isinstance(layer.file, str) for layer in disk.chain)
        for node in [layer.node for layer in disk.chain]:
            assert graph.below(node)
        if disk.chain:
            _record(disk)


def _record(disk: chain.Disk) -> None:
    record = domain_xml.RecordedDisk(disk.target, disk.bus, disk.active.file, disk.active.format)
    error = refusal(lambda: domain_xml.build(domain_xml.RecordedDomain("d", "u", disks=(record,))))
    assert error is None or isinstance(error, errors.BadXml)


@requires.requires_qemu
@pytest.mark.parametrize(
    "command",
    ["x-debug-query-block-graph", "query-block", "query-blockstats", "query-block-jobs", "query-jobs"],
)
def test_an_answer_that_is_let_through_can_be_read(answers: dict[str, Any], command: str) -> None:
    """Whatever passes the one check, all that reads it can bear."""
    passed = set()

    @given(damaged(answers[command]))
    @settings(CALM, max_examples=300)
    def read(value: Any) -> None:
        error = refusal(lambda: replies.check(command, value))
        passed.add(error is None)
        if error is None:
            _read({**answers, command: value})
        else:
            check_line(error)

    read()
    assert passed == {True, False}


@requires.requires_qemu
def test_real_answers_pass(answers: dict[str, Any]) -> None:
    for command, value in answers.items():
        replies.check(command, value)
    _read(answers)


EVENTS = [
    ("JOB_STATUS_CHANGE", {"id": "qs-1", "status": "running"}),
    ("BLOCK_JOB_COMPLETED", {"device": "qs-1", "len": 1, "offset": 1, "speed": 0, "type": "stream", "error": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), EVENTS)
def test_an_event_that_is_let_through_can_be_read(name: str, data: dict[str, Any]) -> None:
    replies.check_event(name, data)

    @given(damaged(data))
    @settings(CALM, max_examples=200)
    def read(value: Any) -> None:
        if isinstance(value, dict) and refusal(lambda: replies.check_event(name, value)) is None:
            assert isinstance(value.get("id", value.get("device")), str)

    read()


@requires.requires_qemu
def test_lines_with_damaged_bytes(answers: dict[str, Any]) -> None:
    """Bytes turned, cut and doubled: a message, or garbage."""
    line = json.dumps({"return": answers["query-block"], "id": "s.1"}).encode()
    spoilers = [b"\\u0000", b"\\ud800", b"\xff", b"\0", b"[" * 2000, b"9" * 5000, b"NaN", b"}", b'"', b"\\"]

    @given(st.data())
    @settings(CALM, max_examples=300)
    def read(data: st.DataObject) -> None:
        raw = bytearray(line)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(raw)))
            raw[at : at + data.draw(st.integers(0, 20))] = data.draw(st.sampled_from(spoilers))
        if error := refusal(lambda: wire.parse(bytes(raw))):
            check_line(error)
        else:
            text = json.dumps(attrs.asdict(wire.parse(bytes(raw))), ensure_ascii=False)
            assert text.encode()  # no half characters: they cannot be
            assert not re.search(r"(?<!\\)(\\\\)*\\u0000", text)

    read()


# files

PLANS = sorted(ROOT.glob("plans/*/*/plan.json"))


@pytest.mark.parametrize("path", PLANS[:: len(PLANS) // 8], ids=lambda path: path.parent.name)
def test_a_damaged_journal_is_bad_or_a_plan(path: Path, tmp_path: Path) -> None:
    """What lies in the journal is an entry, or `BadJournal` says in one line why not."""
    home = paths.Paths(str(tmp_path), str(tmp_path), str(tmp_path))
    folder = Path(home.journal_dir("daisy"))
    folder.mkdir(parents=True)
    plan = json.loads(path.read_text())
    written = {"version": journal.VERSION, "operation": "0123456789ab", "started": 1.5, "plan": plan}
    kinds = set()

    @given(damaged(written))
    @settings(CALM)
    def read(value: Any) -> None:
        (folder / "0123456789ab").write_text(json.dumps(value))
        found, bad = journal.Journal(home).open("daisy")
        assert len(found) + len(bad) == 1
        for error in bad:
            assert isinstance(error, errors.BadJournal)
            assert "\n" not in str(error)
        kinds.add(bool(found))

    read()
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b'{"version": 1, "operation": "0123456789ab", "started": 1e999, "plan": {}}',
        b'{"version": 1, "operation": "0123456789ab", "started": NaN, "plan": {}}',
        b'{"version": 1, "operation": "0123456789ab", "started": ' + b"9" * 400 + b', "plan": {}}',
        b'{"version": 1, "operation": "0123456789ab", "started": ' + b"9" * 5000 + b', "plan": {}}',
    ],
    ids=lambda raw: ascii(raw)[:40],
)
def test_a_journal_of_nonsense_is_bad(raw: bytes, tmp_path: Path) -> None:
    home = paths.Paths(str(tmp_path), str(tmp_path), str(tmp_path))
    folder = Path(home.journal_dir("daisy"))
    folder.mkdir(parents=True)
    (folder / "0123456789ab").write_bytes(raw)
    found, (error,) = journal.Journal(home).open("daisy")
    assert found == []
    assert isinstance(error, errors.BadJournal)


@requires.requires_qemu
def test_a_damaged_header_is_a_header(tmp_path: Path) -> None:
    """The start of a real image with any bytes changed: always a header, whose texts could be names."""
    image(tmp_path / "base.qcow2", 1024 * 1024)
    image(tmp_path / "top.qcow2", backing="base.qcow2")
    good = (tmp_path / "top.qcow2").read_bytes()[: header.HEAD]
    assert header.parse(good).backing == "base.qcow2"

    @given(st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=8)), max_size=4), st.integers(0, 400))
    @settings(CALM, max_examples=300)
    def read(changes: list[tuple[int, bytes]], cut: int) -> None:
        raw = bytearray(good)
        for at, data in changes:
            raw[at : at + len(data)] = data
        found = header.parse(bytes(raw[: cut or None]))
        assert isinstance(found.backing, str)
        assert 0 <= found.size < 2**64

    read()
