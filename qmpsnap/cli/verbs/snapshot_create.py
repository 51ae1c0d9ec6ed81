"""``snapshot-create-as``: virsh's arguments, checked where libvirt checks them, as one request."""

from __future__ import annotations

from qmpsnap.cli import render
from qmpsnap.cli.failure import Failure
from qmpsnap.cli.follow import change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.client import Document
    from qmpsnap.cli.session import Session

# Storage types that libvirt knows (virStorageType); only a file can be asked of our API.
_STORAGE_TYPES = ("none", "file", "block", "dir", "network", "volume", "nvme", "vhostuser", "vhostvdpa")


class DiskSpec:
    """One --diskspec: ``disk[,snapshot=type][,driver=type][,stype=type][,file=name]``."""

    __slots__ = ("driver", "file", "snapshot", "stype", "target")

    def __init__(self, text: str) -> None:
        self.target, *attributes = split_commas(text)
        given: dict[str, str] = {}
        for attribute in attributes:
            key, equals, value = attribute.partition("=")
            if key not in ("snapshot", "driver", "stype", "file") or key in given or not equals:
                raise Failure(f"unable to parse diskspec: {text}")
            given[key] = value
        self.snapshot, self.driver, self.file = given.get("snapshot"), given.get("driver"), given.get("file")
        self.stype = given.get("stype")
        if self.stype is not None and self.stype not in _STORAGE_TYPES:
            raise Failure(f"Unknown storage type: '{self.stype}'", f"unable to parse diskspec: {text}")

    def xml(self) -> str:
        """The ``<disk>`` element of --print-xml."""
        snapshot = "" if self.snapshot is None else f" snapshot='{render.escape_xml(self.snapshot)}'"
        kind = f" type='{self.stype}'" if self.stype else ""
        head = f"    <disk name='{render.escape_xml(self.target)}'{snapshot}{kind}"
        source = "dev" if self.stype == "block" else "file"
        inner = []
        if self.driver is not None:
            inner.append(f"      <driver type='{render.escape_xml(self.driver)}'/>\n")
        if self.file is not None:
            inner.append(f"      <source {source}='{render.escape_xml(self.file)}'/>\n")
        return f"{head}>\n{''.join(inner)}    </disk>\n" if inner else f"{head}/>\n"

    def request(self) -> dict[str, str]:
        """The disk of the request; raises Failure for what libvirt refuses when it reads the XML."""
        if self.snapshot not in (None, "external", "no", "internal"):
            raise Failure(
                f"XML error: Invalid value for attribute 'snapshot' in element 'disk': '{self.snapshot}'."
            )
        if self.file and not self.file.startswith("/"):
            raise Failure(f"XML error: disk snapshot image path '{self.file}' must be absolute")
        if self.snapshot == "internal":
            raise Failure(
                "unsupported configuration: active qemu domains require external disk snapshots; "
                f"disk {self.target} requested internal"
            )
        if self.stype not in (None, "file"):
            raise Failure(f"Operation not supported: stype={self.stype} is not supported yet: use stype=file")
        pairs = (("snapshot", self.snapshot), ("file", self.file), ("driver", self.driver))
        return {"target": self.target, **{key: value for key, value in pairs if value}}


class MemSpec:
    """``[file=]name[,snapshot=type]``; parsed only so that mistakes are answered as in virsh."""

    __slots__ = ("file", "snapshot")

    def __init__(self, text: str) -> None:
        self.file, self.snapshot = "", ""
        for part in split_commas(text):
            if part.startswith("snapshot=") and not self.snapshot:
                self.snapshot = part.removeprefix("snapshot=")
            elif not self.file:
                self.file = part.removeprefix("file=")
            else:
                raise Failure(f"unable to parse memspec: {text}")

    def xml(self) -> str:
        snapshot = f" snapshot='{render.escape_xml(self.snapshot)}'" if self.snapshot else ""
        file = f" file='{render.escape_xml(self.file)}'" if self.file else ""
        return f"  <memory{snapshot}{file}/>\n"


def split_commas(text: str) -> list[str]:
    """The parts between commas; a doubled comma is one comma of the text."""
    parts = [""]
    rest = iter(text.replace(",,", "\0"))
    for char in rest:
        if char == ",":
            parts.append("")
        else:
            parts[-1] += "," if char == "\0" else char
    return parts


def create_as(session: Session) -> None:
    """``snapshot-create-as``; returns when the snapshot is durable."""
    args = session.args
    name, description = args.text("name"), args.text("description")
    memory_text = args.text("memspec")
    memory = MemSpec(memory_text) if memory_text is not None else None
    disks = [DiskSpec(text) for text in args.every("diskspec")]
    if args.given("print-xml"):
        session.client.get(session.domain())
        session.say(document(name, description, memory, disks) + "\n")
        return
    _refuse_impossible(session, memory)
    specs = [disk.request() for disk in disks]
    _refuse_unsupported(session, memory)
    body: dict[str, object] = {
        "description": description or "",
        "disks": specs,
        "reuse_external": args.given("reuse-external"),
        "no_metadata": args.given("no-metadata"),
        "dry_run": args.given("dry-run"),
    }
    if name is not None:
        body["name"] = name
    operation = change(session.client, "POST", f"{session.domain()}/snapshots", body)
    if session.json:
        session.show(operation)
    elif args.given("dry-run"):
        session.say(plan_text(operation))
    else:
        session.extra(f"Domain snapshot {render.printable(operation['result']['name'])} created")


def plan_text(operation: Document) -> str:
    """The steps of a plan, numbered."""
    steps = operation["plan"]["steps"]
    return "".join(f"{number:2}. {render.printable(step)}\n" for number, step in enumerate(steps, 1))


def document(name: str | None, description: str | None, memory: MemSpec | None, disks: list[DiskSpec]) -> str:
    """The XML that virsh would send, which --print-xml shows."""
    parts = ["<domainsnapshot>\n"]
    if name is not None:
        parts.append(f"  <name>{render.escape_xml(name)}</name>\n")
    if description is not None:
        parts.append(f"  <description>{render.escape_xml(description)}</description>\n")
    if memory is not None:
        parts.append(memory.xml())
    if disks:
        parts += ["  <disks>\n", *(disk.xml() for disk in disks), "  </disks>\n"]
    return render.safe_xml("".join([*parts, "</domainsnapshot>\n"]))


def _refuse_impossible(session: Session, memory: MemSpec | None) -> None:
    """What libvirt refuses whatever it supports, with its texts."""
    given = session.args.given
    if given("quiesce") and not given("disk-only"):
        raise Failure(
            "Flag 'VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY' is required by flag "
            "'VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE'"
        )
    if memory is not None and given("disk-only"):
        raise Failure("XML error: memory state cannot be saved with offline or disk-only snapshot")
    if given("live") and given("disk-only"):
        raise Failure(
            "Operation not supported: live snapshot creation is supported only during full system snapshots"
        )


def _refuse_unsupported(session: Session, memory: MemSpec | None) -> None:
    """What virsh can and we cannot yet."""
    for option in ("quiesce", "halt"):
        if session.args.given(option):
            raise Failure(f"Operation not supported: --{option} is not supported yet")
    if memory is not None:
        raise Failure("Operation not supported: --memspec (saving memory) is not supported yet")
    if not session.args.given("disk-only"):
        raise Failure(
            "Operation not supported: a snapshot with the machine's memory is not supported yet: "
            "add --disk-only to snapshot its disks"
        )
