"""A pull that is reported done survives the death of QEMU at that instant. QEMU's own does not: the tests can fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests import requires
from tests.crash import check, conftest, cut, world
from tests.lab import qemu

pytestmark = requires.requires_qemu

ROUNDS = int(os.environ.get("QMPSNAP_CRASH_ROUNDS", "5"))


def test_a_pull_that_is_done_is_durable(make_world: Callable[[], world.World], tally: conftest.Tally) -> None:
    """QEMU is killed as soon as the daemon has said so: the layer needs nothing below it any more, and holds everything."""
    lost = []
    with make_world() as w:
        for number in range(ROUNDS):
            target = world.TARGETS[number % 2]
            w.fill(target)
            w.snapshot()
            w.fill(target)
            w.snapshot()
            w.daemon.must("POST", f"{world.API}/pull?wait=true", {"disk": target})
            w.kill_machine()
            w.wait_settled(live=False)
            layer = (w.recorded() or {})[target]
            wrong = check.problems(w, live=False)
            if qemu.chain(layer) != [Path(layer)]:
                wrong.append(f"{layer} needs others still: {qemu.chain(layer)}")
            lost += wrong + cut.reboot(w)
    tally.add("pull that is done", "qemu", ROUNDS, len(lost))

    assert lost == []


def test_a_stream_that_is_completed_is_not(make_world: Callable[[], world.World]) -> None:
    """Why the pull is more than a block-stream: QEMU 7.2 drops the backing file before its tables are on disk."""
    lost = 0
    for _ in range(3):
        with make_world() as w:
            w.fill("vda")
            w.snapshot()
            w.daemon.kill()
            active = w.active("vda")
            node = w.qemu.backend(world.GUEST["vda"])["inserted"]["node-name"]
            w.qemu.qmp("block-stream", job_id="raw", device=node)
            w.qemu.event("BLOCK_JOB_COMPLETED")
            w.qemu.kill9()
            lost += bool(world.differing(active, w.content["vda"]))

    assert lost or qemu.version() >= (10, 0, 0)
