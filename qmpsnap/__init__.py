"""qmpsnap: snapshots of QEMU machines that run without libvirt."""

__version__ = "0.1.0"
