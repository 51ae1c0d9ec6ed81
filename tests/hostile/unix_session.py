"""A requests session whose every URL leads to one unix socket: how schemathesis reaches the real server."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import requests
import requests.adapters
import urllib3
import urllib3.connection

from tests.lab.qmp import PATIENCE


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("qmpsnap", timeout=PATIENCE)
        self._path = path

    def _new_conn(self) -> urllib3.connection.HTTPConnection:
        return _Connection(self._path)


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("qmpsnap", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,
        proxies: Mapping[str, str] | None = None,
        cert: tuple[str, str] | str | None = None,
    ) -> urllib3.HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


def connect(path: Path) -> requests.Session:
    """A session for ``http://qmpsnap/…``; close it at the end."""
    session = requests.Session()
    session.trust_env = False  # no proxy of the host's
    session.mount("http://", _Adapter(path))
    return session
