"""The other end of `daemons`: imports everything once, then each start of a daemon or of a proxy is a fork of a few milliseconds.

A thousand cuts need two thousand daemons; what they run is `qmpsnap.daemon.main`, as `python -m qmpsnap.daemon` does. Requests
are lines of JSON on standard input, the answer to each is a process id.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from typing import Any

from qmpsnap import daemon, faults
from tests.crash import lossy, proxy

_PR_SET_PDEATHSIG = 1


def _become(request: dict[str, Any]) -> int:
    # Nothing outlives the tests: the child dies with this process, which dies with its standard input. A mount would: its process
    # is told to end, and unmounts.
    death = signal.SIGTERM if request["what"] == "lossy" else signal.SIGKILL
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in (null, 0), (log, 1), (log, 2):
        os.dup2(fd, target)
    os.environ.update(request["env"])
    if request["what"] == "proxy":
        return proxy.main(*request["arguments"])
    if request["what"] == "lossy":
        return lossy.main(*request["arguments"])
    importlib.reload(faults)  # it reads the environment when it is imported
    return daemon.main(request["arguments"])


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _become(json.loads(line))
            finally:
                os._exit(status)
        # Children are not reaped: a pid is not used again while somebody may still ask for its process.
        print(pid, flush=True)


if __name__ == "__main__":
    main()
