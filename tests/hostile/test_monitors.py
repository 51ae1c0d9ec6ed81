"""Many monitors that misbehave, each in its own way, all at once: each costs its own domain and nobody else."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

import pytest

from tests import requires
from tests.hostile.conftest import Ward
from tests.hostile.misbehaviour import CASES, Case
from tests.lab import fake_qemu
from tests.lab.images import MIB
from tests.lab.qmp import PATIENCE

pytestmark = requires.requires_qemu

# One line at a time is read, 8 MiB of it: kept twice, and as text four times. Three monitors have sent such a line in part.
AT_MOST = (8 * (2 + 4) + 3 * 8 + 24) * MIB

# What stays is a domain for each case, of less than 100 KiB, and what the allocator has not given back.
AFTERWARDS = 64 * MIB


class Late:
    """A good session that, while ``hold`` is set, keeps its answers back; they come before the next one."""

    def __init__(self) -> None:
        self.hold = False
        self.held = threading.Event()
        self.late = 0

    async def __call__(self, link: fake_qemu.Link) -> None:
        kept: list[fake_qemu.Message] = []
        await link.send(fake_qemu.GREETING)
        while (request := await link.request()) is not None:
            kept += link.respond(request)
            if self.hold:
                self.held.set()
                continue
            self.late += len(kept) - 1
            await link.send(*kept)
            kept.clear()


def _healthy(ward: Ward, name: str) -> None:
    """Snapshots, looks and lists are made as ever."""
    made = ward.daemon.ok("snapshot-create-as", "rose", name, "--disk-only")
    assert made == f"Domain snapshot {name} created\n"
    assert ward.daemon.disk("rose")["chain"][0]["file"].endswith(f".{name}")
    assert len(ward.daemon.get("/domains")["domains"]) == len(ward.sick) + 1
    assert ward.daemon.get("/domains/rose")["monitor"]["state"] == "ready"


def test_everybody_else_is_served(ward: Ward) -> None:
    _healthy(ward, "meanwhile")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_domain_says_what_is_wrong(ward: Ward, case: Case) -> None:
    """One state, and one short line that says why; who asks for the machine gets the same line."""
    found = ward.daemon.until(str(case), lambda domain: domain["monitor"]["state"] == case.state)
    assert re.search(case.detail, found["monitor"]["detail"])
    if case.state == "ready":
        assert found["monitor"]["detail"] == ""
        return
    refusal = ward.daemon.api("POST", f"/domains/{case}/pull", {"disk": "vda"}).error
    assert refusal["code"] in {"no-monitor", "not-running"}
    assert len(refusal["message"]) < 20_000
    assert "\n" not in refusal["message"]


def test_memory_is_bounded(ward: Ward) -> None:
    _healthy(ward, "in-the-end")
    now = ward.memory()
    assert now["VmHWM"] < ward.before["VmRSS"] + AT_MOST
    assert now["VmRSS"] < ward.before["VmRSS"] + AFTERWARDS


def test_who_behaves_again_is_served_again(ward: Ward) -> None:
    for case in CASES:
        ward.peers.behave(ward.sick[str(case)])
    for case in CASES:
        found = ward.daemon.ready(str(case))
        assert (found["state"], found["monitor"]["detail"]) == ("running", "")
        assert ward.daemon.disk(str(case))["source"].endswith("/top.qcow2")
    _healthy(ward, "afterwards")


def test_an_answer_that_comes_when_its_client_has_left(ward: Ward) -> None:
    """It is nobody's: the next client gets its own."""
    peer = Late()
    ward.admit([Case("late", peer, "ready")])
    ward.daemon.ready("late")
    peer.hold = True
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(ward.daemon.socket))
        client.sendall(b"GET /v1/domains/late/disks HTTP/1.1\r\nHost: q\r\n\r\n")
        assert peer.held.wait(PATIENCE)
    peer.hold = False
    assert ward.daemon.disk("late")["source"].endswith("/top.qcow2")
    assert peer.late > 0
    assert ward.daemon.get("/domains/late")["monitor"]["state"] == "ready"


def test_who_waits_for_a_domain_that_is_detached(ward: Ward) -> None:
    """One request waits for QEMU, the next for its turn: both are told, and not left to wait for ever."""
    peer = Late()
    ward.admit([Case("left", peer, "ready")])
    ward.daemon.ready("left")
    peer.hold = True
    body = b'{"disk": "vda"}'
    post = b"POST /v1/domains/left/pull HTTP/1.1\r\nHost: q\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for client in clients:
            client.settimeout(PATIENCE)
            client.connect(str(ward.daemon.socket))
            client.sendall(post)
        assert peer.held.wait(PATIENCE)
        assert ward.daemon.get("/domains/left")["monitor"]["state"] == "ready"
        assert ward.daemon.api("DELETE", "/domains/left").status == 204
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 503 ")


def test_nothing_of_it_is_a_bug(ward: Ward) -> None:
    assert "Traceback" not in ward.daemon.log
    assert "Domain failed" not in ward.daemon.log
