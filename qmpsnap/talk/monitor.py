"""One QMP session: commands and their answers, events to whoever asked for them.

A reader task routes what arrives and never acts. Whatever ends the link ends it once, for everybody:
callers get Disconnected, subscribers the end of their channel, `wait_closed` returns.
"""

from __future__ import annotations

import enum
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
import trio

from qmpsnap import errors, faults
from qmpsnap.model import replies
from qmpsnap.talk import link, wire
from qmpsnap.talk.wire import Event

# One query tells more than a thousand missed events; who falls that far behind has to ask again.
EVENTS_KEPT = 1024

# A free monitor greets within milliseconds; a user should see soon that ours is not free.
GREETING_TIMEOUT = 2.0

# Commands that change nothing: one whose answer is lost is sent again, and no crash point lies behind it.
_LOOKS = ("query-", "x-debug-query-", "qom-get")

_log = structlog.stdlib.get_logger(__name__)
_level = logging.getLogger(__name__)


class State(enum.Enum):
    """How far `connect` has come, for people to see."""

    CONNECTING = "connecting"  # connected, no greeting yet
    TAKEN = "taken"  # another client is served; we are in the queue and are next
    HUNG = "hung"  # nobody else is in our way, and still QEMU says nothing
    READY = "ready"


class _Call:
    """A command that was sent: forgotten only when its answer came or the link ended."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.since = trio.current_time()
        self.done = trio.Event()
        self.answer: wire.Reply | wire.Failure | None = None
        self.abandoned = False


class Monitor(trio.abc.AsyncResource):
    """One live, negotiated session; get it from `connect`. Once closed it stays closed.

    ``late_replies`` counts answers to commands whose callers were cancelled, ``unknown_replies`` those
    to commands that were not ours (the QMP specification tells clients to drop these).
    """

    def __init__(self, wire_link: link.Link, version: tuple[int, int, int], session: str) -> None:
        self.path = wire_link.path
        self.version = version
        # of the process that made the socket listen: QEMU's, unless it was handed a listening one
        self.peer_pid = wire_link.peer_pid
        self.reason: errors.Error | None = None
        self.late_replies = 0
        self.unknown_replies = 0
        self._link = wire_link
        self._session = session
        self._sent = 0
        self._turn = trio.StrictFIFOLock()
        self._calls: dict[str, _Call] = {}
        self._subscribers: list[trio.MemorySendChannel[Event]] = []
        self._ended = trio.Event()

    @property
    def closed(self) -> bool:
        """Whether the link has ended; ``reason`` then says why."""
        return self.reason is not None

    @property
    def waiting(self) -> tuple[str, float]:
        """The command that has waited longest for its answer, and for how many seconds; "" and 0 when none waits.

        QEMU carries commands out one after the other: a long wait means that it hangs, on storage for instance.
        """
        for call in self._calls.values():
            return call.command, trio.current_time() - call.since
        return "", 0.0

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run one command and return what QEMU answered. Commands are sent in the order of the calls.

        Raises CommandFailed when QEMU refused. Raises Disconnected when the link ended first: if its
        ``sent`` is true the command may or may not have been carried out. The same if cancelled; a line
        once begun is written whole, and its late answer reaches nobody else.
        """
        (call,) = await self._start([(command, arguments)])
        if not command.startswith(_LOOKS):
            faults.point(f"sent-{command}")
        return await self._answer_to(call)

    async def execute_all(self, *commands: str) -> list[Any]:
        """Run commands without arguments in one go, for one wait instead of many; the answers, in the same order.

        Raises as `execute` does, for the first that went wrong; the others have been run, too.
        """
        calls = await self._start([(command, None) for command in commands])
        try:
            return [await self._answer_to(call) for call in calls]
        finally:
            for call in calls:
                call.abandoned = True

    async def _start(self, commands: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[_Call]:
        """The commands are on their way: their lines were written whole, in one piece."""
        calls, lines = {}, []
        for command, arguments in commands:
            self._sent += 1
            ident = f"{self._session}.{self._sent}"
            calls[ident] = _Call(command)
            lines.append(wire.command(command, arguments, ident))
        async with self._turn:
            if self.closed:
                raise self._lost(commands[0][0], sent=False)
            self._calls |= calls
            await self._link.send(b"".join(lines))
        return list(calls.values())

    async def _answer_to(self, call: _Call) -> Any:
        try:
            await call.done.wait()
        finally:
            call.abandoned = True  # of no effect once it was answered
        match call.answer:
            case wire.Reply(value=value):
                return value
            case wire.Failure(qemu_class=qemu_class, desc=desc):
                raise errors.CommandFailed(command=call.command, reason=desc, qemu_class=qemu_class)
        # a caller that was cancelled while the link ended is told of the former (stack.md, pitfall 6)
        await trio.lowlevel.checkpoint_if_cancelled()
        raise self._lost(call.command, sent=True)

    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """Return a channel of all events from now on. Close it when done.

        It ends, after what was kept, when the link ends or when its reader is `EVENTS_KEPT` behind:
        no event is skipped in silence. After the latter ``closed`` is false: subscribe again, then query.
        """
        send, receive = trio.open_memory_channel[Event](EVENTS_KEPT)
        if self.closed:
            send.close()
        else:
            self._subscribers.append(send)
        return receive

    async def wait_closed(self) -> None:
        """Return when the link has ended, for whatever reason."""
        await self._ended.wait()

    async def aclose(self) -> None:
        """End the link; commands without an answer get Disconnected. May be called again."""
        self._end(errors.Disconnected(reason="qmpsnap closed it"))
        await trio.lowlevel.checkpoint()

    async def _read(self) -> None:
        try:
            while True:
                self._route(wire.parse(await self._link.receive()))
                # One chunk may hold thousands of events, and a receiver gets one per turn of the
                # scheduler: give those that are busy with nothing else the turns they need.
                if any(s.statistics().current_buffer_used > EVENTS_KEPT // 2 for s in self._subscribers):
                    await trio.lowlevel.checkpoint()
        except (errors.Disconnected, errors.MonitorGarbage) as error:
            self._end(error)
        finally:
            self._end(errors.Disconnected(reason="qmpsnap closed it"))

    def _route(self, message: wire.Greeting | Event | wire.Reply | wire.Failure) -> None:
        match message:
            case Event():
                replies.check_event(message.name, message.data)
                self._publish(message)
            case wire.Greeting():
                raise errors.MonitorGarbage(reason="greets twice", excerpt=str(message.version))
            case wire.Failure(id=None, desc=desc):
                # QEMU could not parse a line of ours and cannot say which: some caller waits in vain
                raise errors.MonitorGarbage(reason="error that answers no command", excerpt=desc[:200])
            case wire.Reply() | wire.Failure():
                self._answer(message)

    def _publish(self, event: Event) -> None:
        for subscriber in self._subscribers.copy():
            try:
                subscriber.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                subscriber.close()
                self._subscribers.remove(subscriber)

    def _answer(self, message: wire.Reply | wire.Failure) -> None:
        call = self._calls.get(message.id or "")
        if call is not None and not call.abandoned and isinstance(message, wire.Reply):
            # Who answers one command with nonsense is not believed in anything: the link ends, also for this call.
            replies.check(call.command, message.value)
        self._calls.pop(message.id or "", None)
        if call is None:
            self.unknown_replies += 1
            _debug("Reply %s is to no command of this session", message.id, monitor=self.path)
        elif call.abandoned:
            self.late_replies += 1
            _debug("Late reply %s to %s", message.id, call.command, monitor=self.path)
        else:
            call.answer = message
            call.done.set()

    def _end(self, reason: errors.Error) -> None:
        if self.reason is not None:
            return
        # Without its traceback, whose frames hold what was read: megabytes, in a cycle that is freed only some day.
        self.reason = reason.with_traceback(None)
        self._link.close()
        for call in self._calls.values():
            call.done.set()
        self._calls.clear()
        for subscriber in self._subscribers:
            subscriber.close()
        self._subscribers.clear()
        self._ended.set()

    def _lost(self, command: str, *, sent: bool) -> errors.Disconnected:
        reason = f"monitor {self.path}: no answer to {command}: {self.reason}"
        return errors.Disconnected(reason=reason, command=command, sent=sent)


async def connect(
    nursery: trio.Nursery,
    path: str | os.PathLike[str],
    *,
    on_state: Callable[[State], None] = lambda state: None,
    vet: Callable[[int], None] = lambda pid: None,
    greeting_timeout: float = GREETING_TIMEOUT,
    write_timeout: float = link.WRITE_TIMEOUT,
    line_limit: int = wire.LINE_LIMIT,
) -> Monitor:
    """Connect, wait in the queue as long as it takes, negotiate; the reader then runs in ``nursery``.

    A monitor serves one client, and a waiting socket is served the moment that the other leaves, while
    one that gives up stays in the short queue: so there is no timeout. ``on_state`` is told of every
    change of `State`, TAKEN or HUNG after ``greeting_timeout``. Events before READY reach nobody.
    ``vet`` is told who listens before a word is said, and may raise an error of its own.

    Raises MonitorBusy, MonitorGone, MonitorDenied or MonitorGarbage, never in a group; then, and when
    cancelled, the socket is closed and no task is left.
    """
    wire_link = link.open_link(path, line_limit=line_limit, write_timeout=write_timeout)
    # No id is used twice, not even by the next daemon: QEMU 7.2 sends the answer to the command that a
    # client left behind to the client that comes after it (seen, between greeting and negotiation).
    session = secrets.token_hex(8)
    try:
        vet(wire_link.peer_pid)
        version = await _negotiate(wire_link, session, greeting_timeout, on_state)
        monitor = Monitor(wire_link, version, session)
        nursery.start_soon(monitor._read, name=f"monitor {wire_link.path}")
    except errors.Disconnected as error:
        wire_link.close()
        # Somebody took us in before he left: that nobody is there has not been seen.
        raise errors.MonitorGone(path=wire_link.path, reason=str(error), met=True) from None
    except BaseException:
        wire_link.close()
        raise
    return monitor


async def _negotiate(
    wire_link: link.Link, session: str, patience: float, on_state: Callable[[State], None]
) -> tuple[int, int, int]:
    state = State.CONNECTING
    on_state(state)

    async def receive() -> bytes:
        nonlocal state
        while True:
            with trio.move_on_after(patience):
                return await wire_link.receive()
            seen = State.TAKEN if wire_link.other_is_served() else State.HUNG
            if seen is not state:
                state = seen
                on_state(state)

    line = await receive()
    greeting = wire.parse(line)
    if not isinstance(greeting, wire.Greeting):
        raise errors.MonitorGarbage(reason="no greeting", excerpt=wire.excerpt(line))
    ident = f"{session}.0"
    await wire_link.send(wire.command("qmp_capabilities", None, ident))
    while True:
        match wire.parse(await receive()):
            case wire.Reply(id=known) if known == ident:
                on_state(State.READY)
                return greeting.version
            case wire.Failure(id=known, desc=desc) if known == ident:
                raise errors.MonitorGarbage(reason="refuses to negotiate", excerpt=desc[:200])
            case _:
                pass  # an event, or the answer to what the client before us had asked


def _debug(text: str, *args: object, **facts: object) -> None:
    if _level.isEnabledFor(logging.DEBUG):
        _log.debug(text % args, **facts)
