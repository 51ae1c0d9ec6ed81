"""The daemon's side of the control protocol for tests: a real HTTP/1.1 server on a unix socket, with scripted answers.

It is a peer, not a mock: the client under test is the whole program and speaks to a real socket.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


class Answer:
    """An answer: a status and a body; or ``pieces`` of a chunked body, sent as they come."""

    def __init__(
        self, body: Json | bytes = b"", status: int = 200, pieces: Iterable[bytes] | None = None
    ) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.pieces = pieces


class Hangup:
    """No answer at all: the connection ends, after these bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data


class Request:
    def __init__(self, method: str, target: str, body: Json | None) -> None:
        self.method = method
        self.target = target
        self.body = body
        self.line = f"{method} {target}"


Handler = Callable[[Request], Answer | Hangup]


def error(
    message: str, code: str = "refused", status: int = 409, kind: str = "refused", exit_status: int = 1
) -> Answer:
    return Answer({"error": error_object(message, code, kind, exit_status)}, status)


def error_object(message: str, code: str = "refused", kind: str = "refused", exit_status: int = 1) -> Json:
    return {"code": code, "kind": kind, "status": exit_status, "message": message, "facts": {}}


def event(operation: Json) -> bytes:
    return b"event: operation\ndata: " + json.dumps(operation).encode() + b"\n\n"


class Peer:
    """Listens in a thread until the ``with`` ends; ``requests`` is what came."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self.requests: list[Request] = []
        self._handler = handler
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.path.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the peer still waits for its script"

    def lines(self) -> list[str]:
        return [request.line for request in self.requests]

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            line = stream.readline().decode().split()
            if not line:
                return
            length = 0
            while (header := stream.readline().strip()) != b"":
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            data = stream.read(length)
            request = Request(line[0], line[1], json.loads(data) if data else None)
            self.requests.append(request)
            answer = self._handler(request)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client may leave at any time
                _send(connection, answer)


def _send(connection: socket.socket, answer: Answer | Hangup) -> None:
    if isinstance(answer, Hangup):
        connection.sendall(answer.data)
        return
    head = f"HTTP/1.1 {answer.status} Whatever\r\nConnection: close\r\n"
    if answer.pieces is None:
        head += f"Content-Length: {len(answer.body)}\r\n\r\n"
        connection.sendall(head.encode() + answer.body)
        return
    connection.sendall(
        head.encode() + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for piece in answer.pieces:
        connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")
