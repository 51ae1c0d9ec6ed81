"""What the machine of the transcripts looks like through the documented API: recorded answers, as values."""

from typing import Any

from tests.cli.peer import Answer, Json, Request, error

UUID = "64ff5d70-1bd4-4d3b-ab1b-ed5232911a6c"
I = "/export/vmimgs"  # noqa: E741 - the directory of the images, in many lines


def domain(name: str = "daisy", number: int | None = 3, **changes: Any) -> Json:
    base: Json = {
        "name": name,
        "id": number,
        "uuid": UUID,
        "state": "shut off" if number is None else "running",
        "reason": "",
        "monitor": {"path": "/run/daisy.sock", "state": "gone" if number is None else "ready", "detail": ""},
        "pid": None if number is None else 4711,
        "qemu": "7.2.22",
        "machine": "pc-i440fx-7.2",
        "arch": "x86_64",
        "vcpus": 1,
        "memory_kib": 131072,
        "snapshots": 0,
        "operations": [],
        "field_of_a_newer_daemon": True,
    }
    return base | changes


def disk(
    *files: str,
    target: str = "vda",
    sizes: tuple[Any, Any, Any] = (21474836480, 33820672, 33882112),
    **changes: Any,
) -> Json:
    """A disk whose chain is given active layer first."""
    base: Json = {
        "target": target,
        "bus": "virtio",
        "device": "disk",
        "type": "file",
        "source": files[0] if files else None,
        "format": "qcow2",
        "node": "qs-1",
        "read_only": False,
        "capacity": sizes[0],
        "allocation": sizes[1],
        "physical": sizes[2],
        "chain": [{"file": file, "format": "qcow2", "node": "qs-1"} for file in files],
        "skipped": "",
        "job": None,
    }
    return base | changes


def job(kind: str = "stream", current: int = 0, total: int = 0, bandwidth: int = 0, **changes: Any) -> Json:
    base: Json = {"disk": "vda", "id": "qs-1", "type": kind, "status": "running", "bandwidth": bandwidth}
    return base | {"current": current, "total": total, "ready": False, "operation": "op1"} | changes


def snapshot(name: str, parent: str | None = None, when: int = 0, **changes: Any) -> Json:
    base: Json = {
        "name": name,
        "description": "",
        "state": "disk-snapshot",
        "location": "external",
        "parent": parent,
        "children": 0,
        "descendants": 0,
        "creation_time": when,
        "current": False,
        "disks": [],
        "revertible": True,
        "why_not": "",
    }
    return base | changes


def snapshots(*pairs: tuple[str, str | None], current: str | None = None) -> list[Json]:
    """Snapshots from (name, parent) pairs, with their counts."""
    children: dict[str | None, list[str]] = {}
    for name, parent in pairs:
        children.setdefault(parent, []).append(name)

    def below(name: str) -> int:
        return sum(1 + below(child) for child in children.get(name, []))

    return [
        snapshot(
            name,
            parent,
            children=len(children.get(name, [])),
            descendants=below(name),
            current=name == current,
        )
        for name, parent in pairs
    ]


def operation(state: str = "running", current: int = 0, total: int = 0, **changes: Any) -> Json:
    base: Json = {
        "id": "op1",
        "domain": "daisy",
        "verb": "block-pull",
        "state": state,
        "started": 1795446747.1,
        "finished": None,
    }
    return (
        base
        | {"progress": {"current": current, "total": total}, "result": None, "error": None, "plan": None}
        | changes
    )


class World:
    """Answers every GET about its domains; other requests get ``otherwise``."""

    def __init__(
        self, *domains: Json, disks: list[Json] | None = None, snapshots: list[Json] | None = None
    ) -> None:
        self.domains = {d["name"]: d for d in domains or (domain(),)}
        self.disks = disks or []
        self.snapshots = snapshots or []
        self.otherwise: Answer = error("this request was not expected", "unexpected")

    def __call__(self, request: Request) -> Answer:
        parts = request.target.split("?")[0].split("/")[2:]
        if request.method != "GET" or parts[0] != "domains":
            return self.otherwise
        if len(parts) == 1:
            return Answer({"domains": list(self.domains.values())})
        if parts[1] not in self.domains:
            return error(f"failed to get domain '{parts[1]}'", "no-domain", 404)
        return self._domain(parts)

    def _domain(self, parts: list[str]) -> Answer:
        if len(parts) == 2:
            return Answer(self.domains[parts[1]])
        if parts[2] == "disks":
            return Answer({"disks": self.disks})
        if len(parts) == 3:
            current = next((s["name"] for s in self.snapshots if s["current"]), None)
            return Answer({"snapshots": self.snapshots, "current": current})
        found = next((s for s in self.snapshots if s["name"] == parts[3]), None)
        if found is None:
            text = f"Domain snapshot not found: no domain snapshot with matching name '{parts[3]}'"
            return error(text, "no-snapshot", 404)
        if len(parts) == 5:
            return Answer(f"<domainsnapshot>\n  <name>{parts[3]}</name>\n</domainsnapshot>\n".encode())
        return Answer(found)


def three_snapshots() -> list[Json]:
    """snap1, snap2, snap3 of the transcripts."""
    names = ("snap1-daisy", "snap2-daisy", "snap3-daisy")
    images = (f"{I}/daisy.qcow2", f"{I}/snap1-daisy.qcow2", f"{I}/snap2-daisy.qcow2")
    chain = snapshots(*zip(names, (None, *names), strict=False), current=names[2])
    for number, (one, image) in enumerate(zip(chain, images, strict=True)):
        one["creation_time"] = 1795446745 + 2 * number
        overlay = f"{I}/{one['name']}.qcow2"
        one["disks"] = [{"target": "vda", "overlay": overlay, "image": image, "format": "qcow2"}]
    return chain
