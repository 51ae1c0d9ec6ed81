"""The client ``qmpsnap``: virsh's verbs, flags and texts over the daemon's HTTP API.

A process lives for one verb, so its start is most of its time: nothing here imports trio, structlog, qemu.qmp,
starlette, attrs, http.client or typing, and rich only when a bar is drawn on a terminal
(``tests/cli/test_imports.py``).
"""
