"""qemu-launch: starts plain QEMU on the layers that are really active."""
