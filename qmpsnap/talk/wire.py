"""QMP as bytes: lines out of chunks, messages out of lines. Does no I/O.

The framing is ours, the rest is qemu.qmp's (`Message`, `models`), which imports no asyncio for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from qemu.qmp import models
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from qmpsnap import errors

# The longest answer that we ask for is query-block, about 0.1 MB for a chain of 200 images: 80 such disks have room. Read as
# text a line can need four times its bytes, and a peer that is not QEMU shall not fill our memory.
LINE_LIMIT = 8 * 1024 * 1024

# Up to 1024 events are kept for a reader that is slow. QEMU's own have less than 1 KiB and 50 values, but for an error's text.
EVENT_LIMIT = 16 * 1024
EVENT_VALUES_LIMIT = 500

# An error is shown to people and kept with its operation; QEMU's are a sentence and a path or two.
DESC_LIMIT = 16 * 1024

# Read, a value of three bytes ("[],") takes seventy: 8 MB of them would take 200.
VALUES_LIMIT = 500_000
_FEW = 1024 * 1024  # no line up to this length can hold too many

EXCERPT = 80

# What JSON can write and no QEMU says: a NUL, and half a character, which nothing can store or pass on.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


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
            start = bytes(self._rest[: EXCERPT + 1])
            self._rest.clear()
            raise _garbage(f"line longer than {self._limit} bytes", start)
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
        _check_raw(line)
        message = Message(line)
        _check_texts(line, message)
        if "event" in message:
            return _event(message, line)
        return _classify(message)
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


def _check_raw(line: bytes) -> None:
    if b"\0" in line:  # Python would guess UTF-16 from it
        raise ValueError("a byte is zero")
    if len(line) > _FEW and _values(line) > VALUES_LIMIT:
        raise ValueError(f"more than {VALUES_LIMIT} values")


def _values(line: bytes) -> int:
    """How many values the line holds, or more: commas and brackets in texts count, too."""
    return sum(map(line.count, (b",", b"[", b"{")))


def _check_texts(line: bytes, message: Message) -> None:
    if _SUSPECT.search(line) and any(map(_NO_TEXT.search, _texts(dict(message)))):
        raise ValueError("a text holds a NUL or half a character")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _classify(message: Message) -> Greeting | Reply | Failure:
    ident = message.get("id")
    known = ident if isinstance(ident, str) else None
    if "return" in message:
        return Reply(known, message["return"])
    if "error" in message:
        error = models.ErrorResponse(message).error
        return Failure(known, error.class_, error.desc[:DESC_LIMIT])
    if "QMP" in message:
        return _greeting(models.Greeting(message).QMP)
    raise TypeError("no QMP message has these members")


def _event(message: Message, line: bytes) -> Event:
    if len(line) > EVENT_LIMIT:
        raise ValueError(f"an event longer than {EVENT_LIMIT} bytes")
    if _values(line) > EVENT_VALUES_LIMIT:
        raise ValueError(f"an event with more than {EVENT_VALUES_LIMIT} values")
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
