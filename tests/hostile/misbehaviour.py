"""How a monitor can misbehave, and what is then shown of its domain."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import attrs
import trio

from tests.lab import fake_qemu
from tests.lab.fake_qemu import Link, Message, Session

MIB = 1024 * 1024


@attrs.frozen
class Case:
    """A monitor's session, the state that its domain has, and a pattern for the reason shown."""

    name: str
    session: Session
    state: str
    detail: str = ""

    def __str__(self) -> str:
        """Its domain."""
        return self.name.replace(" ", "-")


# --- sessions ---

Spoil = Callable[[Message, Any], list[Message | bytes]]


def at(command: str, spoil: Spoil) -> Session:
    """Good, but for one command: the function gets the request and the good answer, and says what is sent."""

    async def session(link: Link) -> None:
        await link.send(fake_qemu.GREETING)
        while (request := await link.request()) is not None:
            messages = link.respond(request)
            if request["execute"] == command:
                value = copy.deepcopy(messages[-1].get("return"))
                await link.send(*spoil(request, value))
            else:
                await link.send(*messages)

    return session


def answer(command: str, change: Callable[[Any], Any]) -> Session:
    """Good, but the answer to one command is what the function makes of it."""
    return at(command, lambda request, value: [{"return": change(value), "id": request["id"]}])


def raw(command: str, text: bytes) -> Session:
    """Good, but the answer to one command has this text as its value."""
    return at(
        command, lambda request, _value: [b'{"return": %b, "id": "%b"}\n' % (text, request["id"].encode())]
    )


def refusal(command: str, desc: str) -> Session:
    """Good, but one command is refused."""
    return at(command, lambda request, _value: [fake_qemu.failure("X", desc) | {"id": request["id"]}])


def with_events(*events: Message | bytes) -> Session:
    """Good, but these come before each answer to query-status."""
    return at("query-status", lambda request, value: [*events, {"return": value, "id": request["id"]}])


def storm(event: Message, count: int) -> Session:
    """Good, but so many events come in one go before the first answer."""
    lines = (json.dumps(event).encode() + b"\n") * count

    async def session(link: Link) -> None:
        await link.send(fake_qemu.GREETING)
        first = True
        while (request := await link.request()) is not None:
            if link.negotiated and first:
                await link.send(lines)
                first = False
            await link.send(*link.respond(request))

    return session


async def endless(link: Link) -> None:
    """Negotiates, then never ends its line."""
    await link.send(fake_qemu.GREETING)
    while (request := await link.request()) is not None:
        await link.send(*link.respond(request))
        while link.negotiated:
            await link.send(b"x" * MIB)


async def half_and_silent(link: Link) -> None:
    await link.send(b'{"QMP": {"version"')
    await trio.sleep_forever()


async def hangs_up_later(link: Link) -> None:
    """Negotiates, and leaves at the first question."""
    await link.send(fake_qemu.GREETING)
    while (request := await link.request()) is not None and not link.negotiated:
        await link.send(*link.respond(request))


async def says_nothing_more(link: Link) -> None:
    """Negotiates, reads on, and answers nothing."""
    await link.send(fake_qemu.GREETING)
    while (request := await link.request()) is not None:
        if not link.negotiated:
            await link.send(*link.respond(request))


# --- answers of nonsense ---


def _image(change: Callable[[Message], object]) -> Callable[[Any], Any]:
    """Changes the image of the first drive that has one."""

    def changed(rows: list[Message]) -> list[Message]:
        change(next(row for row in rows if "inserted" in row)["inserted"]["image"])
        return rows

    return changed


def _name(name: str) -> Session:
    return answer("query-block", _image(lambda image: image.update({"filename": name})))


def _memory(number: bytes) -> Session:
    return raw("query-memory-size-summary", b'{"base-memory": %b}' % number)


def _cycle(graph: Message) -> Message:
    """Every edge also leads back, so that nothing has an end."""
    edges = [{**e, "parent": e["child"], "child": e["parent"]} for e in graph["edges"]]
    return {**graph, "edges": graph["edges"] + edges}


def _deep(layers: int) -> bytes:
    layer = b'{"filename": "/x", "format": "qcow2", "virtual-size": 1, "backing-image": '
    chain = layer * layers + b"null" + b"}" * layers
    return b'[{"qdev": "x", "device": "", "inserted": {"node-name": "n", "ro": false, "image": %b}}]' % chain


def _wrong_ids(request: Message, value: Any) -> list[Message | bytes]:
    right: Message = {"return": value, "id": request["id"]}
    return [{"return": 1, "id": "nobody"}, {"return": 2}, {"return": 3, "id": [1]}, right]


def _job_event(**data: object) -> Message:
    return fake_qemu.event("JOB_STATUS_CHANGE", data)


_NO_DEVICE = fake_qemu.event("BLOCK_JOB_COMPLETED", {"offset": 1, "len": 1})
_NOT_SAID = "accepts and does not answer"
_WRONG = "holds the wrong types"

CASES = [
    # before it is a session
    Case("html", fake_qemu.says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "garbage", "HTTP/1.1 400"),
    Case("greets with a list", fake_qemu.says(b"[1]\n"), "garbage", "not a JSON object"),
    Case("greets nonsense", fake_qemu.says(b'{"QMP": {"version": [], "capabilities": 7}}\n'), "garbage", "QMP"),
    Case("not UTF-8", fake_qemu.says(b'{"QMP": "\xff\xfe"}\n'), "garbage", "not UTF-8"),
    Case("UTF-16", fake_qemu.says('{"QMP": "\\ud800"}'.encode("utf-16-be") + b"\n"), "garbage", "a byte is zero"),
    Case("half a line", fake_qemu.half_line, "gone", "QEMU closed it within a message"),
    Case("half a line and silent", half_and_silent, "hung", _NOT_SAID),
    Case("never greets", fake_qemu.never_greets, "hung", _NOT_SAID),
    Case("closes at once", fake_qemu.hang_up, "gone", "QEMU closed it"),
    Case("64 MB", fake_qemu.says(b"x" * (64 * MIB)), "garbage", "line longer than 8388608 bytes"),
    Case("deep", fake_qemu.says(b"[" * 100_000 + b"\n"), "garbage", "nested too deep"),
    Case("a million values", fake_qemu.says(b'{"QMP": [' + b"[]," * MIB + b"[]]}\n"), "garbage", "500000 values"),
    # afterwards
    Case("closes later", hangs_up_later, "connecting", "the monitor was lost"),
    Case("says nothing more", says_nothing_more, "hung", "no answer to query-status for"),
    Case("reads nothing more", fake_qemu.deaf, "hung", "no answer to query-status for"),
    Case("no answer in the middle", at("query-block", lambda _request, _value: []), "hung", "no answer to query-block for"),
    Case("endless line", endless, "garbage", "line longer than 8388608 bytes"),
    Case("wrong ids", at("query-status", _wrong_ids), "ready"),
    Case("answers twice", at("query-status", lambda r, v: [{"return": v, "id": r["id"]}] * 2), "ready"),
    Case("answers to nobody", with_events(b'{"return": 1, "id": "x"}\n' * 10_000), "ready"),
    Case("greets twice", with_events(fake_qemu.GREETING), "garbage", "greets twice"),
    Case("an error for nobody", with_events(fake_qemu.failure("GenericError", "?")), "garbage", "answers no command"),
    Case("an error of 1 MB", refusal("query-block", "y" * MIB), "garbage", "y"),
    Case("an error of nonsense", at("query-block", lambda r, _v: [{"error": 7, "id": r["id"]}]), "garbage", "error"),
    # answers of another shape
    Case("a list for an object", answer("query-status", lambda _v: []), "garbage", f"answer to query-status {_WRONG}"),
    Case("an object for a list", answer("query-block", lambda _v: {}), "garbage", f"answer to query-block {_WRONG}"),
    Case("null", answer("query-block-jobs", lambda _v: None), "garbage", f"answer to query-block-jobs {_WRONG}"),
    Case("text for a number", answer("query-memory-size-summary", lambda _v: {"base-memory": "9"}), "garbage", _WRONG),
    Case("a row without keys", answer("query-block", _image(lambda image: image.pop("filename"))), "garbage", "lacks 'filename'"),
    Case("an edge to nowhere", answer("x-debug-query-block-graph", lambda v: {**v, "nodes": v["nodes"][1:]}), "garbage", "edge"),
    Case("a graph of cycles", answer("x-debug-query-block-graph", _cycle), "ready"),
    Case("two stories", answer("query-blockstats", lambda _v: []), "garbage", "go on showing different chains"),
    Case("10000 layers", raw("query-block", _deep(10_000)), "garbage", "nested too deep"),
    Case("500 layers", raw("query-block", _deep(500)), "garbage", "nested too deep|different chains"),
    Case("a number of 5000 digits", _memory(b"9" * 5000), "garbage", "limit"),
    Case("a number of 30 digits", _memory(b"9" * 30), "garbage", "out of range"),
    Case("NaN", _memory(b"NaN"), "garbage", _WRONG),
    Case("1e999", _memory(b"1e999"), "garbage", _WRONG),
    Case("NUL in a name", _name("/a\0b"), "garbage", "a NUL"),
    Case("half a character in a name", _name("/a\ud800"), "garbage", "half a character"),
    Case("a name of 1 MB", _name("/" + "a" * MIB), "garbage", "a text longer than"),
    Case("a name that is deep JSON", _name("json:" + '{"file":' * 5000), "ready"),
    Case("a name that is a list", _name("json:[]"), "ready"),
    Case("NUL inside of a name", _name('json:{"file":{"filename":"/a\\u0000b"}}'), "ready"),
    Case("a name too long for a file", _name("/" + "a" * 5000), "ready"),
    Case("a UUID of control characters", answer("query-uuid", lambda _v: {"UUID": "\x01"}), "garbage", "XML cannot hold"),
    # events
    Case("unknown events", storm(fake_qemu.event("NO_SUCH_EVENT", {"n": 1}), 100_000), "ready"),
    Case("events about the state", storm(fake_qemu.event("STOP"), 10_000), "ready"),
    Case("events about jobs of nobody", storm(_job_event(id="x", status="nonsense"), 10_000), "ready"),
    Case("large events", storm(fake_qemu.event("STOP", {"x": "y" * 15_000}), 2000), "ready"),
    Case("an event of many values", with_events(fake_qemu.event("STOP", {"x": [[]] * 1000})), "garbage", "more than 500 values"),
    Case("an event too large", with_events(fake_qemu.event("STOP", {"x": "y" * MIB})), "garbage", "an event longer than"),
    Case("a job event of nonsense", with_events(_job_event(id=[1], status={})), "garbage", f"JOB_STATUS_CHANGE {_WRONG}"),
    Case("a job event without data", with_events({"event": "JOB_STATUS_CHANGE"}), "garbage", "lacks 'id'"),
    Case("an event without a job", with_events(_NO_DEVICE), "garbage", "BLOCK_JOB_COMPLETED lacks 'device'"),
    Case("an event that is a number", with_events({"event": 7}), "garbage", "wrong types"),
]  # fmt: skip
