"""The real libvirtd beside our own daemon: the host's, and then another version in a tree of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requires
from tests.lab.daemon import daemon, daemons, shared_daemon
from tests.libvirt.libvirtd import Libvirtd

__all__ = ["daemon", "daemons", "shared_daemon"]


@pytest.fixture(scope="session", params=["host", "tree"])
def namespaces(request: pytest.FixtureRequest) -> Iterator[Libvirtd]:
    with Libvirtd(requires.libvirt_tree() if request.param == "tree" else None) as found:
        yield found


@pytest.fixture
def libvirt(namespaces: Libvirtd) -> Libvirtd:
    """No libvirtd runs yet, and it has no domains."""
    namespaces.reset()
    return namespaces


@pytest.fixture
def state(short_dir: Path) -> Path:
    """Our state directory, for what is written by value."""
    return short_dir / "state"
