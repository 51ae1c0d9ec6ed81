"""The control socket and what comes through it."""

from __future__ import annotations

from qmpsnap.errors.base import Busy, Error, Refused


class ListenFailed(Refused):
    msg = "cannot listen on {self.path}: {self.reason}"
    code = "listen-failed"


class AlreadyRunning(ListenFailed):
    msg = "cannot listen on {self.path}: another daemon answers there"
    code = "already-running"


class NotASocket(ListenFailed):
    msg = "cannot listen on {self.path}: it exists and is not a socket, so it is left alone"
    code = "not-a-socket"


class BadHttp(Refused):
    """Not HTTP/1.1, or not a form of it that we read."""

    msg = "malformed HTTP request: {self.reason}"
    code = "bad-http"
    http = 400


class HttpTimeout(Refused):
    msg = "the request's {self.part} took longer than {self.seconds:g} seconds"
    code = "http-timeout"
    http = 408


class BodyTooLarge(Refused):
    msg = "the request's body is larger than {self.limit} bytes"
    code = "body-too-large"
    http = 413


class HeadTooLarge(Refused):
    msg = "the request's head is larger than {self.limit} bytes"
    code = "head-too-large"
    http = 431


class TooManyConnections(Busy):
    msg = "too many connections{self.whose}"
    code = "too-many-connections"
    http = 503


class TooMuch(Busy):
    """What all clients send at the same moment is limited, too."""

    msg = "the bodies of all requests together are larger than {self.limit} bytes"
    code = "too-much"
    http = 503


class NoRoute(Refused):
    msg = "{self.method} {self.path}: {self.reason}"
    code = "no-route"
    http = 404


class InternalError(Error):
    """A bug of ours: the log has its traceback, the client only learns that there is one."""

    msg = "internal error; the daemon's log tells more"
    code = "internal"
