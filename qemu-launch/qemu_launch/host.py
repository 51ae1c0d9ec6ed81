"""What the host gives a machine: an accelerator that works, and a uuid that stays."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import uuid

# linux/kvm.h: _IO(KVMIO, 0x01).
_KVM_CREATE_VM = 0xAE01


def accelerator(device: str = "/dev/kvm") -> tuple[str, str]:
    """("kvm", "") where a machine can really be made with it, else ("tcg", why not).

    That the device can be opened says too little: in a container or a nested guest it may be there and make nothing.
    """
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
        finally:
            os.close(kvm)
    except OSError as error:
        return "tcg", f"{device}: {os.strerror(error.errno or 0)}"
    return "kvm", ""


def machine_uuid(domain: str, file: str = "/etc/machine-id") -> str:
    """A uuid for a domain that has none: the same at every start on this host, so that a guest that knows itself by it does.

    The machine id itself must not get out (machine-id(5)), hence the keyed hash; a host without one gives a new uuid each time.
    """
    try:
        with open(file, "rb") as text:
            secret = text.read().strip()
    except OSError:
        secret = b""
    digest = hmac.digest(secret or os.urandom(16), f"qmpsnap {domain}".encode(), hashlib.sha256)
    return str(uuid.UUID(bytes=digest[:16], version=4))
