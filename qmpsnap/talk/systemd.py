"""What systemd wants to hear: sd_notify(3), in a datagram."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Tells the service manager; without one ($NOTIFY_SOCKET is not set, or nobody listens there) nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # Whoever started us may be gone: that is no reason to stop (sd_notify(3): ignore what it returns).
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(address)
        sock.sendall(state.encode())


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1, a third of what systemd waits; None when it does not wait for any."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not wanted.isdecimal():
        return None
    return int(wanted) / 3e6
