"""Verbs on domains and their disks."""

from __future__ import annotations

import os

from qmpsnap.cli import render
from qmpsnap.cli.client import Document
from qmpsnap.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.session import Session

SHUT_OFF = "shut off"


def list_domains(session: Session) -> None:
    """``list``: the active domains; the others with --all or --inactive."""
    args = session.args
    modes = [option for option in ("uuid", "name", "id") if args.given(option)]
    for option in modes:
        if args.given("table"):
            raise Failure(f"Options --table and --{option} are mutually exclusive")
    answer = session.client.get("/v1/domains")
    domains = sorted((d for d in answer["domains"] if _is_listed(session, d)), key=_order)
    if session.json:
        session.show(Document(domains=domains))
    elif modes:
        session.say("".join(_short(domain, modes) for domain in domains))
    else:
        rows = [(_id(domain), domain["name"], _state(domain)) for domain in domains]
        session.say(render.table(("Id", "Name", "State"), rows, quiet=session.quiet))


def _is_listed(session: Session, domain: Document) -> bool:
    given = session.args.given
    active = domain["state"] != SHUT_OFF
    if not given("all") and active == (given("inactive") or given("state-shutoff")):
        return False
    kind = {"running": "running", "paused": "paused", SHUT_OFF: "shutoff"}.get(domain["state"], "other")
    states = [name for name in ("running", "paused", "shutoff", "other") if given(f"state-{name}")]
    if states and kind not in states:
        return False
    if given("with-snapshot") == given("without-snapshot"):
        return True
    return bool(given("with-snapshot") == (domain["snapshots"] > 0))


def _order(domain: Document) -> tuple[bool, int, tuple[str, str]]:
    """Active domains by id, then the inactive by name."""
    return domain["id"] is None, domain["id"] or 0, render.sort_key(domain["name"])


def _short(domain: Document, modes: list[str]) -> str:
    values = {"uuid": domain["uuid"], "id": _id(domain), "name": render.printable(domain["name"])}
    return " ".join(values[mode] for mode in ("uuid", "id", "name") if mode in modes) + "\n"


def _id(domain: Document) -> str:
    return "-" if domain["id"] is None else str(domain["id"])


def _state(domain: Document) -> str:
    """virsh's state; where it cannot be known, with the reason."""
    if domain["state"] == "no state":
        return f"no state ({domain['monitor']['state']})"
    return str(domain["state"])


def info(session: Session) -> None:
    """``dominfo``: virsh's fields as far as we know them, then ours."""
    domain = session.client.get(session.domain())
    if session.json:
        session.show(domain)
        return
    monitor = domain["monitor"]
    detail = f": {monitor['detail']}" if monitor.get("detail") else ""
    session.say(
        render.fields(
            [
                ("Id", _id(domain)),
                ("Name", domain["name"]),
                ("UUID", domain["uuid"] or "-"),
                ("OS Type", "hvm"),
                ("State", _state(domain)),
                ("CPU(s)", _known(domain["vcpus"])),
                ("Max memory", _known(domain["memory_kib"], " KiB")),
                ("Architecture", _known(domain["arch"])),
                ("Machine", _known(domain["machine"])),
                ("QEMU", _known(domain["qemu"])),
                ("PID", _known(domain["pid"])),
                ("Monitor", f"{monitor['path']} ({monitor['state']}{detail})"),
                ("Snapshots", str(domain["snapshots"])),
            ]
        )
    )


def _known(value: object, unit: str = "") -> str:
    return f"{value}{unit}" if value not in (None, "") else "-"


def state(session: Session) -> None:
    """``domstate``: one line, with --reason the reason in brackets."""
    domain = session.client.get(session.domain())
    if session.json:
        session.show(domain)
        return
    reason = domain["monitor"]["state"] if domain["state"] == "no state" else domain["reason"] or "unknown"
    suffix = f" ({reason})" if session.args.given("reason") else ""
    session.say(render.printable(f"{domain['state']}{suffix}") + "\n")


def disk_list(session: Session) -> None:
    """``domblklist``: the disks and their active layers, which are also what the next boot uses (--inactive)."""
    answer = session.client.get(f"{session.domain()}/disks")
    if session.json:
        session.show(answer)
        return
    rows = [(disk["type"], disk["device"], disk["target"], disk["source"] or "-") for disk in answer["disks"]]
    header = ("Type", "Device", "Target", "Source")
    first = 0 if session.args.given("details") else 2
    session.say(render.table(header[first:], [row[first:] for row in rows], quiet=session.quiet))


def disk_info(session: Session) -> None:
    """``domblkinfo``: sizes of one disk, or of every one with --all."""
    args = session.args
    device = args.raw("device") or ""
    if args.given("all") and args.given("device"):
        raise Failure("Options --all and --device are mutually exclusive")
    if not args.given("all") and not device:
        raise Failure("command 'domblkinfo' requires <device> option")
    answer = session.client.get(f"{session.domain()}/disks")
    if args.given("all"):
        _all_disk_info(session, answer)
        return
    disk = next((disk for disk in answer["disks"] if device in (disk["target"], disk["source"])), None)
    if disk is None:
        raise Failure(f"invalid argument: invalid path {device} not assigned to domain")
    if session.json:
        session.show(disk)
    else:
        session.say(
            render.fields(zip(("Capacity", "Allocation", "Physical"), _sizes(session, disk), strict=True))
        )


def _all_disk_info(session: Session, answer: Document) -> None:
    if session.json:
        session.show(answer)
        return
    rows = [(disk["target"], *_sizes(session, disk)) for disk in answer["disks"]]
    session.say(render.table(("Target", "Capacity", "Allocation", "Physical"), rows, quiet=session.quiet))


def _sizes(session: Session, disk: Document) -> tuple[str, str, str]:
    human = session.args.given("human")
    capacity, allocation, physical = (
        "-" if disk[key] is None else render.size(disk[key]) if human else str(disk[key])
        for key in ("capacity", "allocation", "physical")
    )
    return capacity, allocation, physical


def attach(session: Session) -> None:
    """``attach``: join a machine; relative paths are relative to the caller, not to the daemon."""
    name = session.args.need("domain")
    body: dict[str, object] = {"name": name, "monitor": os.path.abspath(session.args.need("socket"))}
    if agent := session.args.text("agent"):
        body["agent"] = os.path.abspath(agent)
    domain = session.client.send("POST", "/v1/domains", body)
    if session.json:
        session.show(domain)
    session.extra(f"Domain '{render.printable(name)}' attached\n")


def detach(session: Session) -> None:
    """``detach``: leave a machine, which goes on."""
    session.client.send("DELETE", session.domain())
    session.extra(f"Domain '{render.printable(session.args.need('domain'))}' detached\n")
