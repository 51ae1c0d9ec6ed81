"""QMP as bytes: lines out of chunks, messages out of lines. Does no I/O.

The framing is ours, the rest is qemu.qmp's (`Message`, `models`), which imports no asyncio for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from qemu.qmp import models
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from qmpsnap import errors

# query-named-block-nodes, not flat, of a chain of 200 images has 10.1 MB (facts/qemu.md, depth table);
# no answer of a sane QEMU is three times that, and a peer that is not QEMU shall not fill our memory.
LINE_LIMIT = 32 * 1024 * 1024

EXCERPT = 80


@attrs.frozen
class Greeting:
    version: tuple[int, int, int]
    capabilities: tuple[str, ...]


@attrs.frozen
class Event:
    """What QEMU announced; ``timestamp`` in seconds of the host's clock, negative when QEMU had none."""

    name: str
    data: Mapping[str, Any]
    timestamp: float


@attrs.frozen
class Reply:
    """A command's result; ``id`` is None unless it is a string, as all of ours are."""

    id: str | None
    value: Any


@attrs.frozen
class Failure:
    """A command's error, or with no id what QEMU thinks of a line that it could not parse."""

    id: str | None
    qemu_class: str
    desc: str


class Splitter:
    """Cuts a stream into lines without their ends; keeps at most ``limit`` bytes of an unfinished one."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether the stream, if it ended here, would end within a line."""
        return bool(self._rest.strip())

    def feed(self, chunk: bytes | bytearray) -> list[bytes]:
        """Return the lines that this chunk completes, blank ones left out.

        Raises MonitorGarbage for a line over the limit; the splitter is of no use afterwards.
        """
        # only the new chunk is searched: a long line costs no more per byte than a short one
        first, *others = chunk.split(b"\n")
        self._rest += first
        if len(self._rest) > self._limit:
            raise _garbage(f"line longer than {self._limit} bytes", bytes(self._rest[: EXCERPT + 1]))
        if not others:
            return []
        lines = [bytes(self._rest), *map(bytes, others[:-1])]
        self._rest = bytearray(others[-1])
        return [line for line in lines if not line.isspace() and line]


def excerpt(raw: bytes, limit: int = EXCERPT) -> str:
    """Render the start of raw bytes printable, on one line, and say if there was more."""
    shown = repr(raw[:limit])[2:-1]
    return shown if len(raw) <= limit else f"{shown}..."


def command(name: str, arguments: Mapping[str, Any] | None, ident: str) -> bytes:
    """Return one command as a line. TypeError or ValueError if JSON cannot hold the arguments."""
    message: dict[str, object] = {"execute": name, "id": ident}
    if arguments is not None:
        message["arguments"] = dict(arguments)
    return bytes(Message(message)) + b"\n"


def parse(line: bytes) -> Greeting | Event | Reply | Failure:
    """Return the message that a line holds; raise MonitorGarbage if it holds none.

    The raw line hangs on no exception: those of qemu.qmp print all of it in their tracebacks.
    """
    try:
        return _classify(Message(line))
    except RecursionError:
        reason = "nested too deep"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    except ProtocolError as error:
        reason = error.error_message.rstrip(".")
        if line.strip() == b"{":
            reason = "a message over many lines (a monitor with pretty=on?)"
    except (ValueError, OverflowError, KeyError, TypeError) as error:
        # ValueError: also an integer of more than 4300 digits; OverflowError: one too great for a float
        reason = excerpt(str(error.args[0]).encode())
    raise _garbage(reason, line)


def _classify(message: Message) -> Greeting | Event | Reply | Failure:
    if "event" in message:
        return _event(message)
    ident = message.get("id")
    known = ident if isinstance(ident, str) else None
    if "return" in message:
        return Reply(known, message["return"])
    if "error" in message:
        error = models.ErrorResponse(message).error
        return Failure(known, error.class_, error.desc)
    if "QMP" in message:
        return _greeting(models.Greeting(message).QMP)
    raise TypeError("no QMP message has these members")


def _event(message: Message) -> Event:
    name, data, stamp = message["event"], message.get("data", {}), message.get("timestamp", {})
    if not isinstance(name, str) or not isinstance(data, Mapping) or not isinstance(stamp, Mapping):
        raise TypeError("an event's members have the wrong types")
    return Event(name, data, float(stamp.get("seconds", -1)) + float(stamp.get("microseconds", 0)) / 1e6)


def _greeting(greeting: models.QMPGreeting) -> Greeting:
    qemu = greeting.version.get("qemu")
    if not isinstance(qemu, Mapping):
        raise TypeError("a greeting without QEMU's version")
    version = int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"])
    return Greeting(version, tuple(map(str, greeting.capabilities)))


def _garbage(reason: str, raw: bytes) -> errors.MonitorGarbage:
    return errors.MonitorGarbage(reason=reason, excerpt=excerpt(raw))
