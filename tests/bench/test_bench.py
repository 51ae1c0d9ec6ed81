"""The bench works: every part of it gives rows. What they say depends on the host, and is no test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench import __main__ as bench
from tests.bench import timing
from tests.bench.rig import Rig


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig.open(quick=True, with_libvirt=True) as found:
        yield found


@pytest.mark.qemu
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.guest if name == "pause" else ()) for name in bench.BENCHES]
)
def test_each_gives_rows(name: str, rig: Rig) -> None:
    rows = list(bench.BENCHES[name](rig))

    assert rows
    assert all(row.ours >= 0 for row in rows)
    assert all(row.theirs is None or row.theirs > 0 for row in rows)


def test_the_table_says_what_was_missed() -> None:
    rows = [
        timing.Row("create", 20.0, "ms", "raw QMP", 10.0, 1.25),
        timing.Row("list", 20.0, "ms", "virsh", 40.0, 1.3),
        timing.Row("fsync", 1234.5),
        timing.Row("pull", 5.0, "ms", "virsh", None, 0.15),
    ]

    assert timing.table(rows).splitlines() == [
        "what    qmpsnap  against           ratio     goal  met",
        "------------------------------------------------------",
        "create  20.0 ms  raw QMP  10.0 ms   2.00  <= 1.25  NO",
        "list    20.0 ms  virsh    40.0 ms   0.50  <= 1.30  yes",
        "fsync   1234 ms",
        "pull     5.0 ms  virsh                    <= 0.15",
    ]


def test_samples_take_turns() -> None:
    order: list[str] = []

    def way(name: str) -> timing.Way:
        def act() -> dict[str, float]:
            order.append(name)
            return {name: float(len(order))}

        return act

    samples = timing.interleave(2, [way("a"), way("b")])

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"b": [3.0, 6.0], "a": [4.0, 5.0]}
