"""QEMU 7.2 dies when it is asked for its nodes while a stream is concluded and not dismissed: the daemon never asks so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import requires
from tests.crash import check, world
from tests.lab import qemu

pytestmark = requires.requires_qemu


def conclude_stream(w: world.World) -> None:
    """Somebody else's stream on vda has ended, and waits to be dismissed."""
    node = w.qemu.backend(world.GUEST["vda"])["inserted"]["node-name"]
    w.qemu.qmp("block-stream", job_id="theirs", device=node, auto_dismiss=False)
    w.qemu.event("JOB_STATUS_CHANGE", status="concluded", id="theirs")


def test_no_look_kills_qemu(make_world: Callable[[], world.World]) -> None:
    """It joins, looks, lists, and works on another disk; the job is left to whoever has started it."""
    with make_world() as w:
        w.snapshot()
        conclude_stream(w)
        for restart in False, True:
            if restart:
                w.daemon.start()
                w.wait_settled(live=True)
            w.daemon.must("GET", f"{world.API}/disks")
            w.daemon.must("GET", f"{world.API}/jobs")
            name = w.new_name()
            w.freeze(name)
            only = [{"target": "vda", "snapshot": "no"}]
            w.daemon.must("POST", f"{world.API}/snapshots?wait=true", {"name": name, "disks": only})
            w.write("vdb")
            w.daemon.must("POST", f"{world.API}/pull?wait=true", {"disk": "vdb"})
        assert [job["status"] for job in w.qemu.qmp("query-jobs")] == ["concluded"]
        w.qemu.qmp("job-dismiss", id="theirs")

        assert check.problems(w, live=True) == []


def test_a_look_at_the_nodes_would(make_world: Callable[[], world.World]) -> None:
    """The danger is real: the test above can fail."""
    if qemu.version() >= (10, 0, 0):
        pytest.skip("QEMU 10 has no such bug")
    with make_world() as w:
        w.snapshot()
        w.daemon.kill()
        conclude_stream(w)
        with pytest.raises(EOFError):
            w.qemu.qmp("query-named-block-nodes", flat=True)

        assert w.qemu.wait() < 0
