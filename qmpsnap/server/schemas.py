"""What the control API answers, as JSON schemas: docs/control-protocol.md for machines.

Members are only ever added within ``v1``, so no object says that it has no others; a test holds us to those named here.
"""

from __future__ import annotations

from typing import Any, get_args

from qmpsnap.own import link

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
TIME: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}


def _object(**members: Schema) -> Schema:
    return {"type": "object", "required": list(members), "properties": members}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_of(*words: str) -> Schema:
    return {"enum": list(words)}


_MONITOR = _object(path=TEXT, state=_one_of(*get_args(link.MonitorState)), detail=TEXT)

#: The objects by their names in docs/control-protocol.md.
COMPONENTS: dict[str, Schema] = {
    "Failure": _object(
        code=TEXT,
        kind=_one_of("refused", "busy", "command-failed", "disconnected", "incomplete", "corrupt", "error"),
        status=NUMBER,
        message=TEXT,
        facts={"type": "object"},
    ),
    "Error": _object(error=_ref("Failure")),
    "Health": _object(status=_one_of("ok"), version=TEXT, domains=NUMBER),
    "Domain": _object(
        name=TEXT,
        id=_or_null(NUMBER),
        uuid=TEXT,
        state=_one_of(
            *("running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended", "no state")
        ),
        reason=TEXT,
        monitor=_MONITOR,
        pid=_or_null(NUMBER),
        qemu=TEXT,
        machine=TEXT,
        arch=TEXT,
        vcpus=NUMBER,
        memory_kib=NUMBER,
        snapshots=NUMBER,
        operations=_list(TEXT),
    ),
    "Domains": _object(domains=_list(_ref("Domain"))),
    "Check": _object(
        domain=TEXT,
        disks=NUMBER,
        snapshots=NUMBER,
        images=NUMBER,
        findings=_list(_object(severity=TEXT, code=TEXT, where=TEXT, problem=TEXT, advice=TEXT)),
    ),
    "Job": _object(
        disk=TEXT,
        id=TEXT,
        type=TEXT,
        status=TEXT,
        bandwidth=NUMBER,
        current=NUMBER,
        total=NUMBER,
        ready=FLAG,
        operation=_or_null(TEXT),
    ),
    "Jobs": _object(jobs=_list(_ref("Job"))),
    "Aborted": _object(aborted=TEXT),
    "Disk": _object(
        target=TEXT,
        bus=TEXT,
        device=_one_of("disk", "cdrom", "floppy"),
        type=_one_of("file", "block"),
        source=_or_null(TEXT),
        format=TEXT,
        node=TEXT,
        read_only=FLAG,
        capacity=NUMBER,
        allocation=NUMBER,
        physical=NUMBER,
        chain=_list(_object(file=TEXT, format=TEXT, node=TEXT)),
        skipped=TEXT,
        job=_or_null(_ref("Job")),
    ),
    "Disks": _object(disks=_list(_ref("Disk"))),
    "Snapshot": _object(
        name=TEXT,
        description=TEXT,
        state=TEXT,
        location=_one_of("external", "internal"),
        parent=_or_null(TEXT),
        children=NUMBER,
        descendants=NUMBER,
        creation_time=NUMBER,
        current=FLAG,
        disks=_list(_object(target=TEXT, overlay=TEXT, image=TEXT, format=TEXT)),
        revertible=FLAG,
        why_not=TEXT,
    ),
    "Snapshots": _object(snapshots=_list(_ref("Snapshot")), current=_or_null(TEXT)),
    "Operation": _object(
        id=TEXT,
        domain=TEXT,
        verb=TEXT,
        state=_one_of("running", "recovering", "done", "failed"),
        started=TIME,
        finished=_or_null(TIME),
        progress=_object(current=NUMBER, total=NUMBER),
        result=_or_null({"type": "object"}),
        error=_or_null(_ref("Failure")),
        plan=_or_null(_object(steps=_list(TEXT))),
    ),
    "Orphans": _object(
        orphans=_list(
            _object(
                file=TEXT,
                domain=_or_null(TEXT),
                known=FLAG,
                size=NUMBER,
                allocation=NUMBER,
                backing=_or_null(TEXT),
                proof=_list(TEXT),
            )
        ),
        unknown=_list(TEXT),
    ),
    "Trashed": _object(
        id=_or_null(TEXT),
        file=_or_null(TEXT),
        moved=TEXT,
        domain=_or_null(TEXT),
        size=NUMBER,
        allocation=NUMBER,
        when=_or_null(TIME),
        until=_or_null(TIME),
        problem=TEXT,
    ),
    "Removed": _object(trashed=_list(_ref("Trashed")), kept=_list(_ref("Failure"))),
    "Trash": _object(trash=_list(_ref("Trashed")), problems=_list(TEXT)),
    "Emptied": _object(deleted=_list(TEXT), kept=_list(_ref("Failure"))),
}

#: What each path answers, by method and path; what is not here answers an Operation.
ANSWERS: dict[tuple[str, str], str] = {
    ("get", "/v1/health"): "Health",
    ("get", "/v1/domains"): "Domains",
    ("post", "/v1/domains"): "Domain",
    ("get", "/v1/domains/{domain}"): "Domain",
    ("get", "/v1/domains/{domain}/check"): "Check",
    ("get", "/v1/domains/{domain}/disks"): "Disks",
    ("get", "/v1/domains/{domain}/jobs"): "Jobs",
    ("put", "/v1/domains/{domain}/disks/{disk}/job/bandwidth"): "Job",
    ("get", "/v1/domains/{domain}/snapshots"): "Snapshots",
    ("get", "/v1/domains/{domain}/snapshots/{name}"): "Snapshot",
    ("get", "/v1/orphans"): "Orphans",
    ("post", "/v1/orphans/remove"): "Removed",
    ("get", "/v1/trash"): "Trash",
    ("delete", "/v1/trash"): "Emptied",
    ("post", "/v1/trash/{id}/restore"): "Trashed",
}

# A server-sent event; its data are an object of the event's name, as JSON.
_EVENT = _object(event=_one_of("operation"), data=TEXT)
_ANY_EVENT = _object(event=_one_of("domain", "operation"), data=TEXT)

#: Paths that answer something else than an object of ours.
MEDIA: dict[str, tuple[str, Schema]] = {
    "/v1/openapi.json": ("application/json", {"type": "object"}),
    "/v1/events": ("text/event-stream", _ANY_EVENT),
    "/v1/operations/{id}/events": ("text/event-stream", _EVENT),
    "/v1/domains/{domain}/snapshots/{name}/xml": ("application/xml", TEXT),
}

#: Flags in the query, by method and path.
FLAGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("get", "/v1/domains/{domain}/check"): ("full",),
    ("delete", "/v1/domains/{domain}/snapshots/{name}"): ("metadata", "children", "children_only"),
    ("get", "/v1/operations/{id}"): ("wait",),
}


#: What an operation's request answers to who accepts events.
FOLLOWED: Schema = {"text/event-stream": {"schema": _EVENT}}


def content(method: str, path: str) -> Schema:
    """The content of a successful answer, by media type."""
    if path in MEDIA:
        kind, schema = MEDIA[path]
        return {kind: {"schema": schema}}
    if path.endswith("/job/abort"):
        return {"application/json": {"schema": {"anyOf": [_ref("Operation"), _ref("Aborted")]}}}
    return {"application/json": {"schema": _ref(ANSWERS.get((method, path), "Operation"))}}
