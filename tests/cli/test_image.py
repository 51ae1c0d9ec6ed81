"""`orphans` and `trash`: what they ask of the daemon, and what they say."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli import peer
from tests.cli.conftest import Run, Serve
from tests.cli.peer import Answer, Json, Request

ORPHAN: Json = {
    "file": "/i/a.s1",
    "domain": "daisy",
    "known": True,
    "size": 196928,
    "allocation": 200704,
    "backing": "/i/a.qcow2",
    "proof": ["it was a layer of disk vda of domain 'daisy'", "no QEMU has it open"],
    "field_of_a_newer_daemon": True,
}
CLONE: Json = {**ORPHAN, "file": "/i/cl\none\udcff", "domain": None, "known": False, "proof": ["perhaps"]}
TRASHED: Json = {
    "id": "k7",
    "file": "/i/a.s1",
    "moved": "/i/.qmpsnap-trash/k7",
    "domain": "daisy",
    "size": 196928,
    "allocation": 200704,
    "when": 1795446747.5,
    "until": 1796051547.5,
    "problem": "",
}
STRAY: Json = {**dict.fromkeys(TRASHED), "moved": "/i/.qmpsnap-trash/x", "size": 1, "allocation": 0}
STRAY["problem"] = "no record says where it was"
NEEDED = "'/i/b' cannot be removed: disk vda of domain 'daisy' boots it; keep it"


def answering(answer: Answer) -> peer.Handler:
    return lambda _request: answer


def test_orphans(run: Run, serve: Serve) -> None:
    daemon = serve(answering(Answer({"orphans": [ORPHAN, CLONE], "unknown": ["/j cannot be read"]})))
    why = "it was a layer of disk vda of domain 'daisy'; no QEMU has it open"
    assert run("orphans") == (
        0,
        (
            f" File               Domain   Size          Why\n{'-' * 110}\n"
            f" /i/a.s1            daisy    196.000 KiB   {why}\n"
            " /i/cl\\x0aone\\xff   -        196.000 KiB   perhaps\n"
            "\nNothing can be removed: /j cannot be read\n\n"
        ),
        "",
    )
    assert run("-q", "orphans").stdout == (
        f" /i/a.s1            daisy   196.000 KiB   {why}\n"
        " /i/cl\\x0aone\\xff   -       196.000 KiB   perhaps\n"
    )
    shown = run("orphans", "--output", "json").stdout
    assert json.loads(shown)["orphans"] == [ORPHAN, CLONE]
    assert shown.isascii()
    assert daemon.lines() == ["GET /v1/orphans"] * 3


def test_remove(run: Run, serve: Serve) -> None:
    """Names are relative to the caller; without any, the daemon takes all that were ours."""
    daemon = serve(answering(Answer({"trashed": [TRASHED], "kept": []})))
    told = "'/i/a.s1' moved to the trash as k7 until 2026-11-30 15:12:27 +0000\n\n"
    assert run("orphans", "--remove") == (0, told, "")
    assert run("orphans", "--remove", "/i/a.s1", "--file", "b", "../c") == (0, told, "")
    assert run("-q", "orphans", "--remove") == (0, "", "")
    assert json.loads(run("orphans", "--remove", "--output=json").stdout)["trashed"] == [TRASHED]
    bodies = [request.body for request in daemon.requests]
    named = ["/i/a.s1", os.path.abspath("b"), os.path.abspath("../c")]
    assert bodies == [{"files": []}, {"files": named}, {"files": []}, {"files": []}]
    assert set(daemon.lines()) == {"POST /v1/orphans/remove"}


def test_nothing_to_remove(run: Run, serve: Serve) -> None:
    serve(answering(Answer({"trashed": [], "kept": []})))
    assert run("orphans", "--remove") == (0, "No orphans that were ours\n\n", "")


def test_remove_some(run: Run, serve: Serve) -> None:
    """What was done is told, and why the rest was not; the exit status is the error's."""
    full = peer.error_object("cannot write '/s/k8': No space left on device", exit_status=4)
    serve(answering(Answer({"trashed": [TRASHED], "kept": [full]})))
    done = run("orphans", "--remove")
    assert done.status == 4
    assert done.stdout.startswith("'/i/a.s1' moved")
    assert done.stderr == "error: cannot write '/s/k8': No space left on device\n"


def test_refused(run: Run, serve: Serve) -> None:
    serve(answering(peer.error(NEEDED, "would-hurt")))
    assert run("orphans", "--remove", "/i/b") == (1, "\n", f"error: {NEEDED}\n")


def test_trash(run: Run, serve: Serve) -> None:
    daemon = serve(answering(Answer({"trash": [TRASHED, STRAY], "problems": ["/s/x cannot be read: {"]})))
    assert run("trash") == (
        0,
        (
            f" Id   File                  Size          Until\n{'-' * 71}\n"
            " k7   /i/a.s1               196.000 KiB   2026-11-30 15:12:27 +0000\n"
            " -    /i/.qmpsnap-trash/x   0.000 B       no record says where it was\n"
            "\n/s/x cannot be read: {\n\n"
        ),
        "",
    )
    assert json.loads(run("trash", "--output", "json").stdout)["trash"] == [TRASHED, STRAY]
    assert daemon.lines() == ["GET /v1/trash"] * 2


def test_restore(run: Run, serve: Serve) -> None:
    daemon = serve(answering(Answer(TRASHED)))
    assert run("trash", "--restore", "k7") == (0, "'/i/a.s1' restored\n\n", "")
    assert json.loads(run("trash", "--restore=k 7?", "--output=json").stdout) == TRASHED
    assert daemon.lines() == ["POST /v1/trash/k7/restore", "POST /v1/trash/k%207%3F/restore"]


def test_empty(run: Run, serve: Serve) -> None:
    """All, or those that are named, each by its own request."""
    kept = peer.error_object("'/i/.qmpsnap-trash/k9' cannot be removed: a process has it open; keep it")

    def answer(request: Request) -> Answer:
        if request.target == "/v1/trash":
            return Answer({"deleted": ["k7", "k8"], "kept": [kept]})
        if request.target.endswith("/k9"):
            return Answer({"error": kept}, 409)
        return Answer(status=204)

    daemon = serve(answer)
    assert run("trash", "--empty") == (1, "k7 deleted\nk8 deleted\n\n", f"error: {kept['message']}\n")
    assert run("trash", "--empty", "k9", "k8") == (1, "k8 deleted\n\n", f"error: {kept['message']}\n")
    assert json.loads(run("trash", "--empty", "k7", "--output=json").stdout) == {"deleted": ["k7"]}
    assert daemon.lines() == [
        "DELETE /v1/trash",
        "DELETE /v1/trash/k9",
        "DELETE /v1/trash/k8",
        "DELETE /v1/trash/k7",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("orphans /i/b", "--file needs --remove"),
        ("trash k7", "--id needs --empty"),
        ("trash --restore k7 --empty", "Options --restore and --empty are mutually exclusive"),
        ("trash --restore k7 k8", "--id needs --empty"),
        ("trash --restore a/b", "no image with id 'a/b' in the trash"),
        ("trash --empty ../domains/daisy", "no image with id '../domains/daisy' in the trash"),
    ],
)
def test_what_is_not_asked(words: str, line: str, run: Run, serve: Serve) -> None:
    """Nothing is asked of the daemon."""
    daemon = serve(answering(peer.error("not expected")))
    assert run(*words.split()) == (1, "\n", f"error: {line}\n")
    assert daemon.lines() == []
