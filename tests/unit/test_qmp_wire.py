"""Lines out of chunks, messages out of lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap import errors
from qmpsnap.talk import wire


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip())), st.data())
def test_lines_do_not_depend_on_the_chunks(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter, seen = wire.Splitter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        seen += splitter.feed(stream[:size])
        stream = stream[size:]
    assert seen == lines
    assert not splitter.unfinished


def test_blank_lines_and_carriage_returns_are_nothing() -> None:
    splitter = wire.Splitter()
    assert splitter.feed(b"\r\n\n  \n{}\r\n\r") == [b"{}\r"]
    assert not splitter.unfinished


def test_an_endless_line_is_refused_at_the_limit() -> None:
    splitter = wire.Splitter(limit=100)
    assert splitter.feed(b"x" * 100) == []
    with pytest.raises(errors.MonitorGarbage, match=r"longer than 100 bytes: x{80}[.]{3}$"):
        splitter.feed(b"x")


def test_what_qemu_says_is_told_apart() -> None:
    greeting = (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}\r'
    )
    assert wire.parse(greeting) == wire.Greeting((7, 2, 22), ("oob",))
    stamp = b'"timestamp": {"seconds": 2, "microseconds": 500000}'
    assert wire.parse(b'{%s, "event": "STOP"}' % stamp) == wire.Event("STOP", {}, 2.5)
    assert wire.parse(b'{"event": "E", "data": {"a": 1}}') == wire.Event("E", {"a": 1}, -1)
    assert wire.parse(b'{"return": [], "id": "7"}') == wire.Reply("7", [])
    assert wire.parse(b'{"return": {}, "id": [1]}') == wire.Reply(None, {})
    error = b'{"id": "7", "error": {"class": "GenericError", "desc": "no"}}'
    assert wire.parse(error) == wire.Failure("7", "GenericError", "no")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"<html>", "Failed to deserialize QMP message: <html>"),
        (b"[1]", "QMP message is not a JSON object"),
        (b"{}", "no QMP message has these members"),
        (b'{"return": "\xff"}', "not UTF-8 at byte 12"),
        (b"[" * 100_000, r"nested too deep: \[{80}[.]{3}$"),
        (b'{"return": ' + b"[" * 100_000, "nested too deep"),
        (b'{"return": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"event": "E", "timestamp": {"seconds": 1' + b"0" * 400 + b"}}", "int too large"),
        (b'{"event": 1}', "wrong types"),
        (b'{"error": {"desc": "no class"}}', "requires 'class' member"),
        (b'{"QMP": {"version": {}, "capabilities": []}}', "without QEMU's version"),
        (b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}', "minor"),
        (b"{\r", "pretty=on"),
        (b'{"return": "a\\u0000b"}', "a NUL or half a character"),
        (b'{"return": {"\\ud800": 1}}', "a NUL or half a character"),
        ('{"return": "\\ud800"}'.encode("utf-16-le"), "a byte is zero"),
        (b'{"event": "E", "data": "' + b"x" * wire.EVENT_LIMIT + b'"}', "an event longer than"),
        (b'{"event": "E", "data": {"x": [' + b"1," * 500 + b"1]}}", "more than 500 values"),
        (b'{"return": [' + b"{}," * wire.VALUES_LIMIT + b"{}]}", "more than 500000 values"),
        (b"\x1b[31m\x00\n", r"\\x1b\[31m\\x00"),
    ],
)
def test_garbage_is_told_in_one_short_printable_line(line: bytes, reason: str) -> None:
    with pytest.raises(errors.MonitorGarbage, match=reason) as caught:
        wire.parse(line)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_texts_that_only_look_bad_are_left_alone() -> None:
    """Pairs that make one character, and a backslash that is written as one."""
    line = rb'{"return": ["\ud83d\ude00", "\\u0000", "\\ud800"]}'
    assert wire.parse(line) == wire.Reply(None, ["\N{GRINNING FACE}", "\\u0000", "\\ud800"])


def test_a_long_refusal_is_cut() -> None:
    line = json.dumps({"error": {"class": "E", "desc": "x" * 100_000}, "id": "1"}).encode()
    assert wire.parse(line) == wire.Failure("1", "E", "x" * wire.DESC_LIMIT)


@given(st.binary())
def test_any_bytes_are_a_message_or_garbage(raw: bytes) -> None:
    with pytest.raises(errors.MonitorGarbage):
        wire.parse(raw)


members = st.sampled_from(
    ["QMP", "event", "data", "timestamp", "return", "error", "id", "version", "qemu", "class", "desc"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab\0", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(members, json_values, max_size=4))
def test_any_object_is_a_message_or_garbage(value: dict[str, object]) -> None:
    try:
        message = wire.parse(json.dumps(value).encode())
    except errors.MonitorGarbage:
        return
    assert isinstance(message, wire.Greeting | wire.Event | wire.Reply | wire.Failure)


def test_a_command_is_one_line_with_its_dashes() -> None:
    line = wire.command("block-job-cancel", {"device": "a\nb", "force": True}, "s.1")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "execute": "block-job-cancel",
        "id": "s.1",
        "arguments": {"device": "a\nb", "force": True},
    }
    assert b"arguments" not in wire.command("stop", None, "s.2")


def test_what_json_cannot_hold_is_a_bug_of_the_caller() -> None:
    with pytest.raises(TypeError):
        wire.command("stop", {"x": {1}}, "s.1")
