"""The marker writer's log: every kind of damage is counted."""

import dataclasses

from tests.lab.records import Records, check_log


def record(number: int) -> bytes:
    """A record as the guest's writer makes it."""
    text = f"S{number:012d} D0 T{number * 1000:012d} L{7:08d} "
    return f"{text}C{sum(text.encode()):08x}".ljust(63).encode() + b"\n"


GOOD = Records(count=5, first=1, last=5, bad=0, holes=0, tail=0)


def log(*numbers: int) -> bytes:
    return b"".join(record(number) for number in numbers)


def test_whole_log() -> None:
    assert check_log(log(1, 2, 3, 4, 5)) == GOOD
    assert GOOD.whole


def test_empty_log() -> None:
    assert check_log(b"") == Records(0, 0, 0, 0, 0, 0)


def test_hole() -> None:
    found = check_log(log(1, 2, 4, 5))
    assert found == dataclasses.replace(GOOD, count=4, holes=1)
    assert not found.whole


def test_changed_byte() -> None:
    """A flipped digit leaves the form intact; the sum tells."""
    data = bytearray(log(1, 2, 3, 4, 5))
    data[2 * 64 + 40] ^= 1
    found = check_log(bytes(data))
    assert found == dataclasses.replace(GOOD, count=4, bad=1, holes=1)
    assert not found.whole


def test_zeroed_record() -> None:
    found = check_log(log(1, 2, 3, 4, 5) + bytes(64))
    assert found == dataclasses.replace(GOOD, bad=1)
    assert not found.whole


def test_half_record_at_the_end() -> None:
    found = check_log(log(1, 2, 3, 4, 5) + record(6)[:30])
    assert found == dataclasses.replace(GOOD, tail=30)
    assert not found.whole


def test_repeated_record() -> None:
    assert not check_log(log(1, 2, 2, 3)).whole
