"""Where qmpsnap keeps its state, its sockets and its configuration.

``QMPSNAP_ROOT=DIR`` puts ``state/ run/ config/`` under DIR. Else systemd's directories are taken as it hands them over
(``$STATE_DIRECTORY`` and so on, systemd.exec(5)), else ``/var/lib/qmpsnap``, ``/run/qmpsnap``, ``/etc/qmpsnap`` for root and the
XDG base directories for everybody else.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

import attrs


@attrs.frozen
class Paths:
    """The three roots, absolute; what lies below them is named here and nowhere else."""

    state: str
    run: str
    config: str

    @property
    def snapshots(self) -> str:
        return f"{self.state}/snapshot"

    @property
    def domains(self) -> str:
        return f"{self.state}/domain"

    @property
    def journal(self) -> str:
        return f"{self.state}/journal"

    @property
    def trash(self) -> str:
        """Records of removed images, which lie beside the others (``plan.trash.FOLDER``)."""
        return f"{self.state}/trash"

    @property
    def tmp(self) -> str:
        """Files on their way; never in the snapshot directory, where libvirtd reads every file as a snapshot."""
        return f"{self.state}/tmp"

    @property
    def lock(self) -> str:
        return f"{self.state}/lock"

    @property
    def host(self) -> str:
        """Which host the state belongs to."""
        return f"{self.state}/host"

    @property
    def socket(self) -> str:
        return f"{self.run}/qmpsnap.sock"

    @property
    def outcomes(self) -> str:
        """The last results of operations: they outlive the daemon, not the host."""
        return f"{self.run}/operation"

    @property
    def machines(self) -> str:
        return f"{self.run}/domain"

    @property
    def definitions(self) -> str:
        return f"{self.config}/domain"

    @property
    def settings(self) -> str:
        return f"{self.config}/qmpsnap.toml"

    def snapshot_dir(self, domain: str) -> str:
        return f"{self.snapshots}/{domain}"

    def snapshot_file(self, domain: str, name: str) -> str:
        return f"{self.snapshots}/{domain}/{name}.xml"

    def domain_file(self, domain: str) -> str:
        return f"{self.domains}/{domain}.xml"

    def definition_file(self, domain: str) -> str:
        return f"{self.definitions}/{domain}.toml"

    def journal_dir(self, domain: str) -> str:
        return f"{self.journal}/{domain}"

    def machine_dir(self, domain: str) -> str:
        """Sockets of a machine that qemu-launch started."""
        return f"{self.machines}/{domain}"

    def monitor(self, domain: str) -> str:
        """The monitor that qemu-launch makes for us; ``qmp.sock`` beside it is the user's."""
        return f"{self.machines}/{domain}/monitor.sock"


def find(environ: Mapping[str, str], uid: int) -> Paths:
    """The paths that this process uses; nothing is created."""
    if root := environ.get("QMPSNAP_ROOT"):
        root = os.path.abspath(root)
        return Paths(state=f"{root}/state", run=f"{root}/run", config=f"{root}/config")
    if uid == 0:
        default = Paths(state="/var/lib/qmpsnap", run="/run/qmpsnap", config="/etc/qmpsnap")
    else:
        home = environ.get("HOME", "/")
        runtime = environ.get("XDG_RUNTIME_DIR", f"/run/user/{uid}")
        default = Paths(
            state=f"{environ.get('XDG_STATE_HOME', f'{home}/.local/state')}/qmpsnap",
            run=f"{runtime}/qmpsnap",
            config=f"{environ.get('XDG_CONFIG_HOME', f'{home}/.config')}/qmpsnap",
        )
    return Paths(
        state=_first(environ.get("STATE_DIRECTORY")) or default.state,
        run=_first(environ.get("RUNTIME_DIRECTORY")) or default.run,
        config=_first(environ.get("CONFIGURATION_DIRECTORY")) or default.config,
    )


def _first(value: str | None) -> str:
    """systemd separates several directories with colons; ours is the first."""
    return (value or "").split(":")[0]
