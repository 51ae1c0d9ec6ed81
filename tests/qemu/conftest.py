"""Stories on real QEMU: the daemon is a process, the client is a process, and so is QEMU."""

import itertools

import pytest

from tests import requires
from tests.lab import qemu
from tests.lab.daemon import daemon, daemons, shared_daemon

__all__ = ["daemon", "daemons", "shared_daemon"]

_count = itertools.count(1)


@pytest.fixture(params=["qemu", "other-qemu"])
def emulator(request: pytest.FixtureRequest) -> str:
    """The QEMU under test, and then the second one."""
    return requires.other_qemu() if request.param == "other-qemu" else qemu.qemu_binary()


@pytest.fixture
def name() -> str:
    """A domain's name that no other test of the session has."""
    return f"daisy{next(_count)}"
