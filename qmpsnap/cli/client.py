"""A small blocking HTTP/1.1 client for one unix socket: a connection for each request.

``http.client`` would cost more to import (email, ssl) than a whole verb takes.
"""

from __future__ import annotations

import errno
import json
import os
import socket

from qmpsnap.cli.failure import Answered, Failure, Lost, Unreachable
from qmpsnap.cli.wire import ANSWER_TIMEOUT, Stream, send, server_sent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    _Dict = dict[str, Any]
else:
    _Dict = dict


class Document(_Dict):
    """A JSON object of an answer; a key that the contract promises and the answer lacks fails in one line."""

    def __missing__(self, key: str) -> Any:
        raise Failure(f"internal error: the daemon's answer lacks '{key}'")


def default_socket() -> str:
    """Where the daemon listens for this user, as ``paths.find`` decides it there (which imports attrs)."""
    name = "qmpsnap.sock"
    root = os.environ.get("QMPSNAP_ROOT")
    if root:
        return os.path.join(root, "run", name)
    if os.geteuid() == 0:
        return f"/run/qmpsnap/{name}"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return os.path.join(runtime, "qmpsnap", name)


def socket_path(connect: str | None) -> str:
    """The socket that ``--connect`` means; a libvirt URI in a script written for virsh means the usual one."""
    if connect is None or connect in ("qemu:///system", "qemu:///session"):
        return default_socket()
    return connect


def segment(text: str) -> str:
    """One segment of a URL's path; a name of dots stays a name."""
    data = _encoded(text)
    if data.strip(b".") == b"":
        return "%2E" * len(data)
    return "".join(chr(b) if (b < 128 and chr(b).isalnum()) or b in b"-._~" else f"%{b:02X}" for b in data)


class Client:
    """The daemon's API at one socket.

    Raises Unreachable (nothing happened), Lost (the outcome is unknown) or Answered (the daemon's own error).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        #: Seconds without a byte from the daemon after which it is given up.
        self.patience = ANSWER_TIMEOUT

    def get(self, target: str) -> Document:
        return self.send("GET", target)

    def send(self, method: str, target: str, body: dict[str, object] | None = None) -> Document:
        """The answer as a Document, empty when there is none (204).

        Lost says, for a request that changes something, that its outcome is unknown; exit status 2.
        """
        try:
            data = self._exchange(method, target, body)
        except Lost as e:
            if method == "GET":
                raise
            raise _undecided(e) from e
        return _decode(data) if data else Document()

    def text(self, target: str) -> str:
        return self._exchange("GET", target, None).decode("utf-8", "replace")

    def change(self, method: str, target: str, body: dict[str, object] | None = None) -> Iterator[Document]:
        """A request that becomes an operation: its states as they come, in the answer itself.

        Raises Lost when the daemon goes away; before the first state nobody can say whether the request was carried out.
        """
        heard = False
        try:
            for operation in self._stream(method, target, body, None):
                heard = True
                yield operation
        except Lost as e:
            raise e if heard else _undecided(e) from e

    def events(self, target: str, deadline: float | None = None) -> Iterator[Document]:
        """Server-sent events as they come, until the daemon ends the stream.

        Raises DeadlinePassed when the monotonic clock reaches ``deadline`` first.
        """
        yield from self._stream("GET", target, None, deadline)

    def _stream(
        self, method: str, target: str, body: dict[str, object] | None, deadline: float | None
    ) -> Iterator[Document]:
        data = None if body is None else _encoded(json.dumps(body, ensure_ascii=False))
        with self._connect() as sock:
            stream = Stream(sock, deadline)
            send(sock, method, target, data, accept="text/event-stream")
            # Between two changes of an operation hours may pass; a daemon that dies ends the stream.
            sock.settimeout(None)
            status, headers = stream.head()
            if status >= 400:
                raise _error(status, b"".join(stream.body(headers)))
            pieces = stream.body(headers)
            # A daemon that has nothing to tell bit by bit answers with the one state there is.
            streamed = headers.get("content-type", "").startswith("text/event-stream")
            for data in server_sent(pieces) if streamed else [b"".join(pieces)]:
                yield _decode(data)

    def _exchange(self, method: str, target: str, body: dict[str, object] | None) -> bytes:
        data = None if body is None else _encoded(json.dumps(body, ensure_ascii=False))
        with self._connect() as sock:
            stream = Stream(sock)
            send(sock, method, target, data)
            status, headers = stream.head()
            answer = b"".join(stream.body(headers))
        if status >= 400:
            raise _error(status, answer)
        return answer

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.patience)
        try:
            sock.connect(self.path)
        except OSError as e:
            sock.close()
            raise _unreachable(self.path, e) from e
        return sock


def _undecided(lost: Lost) -> Lost:
    unknown = "whether the request was carried out is unknown: look before you repeat it"
    return Lost(*lost.lines, unknown, status=2)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise Failure("invalid argument: not valid UTF-8") from e


def _decode(data: bytes) -> Document:
    try:
        document = json.loads(data, object_hook=Document)
    except ValueError as e:
        raise Failure("internal error: the daemon's answer is not JSON") from e
    if not isinstance(document, Document):
        raise Failure("internal error: the daemon's answer is not a JSON object")
    return document


def _error(status: int, data: bytes) -> Failure:
    """The failure that an answer of 400 and above stands for, whatever its body is."""
    try:
        error = _decode(data)["error"]
    except Failure:
        error = None
    if isinstance(error, Document) and "message" in error:
        return answered(error)
    return Failure(f"internal error: the daemon answered {status} without saying why")


def answered(error: Document) -> Answered:
    """The failure for an ``error`` object of the API: of an answer, or of an operation."""
    status = error.get("status", 1)
    return Answered(
        str(error["message"]),
        code=str(error.get("code", "error")),
        kind=str(error.get("kind", "error")),
        status=status if isinstance(status, int) and 0 < status < 256 else 1,
    )


def _unreachable(path: str, error: OSError) -> Unreachable:
    advice = {
        errno.ENOENT: "is qmpsnapd running? Start it: systemctl start qmpsnapd",
        errno.ECONNREFUSED: "qmpsnapd does not listen. Start it: systemctl start qmpsnapd",
        errno.EACCES: "you may not use this socket: ask for its group, or run as root",
    }.get(error.errno or 0, "give another socket with --connect")
    reason = error.strerror or str(error)
    return Unreachable(
        "failed to connect to the daemon",
        f"Failed to connect socket to '{path}': {reason} ({advice})",
    )
