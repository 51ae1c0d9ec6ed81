"""Whether a machine may start now: it does not run, nobody changes it, and no operation on it is undecided. Blocking.

The machine's lock, ``run/domain/NAME/lock``, is an flock(2) that QEMU inherits and so holds until it ends. It makes a second
start fail before it can take the first one's monitor path away, and whoever changes the layers of a powered-off machine holds
it meanwhile: between our look at the record and QEMU's own locks on the images nobody else can move the active layer.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time

import attrs

from qmpsnap import errors, paths
from qmpsnap.talk import files

# How long a start waits for others unless told otherwise: recovery asks qemu-img about a few overlays and fsyncs.
PATIENCE = 30.0
# Between two looks at the journal and the locks, which give no event: short beside a boot, long beside the two system calls.
_POLL = 0.05


@attrs.frozen
class Gate:
    """The way to a start of ``domain``; waiting ends at ``deadline`` (of time.monotonic)."""

    paths: paths.Paths
    domain: str
    deadline: float

    @property
    def _lock(self) -> str:
        return f"{self.paths.machine_dir(self.domain)}/lock"

    def enter(self) -> int:
        """The machine's lock, to be inherited by QEMU; while it is held the machine's record does not change.

        ``DomainRunning`` at once; ``DomainStarting`` or ``JournalOpen`` when the deadline has passed.
        """
        while True:
            self._refuse_running()
            self._settle()
            lock = self._try_lock()
            if lock is not None and not self.undecided():
                return lock
            if lock is not None:
                os.close(lock)
            elif self._late():
                raise errors.DomainStarting(domain=self.domain, file=self._lock)
            time.sleep(_POLL)

    def undecided(self) -> list[str]:
        """The operations that are open: what is active is not known until recovery has decided."""
        folder = self.paths.journal_dir(self.domain)
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise errors.FileFailed(act="read", file=folder, reason=os.strerror(error.errno or 0)) from error

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _refuse_running(self) -> None:
        """A path without a listener is of a machine that has ended: QEMU replaces it."""
        monitor = self.paths.monitor(self.domain)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            try:
                client.connect(monitor)
            except BlockingIOError:
                pass  # its queue is full: somebody listens
            except (FileNotFoundError, ConnectionRefusedError):
                return
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                raise errors.FileFailed(act="connect to", file=monitor, reason=reason) from error
        raise errors.DomainRunning(domain=self.domain, monitor=monitor)

    def _settle(self) -> None:
        """The journal is empty: a daemon has seen to it, or, where none runs, the same recovery in this process."""
        while open_ones := self.undecided():
            try:
                state = files.lock(self.paths.lock)
            except errors.StateInUse:
                if self._late():
                    reason = "qmpsnapd has not settled it yet; its log tells why"
                    raise self._open(open_ones, reason) from None
                time.sleep(_POLL)
                continue
            self._recover(state)

    def _recover(self, state: int) -> None:
        # Here, because these are heavy and needed after a crash only.
        import structlog

        from qmpsnap.own import offline

        # Standard output is the machine's: `-serial stdio`, `-qmp stdio`.
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )

        try:
            offline.recover(self.paths, self.domain)
        finally:
            os.close(state)
        if left := self.undecided():
            raise self._open(left, "recovery could not settle it")

    def _open(self, entries: list[str], reason: str) -> errors.Error:
        return errors.JournalOpen(domain=self.domain, entries=", ".join(entries), reason=reason)

    def refuse_undecided(self) -> None:
        """``JournalOpen`` at once, for who only wants to see what would be started."""
        if open_ones := self.undecided():
            raise self._open(open_ones, "which layer is active is decided when the machine is started")

    def _try_lock(self) -> int | None:
        files.make_folder(self.paths.machines, 0o755)
        files.make_folder(self.paths.machine_dir(self.domain), 0o750)
        try:
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.FileFailed(
                act="open", file=self._lock, reason=os.strerror(error.errno or 0)
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock
