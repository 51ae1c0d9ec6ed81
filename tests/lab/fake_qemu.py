"""A QMP server for timing and faults: it answers as QEMU 7.2 does, or misbehaves as told.

`good` passes the same contract suite as the real QEMU. Every other session is `good` with one fault.
"""

import contextlib
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import trio

Message = dict[str, Any]

GREETING: Message = {
    "QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"},
        "capabilities": ["oob"],
    }
}
STAMP = {"seconds": 1700000000, "microseconds": 500000}


class HangUp(Exception):
    """Raised by a session to close its client's connection."""


class Machine:
    """What outlives a client: `-machine none -S` and whether it runs; or, with `recorded` answers, the machine that gave them."""

    def __init__(self, recorded: Mapping[str, Any] | None = None) -> None:
        self.status = "prelaunch"
        self.quit = False
        self.recorded = dict(recorded or {})

    def execute(self, command: str, arguments: Message) -> tuple[list[Message], Message]:
        """Return the events and the reply (without id) of one command."""
        if (key := asked(command, arguments)) in self.recorded:
            return [], {"return": self.recorded[key]}
        method = getattr(self, "do_" + command.replace("-", "_"), None)
        if method is None:
            return [], failure("CommandNotFound", f"The command {command} has not been found")
        if arguments:
            return [], failure("GenericError", f"Parameter '{next(iter(arguments))}' is unexpected")
        events, value = method()
        return events, {"return": value}

    def do_query_status(self) -> tuple[list[Message], Any]:
        running = self.status == "running"
        return [], {"status": self.status, "singlestep": False, "running": running}

    def do_query_version(self) -> tuple[list[Message], Any]:
        return [], GREETING["QMP"]["version"]

    def do_query_jobs(self) -> tuple[list[Message], Any]:
        return [], []

    def do_cont(self) -> tuple[list[Message], Any]:
        events = [] if self.status == "running" else [event("RESUME")]
        self.status = "running"
        return events, {}

    def do_stop(self) -> tuple[list[Message], Any]:
        if self.status != "running":
            return [], {}
        self.status = "paused"
        return [event("STOP")], {}

    def do_quit(self) -> tuple[list[Message], Any]:
        self.quit = True
        return [event("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})], {}


class Link:
    """One client's connection, as the server sees it."""

    def __init__(self, stream: trio.SocketStream, machine: Machine) -> None:
        self.stream = stream
        self.machine = machine
        self.negotiated = False
        self._turn = trio.Lock()
        self._text = ""
        self._values: Iterator[Any] = iter(())

    async def send(self, *messages: Message | bytes) -> None:
        """Send messages; bytes go out as they are."""
        async with self._turn:
            for message in messages:
                raw = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n"
                await self.stream.send_all(raw)

    async def request(self) -> Message | None:
        """Return the next well formed request, None at the end; answer malformed ones as QEMU does."""
        while not self.machine.quit:
            for value in self._values:
                if isinstance(value, ValueError):
                    await self.send(failure("GenericError", f"JSON parse error, {value}"))
                elif (complaint := malformed(value)) is not None:
                    await self.send(answered(value, failure("GenericError", complaint)))
                else:
                    request: Message = value
                    return request
            chunk = await self.stream.receive_some()
            if not chunk:
                break
            found, self._text = values(self._text + chunk.decode(errors="replace"))
            self._values = iter(found)
        return None

    def respond(self, request: Message) -> list[Message]:
        """Carry out a request; return its events, then its reply."""
        command = request["execute"]
        if command == "qmp_capabilities":
            reply: Message = {"return": {}}
            if self.negotiated:
                desc = "Capabilities negotiation is already complete, command ignored"
                reply = failure("CommandNotFound", desc)
            self.negotiated = True
            return [answered(request, reply)]
        if not self.negotiated:
            desc = "Expecting capabilities negotiation with 'qmp_capabilities'"
            return [answered(request, failure("CommandNotFound", desc))]
        events, reply = self.machine.execute(command, request.get("arguments", {}))
        return [*events, answered(request, reply)]


Session = Callable[[Link], Awaitable[None]]


class FakeQemu:
    """A monitor socket that serves one client at a time, by a session; others wait, as with QEMU."""

    def __init__(
        self, path: str, session: Session | None = None, recorded: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.session = session or good
        self.machine = Machine(recorded)
        self._serving = trio.CancelScope()
        # QEMU's own backlog: two clients fit in, the third gets EAGAIN
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)

    async def run(self) -> None:
        """Serve until the machine quits or this is cancelled; nobody can connect afterwards."""
        with trio.socket.from_stdlib_socket(self._listener) as listener:
            while not self.machine.quit:
                client, _ = await listener.accept()
                async with trio.SocketStream(client) as stream:
                    with (
                        trio.CancelScope() as self._serving,
                        contextlib.suppress(HangUp, trio.BrokenResourceError),
                    ):
                        await self.session(Link(stream, self.machine))

    def behave(self) -> None:
        """Hang up on the client, and serve the next one as QEMU does."""
        self.session = good
        self._serving.cancel()


def asked(command: str, arguments: Message) -> str:
    """The key of a recorded answer."""
    return f"{command} {json.dumps(arguments, sort_keys=True)}"


def event(name: str, data: Message | None = None) -> Message:
    return {"timestamp": STAMP, "event": name} | ({"data": data} if data is not None else {})


def failure(qemu_class: str, desc: str) -> Message:
    return {"error": {"class": qemu_class, "desc": desc}}


def answered(request: Any, reply: Message) -> Message:
    """Return the reply with the request's id, if it had one."""
    return reply | ({"id": request["id"]} if isinstance(request, dict) and "id" in request else {})


def values(text: str) -> tuple[list[Any], str]:
    """Return the JSON values in a text, a ValueError for a line that is none, and the unfinished rest.

    Like QEMU it needs no line ends: QMPClient sends none. Unlike QEMU it wants a value on one line.
    """
    found: list[Any] = []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            line, newline, after = text.partition("\n")
            if not newline:
                break
            word = re.match(r"\w+", line)
            value = ValueError(f"invalid keyword '{word[0]}'" if word else "stray characters")
            text = after
        else:
            text = text[end:]
        found.append(value)
    return found, text


def malformed(value: Any) -> str | None:
    """Return what QEMU says of a value that is no request."""
    if not isinstance(value, dict):
        return "QMP input must be a JSON object"
    for member in value.keys() - {"execute", "arguments", "id"}:
        return f"QMP input member '{member}' is unexpected"
    if "execute" not in value:
        return "QMP input lacks member 'execute'"
    if not isinstance(value["execute"], str):
        return "QMP input member 'execute' must be a string"
    if not isinstance(value.get("arguments", {}), dict):
        return "QMP input member 'arguments' must be an object"
    return None


# --- sessions ---


async def good(link: Link) -> None:
    await link.send(GREETING)
    while (request := await link.request()) is not None:
        await link.send(*link.respond(request))


def says(raw: bytes) -> Session:
    """A server that says this instead of a greeting, and then waits for the client to leave."""

    async def session(link: Link) -> None:
        await link.send(raw)
        async for _ in link.stream:
            pass

    return session


def answers(raw: Callable[[Message], list[Message | bytes]]) -> Session:
    """A good server until negotiated; it then sends what the function makes of each request."""

    async def session(link: Link) -> None:
        await link.send(GREETING)
        while (request := await link.request()) is not None:
            if link.negotiated:
                await link.send(*raw(request))
            else:
                await link.send(*link.respond(request))

    return session


async def hang_up(link: Link) -> None:
    """It leaves without a greeting, and serves the next client no better."""


def hangs_up(request: Message) -> list[Message | bytes]:
    raise HangUp


async def never_greets(link: Link) -> None:
    async for _ in link.stream:
        pass


async def half_line(link: Link) -> None:
    await link.send(b'{"QMP": {"version"')


def garbage_after_reply(request: Message) -> list[Message | bytes]:
    """The reply is whole; the garbage comes in the same write."""
    return [json.dumps({"return": "whole", "id": request["id"]}).encode() + b"\n<html>\n"]


async def event_before_caps_reply(link: Link) -> None:
    """Also what QEMU 7.2 does after a client left: its answer, to our session (seen with a slow command)."""
    await link.send(GREETING)
    while (request := await link.request()) is not None:
        if not link.negotiated:
            foreign: Message = {"return": {"leak": True}, "id": "1"}
            await link.send(event("RESUME"), foreign, {"return": {}}, failure("GenericError", "not for you"))
        await link.send(*link.respond(request))


async def deaf(link: Link) -> None:
    """It negotiates, then reads nothing any more."""
    await link.send(GREETING)
    while (request := await link.request()) is not None:
        await link.send(*link.respond(request))
        await trio.sleep_forever()


def wrong_ids(request: Message) -> list[Message | bytes]:
    return [
        {"return": "wrong", "id": "nobody"},
        {"return": "wrong"},
        {"return": "right", "id": request["id"]},
    ]


def answers_twice(request: Message) -> list[Message | bytes]:
    return [{"return": n, "id": request["id"]} for n in (1, 2)]


def event_storm(request: Message) -> list[Message | bytes]:
    """As many events as the request says, in one write, then the reply."""
    count = request.get("arguments", {}).get("count", 0)
    storm = b"".join(json.dumps(event("TICK", {"n": n})).encode() + b"\n" for n in range(count))
    return [storm, {"return": {}, "id": request["id"]}]


def late_answers(delay: Callable[[], float]) -> Session:
    """Each answer, `{"number": the argument}`, comes after its own delay: out of order, between events."""

    async def answer(link: Link, request: Message) -> None:
        await trio.sleep(delay())
        reply = {"return": {"number": request["arguments"]["number"]}, "id": request["id"]}
        with contextlib.suppress(trio.BrokenResourceError):
            await link.send(event("TICK"), reply)

    async def session(link: Link) -> None:
        await link.send(GREETING)
        async with trio.open_nursery() as nursery:
            while (request := await link.request()) is not None:
                if link.negotiated:
                    nursery.start_soon(answer, link, request)
                else:
                    await link.send(*link.respond(request))
            nursery.cancel_scope.cancel()

    return session
