"""The journal's entries: what is read back, and what is left alone, each with one line that says why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmpsnap import errors, paths
from qmpsnap.model import chain
from qmpsnap.plan import codec, steps
from qmpsnap.talk import journal

PLAN = steps.Plan(
    "snapshot-create",
    "daisy",
    (
        steps.Step(
            "overlay",
            steps.MakeOverlay("/o", "/t", "/b", "raw", 1, "/b"),
            steps.RemoveOverlay("/o", "/t", "/b"),
        ),
        steps.Step("look", steps.ExpectActive({"vda": chain.Layer("n", "qcow2", "/o", 1, "/b")})),
        steps.Step("record", steps.Record({"vda": ("/o", "qcow2")}, {"s1": "<domainsnapshot/>"}, "s1")),
    ),
    1,
    ("vda",),
)
ENTRY = journal.Entry("0123456789ab", 1.5, PLAN)


@pytest.fixture
def home(tmp_path: Path) -> journal.Journal:
    """A journal with the one entry."""
    where = paths.find({"QMPSNAP_ROOT": str(tmp_path)}, 0)
    for folder in (where.tmp, where.journal):
        os.makedirs(folder)
    found = journal.Journal(where)
    found.begin(ENTRY)
    return found


def file(home: journal.Journal) -> Path:
    return Path(home.paths.journal_dir("daisy")) / ENTRY.operation


def bad(home: journal.Journal) -> str:
    """Why the entry is not read; nothing else is, and the file is as it was."""
    before = file(home).read_bytes()
    found, (error,) = home.open("daisy")
    assert found == []
    assert isinstance(error, errors.BadJournal)
    assert file(home).read_bytes() == before
    text = str(error)
    assert text.startswith(f"journal entry {file(home)} cannot be read: ")
    assert "\n" not in text
    return text.removeprefix(f"journal entry {file(home)} cannot be read: ").partition(
        "; nothing is changed"
    )[0]


def change(home: journal.Journal, how: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file(home).read_bytes())
    how(value)
    file(home).write_text(json.dumps(value))


def test_round_trip(home: journal.Journal) -> None:
    assert home.open("daisy") == ([ENTRY], [])
    home.end("daisy", ENTRY.operation)
    assert home.open("daisy") == ([], [])


def test_an_older_entry_does_not_say_its_version(home: journal.Journal) -> None:
    change(home, lambda value: value.pop("version"))
    assert home.open("daisy") == ([ENTRY], [])


def test_every_cut(home: journal.Journal) -> None:
    """A half-written entry never passes for a whole one, and is one clear line."""
    whole = file(home).read_bytes()
    for length in range(len(whole)):
        file(home).write_bytes(whole[:length])
        assert bad(home)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda v: v.update(version=2), "it has version 2, this qmpsnap knows 1"),
        (lambda v: v.update(version="1"), "it has version '1', this qmpsnap knows 1"),
        (lambda v: v.update(later=1), "its field 'later' is unknown"),
        (lambda v: v.pop("started"), "started is missing"),
        (lambda v: v.update(started="now"), "started is 'now'"),
        (lambda v: v.update(operation=7), "it is operation 7 of domain 'daisy'"),
        (lambda v: v["plan"].update(domain="rose"), "it is operation '0123456789ab' of domain 'rose'"),
        (lambda v: v["plan"].update(version=9), "its plan has version 9, this qmpsnap knows 1"),
        (lambda v: v["plan"].update(later=1), "its plan cannot be read: extra fields found (later) @ plan"),
        (
            lambda v: v["plan"]["steps"][0]["act"].update(later=1),
            "its plan cannot be read: extra fields found (later) @ plan.steps[0].act",
        ),
        (
            lambda v: v["plan"].update(steps=None),
            "its plan cannot be read: invalid value for type, expected tuple @ plan.steps",
        ),
        (lambda v: v.update(plan=[]), "its plan is no object"),
    ],
    ids=lambda value: value.split(":")[-1] if isinstance(value, str) else "",
)
def test_what_is_not_read(
    home: journal.Journal, how: Callable[[dict[str, Any]], object], reason: str
) -> None:
    """Of a newer version, of other shape, of somebody else: never half."""
    change(home, how)
    assert bad(home) == reason


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 512, b"[]", b"1", b"[" * 100_000, b"\xff\xfe{}"],
    ids=["empty", "zeroes", "list", "number", "deep", "no-text"],
)
def test_what_a_host_crash_leaves(home: journal.Journal, raw: bytes) -> None:
    file(home).write_bytes(raw)
    assert bad(home)


def test_an_act_that_is_unknown(home: journal.Journal) -> None:
    change(home, lambda value: value["plan"]["steps"][0]["act"].update(kind="FlyToTheMoon"))
    assert bad(home).endswith("@ plan.steps[0].act")


def test_others_are_read_beside_one_that_is_not(home: journal.Journal) -> None:
    Path(file(home).parent, "0000").mkdir()
    Path(file(home).parent, "0001").write_bytes(b"{")
    found, damaged = home.open("daisy")
    assert found == [ENTRY]
    assert [str(error).split("cannot be read: ")[0].rpartition("/")[2] for error in damaged] == [
        "0000 ",
        "0001 ",
    ]


def test_a_journal_that_is_no_directory(home: journal.Journal) -> None:
    Path(home.paths.journal_dir("rose")).write_bytes(b"")
    found, (error,) = home.open("rose")
    assert found == []
    assert "Not a directory" in str(error)


def test_every_act_survives(home: journal.Journal) -> None:
    """An act with an undo of each kind, written and read."""
    acts: list[steps.Act] = [
        steps.TakeOverlay("/o", "1:2:3"),
        steps.SyncFiles(("/a", "/b")),
        steps.Command("job-finalize", {"id": "j"}, absent_ok=True),
        steps.StartJob("j", "block-stream", {"auto-finalize": False}),
        steps.AwaitJob("j", "pending"),
        steps.CancelJob("j"),
        steps.Settle("/a", "qcow2", 2),
        steps.ExpectBacking("/a", ""),
        steps.DropNodes(("n1", "n2")),
        steps.RebaseBack("/a", "/b", "raw"),
    ]
    plan = steps.Plan("v", "daisy", tuple(steps.Step(str(n), act, act) for n, act in enumerate(acts)), 3)
    assert codec.load(json.loads(json.dumps(codec.dump(plan)))) == plan
