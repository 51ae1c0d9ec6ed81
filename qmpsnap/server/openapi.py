"""The control API as an OpenAPI 3.1 document, made from the same attrs classes that decode the requests."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

import qmpsnap
from qmpsnap.plan import requests
from qmpsnap.server import decode, schemas

_BASIC = {str: "string", int: "integer", bool: "boolean", float: "number"}

#: method, path, summary, body, success status
OPERATIONS: list[tuple[str, str, str, type | None, str]] = [
    ("get", "/v1/health", "Whether the daemon serves", None, "200"),
    ("get", "/v1/openapi.json", "This document", None, "200"),
    ("get", "/v1/events", "Changes of everything, as server-sent events", None, "200"),
    ("get", "/v1/domains", "All domains", None, "200"),
    ("post", "/v1/domains", "Attach a machine by its monitor", decode.Attach, "201"),
    ("get", "/v1/domains/{domain}", "One domain", None, "200"),
    ("delete", "/v1/domains/{domain}", "Detach", None, "204"),
    ("get", "/v1/domains/{domain}/check", "What is wrong with it; ?full=true asks qemu-img too", None, "200"),
    ("post", "/v1/domains/{domain}/accept", "Take what is there for right", requests.Accept, "202"),
    ("get", "/v1/domains/{domain}/disks", "Its disks and their chains", None, "200"),
    ("get", "/v1/domains/{domain}/jobs", "Its block jobs", None, "200"),
    ("post", "/v1/domains/{domain}/disks/{disk}/job/abort", "Abort a job", None, "202"),
    ("put", "/v1/domains/{domain}/disks/{disk}/job/bandwidth", "Limit a job", decode.Bandwidth, "200"),
    ("post", "/v1/domains/{domain}/pull", "Pull layers into one above", requests.Pull, "202"),
    ("get", "/v1/domains/{domain}/snapshots", "Its snapshots", None, "200"),
    ("post", "/v1/domains/{domain}/snapshots", "Create a snapshot", requests.SnapshotCreate, "202"),
    ("put", "/v1/domains/{domain}/current", "Make a snapshot the current one", requests.SetCurrent, "202"),
    ("get", "/v1/domains/{domain}/snapshots/{name}", "One snapshot", None, "200"),
    ("delete", "/v1/domains/{domain}/snapshots/{name}", "Forget a snapshot's metadata", None, "202"),
    ("get", "/v1/domains/{domain}/snapshots/{name}/xml", "One snapshot as libvirt's XML", None, "200"),
    ("get", "/v1/orphans", "Images that nobody needs, with the proof", None, "200"),
    ("post", "/v1/orphans/remove", "Move orphans to the trash", decode.Remove, "200"),
    ("get", "/v1/trash", "Removed images", None, "200"),
    ("delete", "/v1/trash", "Delete every removed image", None, "200"),
    ("delete", "/v1/trash/{id}", "Delete a removed image", None, "204"),
    ("post", "/v1/trash/{id}/restore", "Put a removed image back", None, "200"),
    ("get", "/v1/operations/{id}", "One operation", None, "200"),
    ("get", "/v1/operations/{id}/events", "Its changes, as server-sent events", None, "200"),
]


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, status in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(method, path, summary, body, status)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qmpsnap", "version": qmpsnap.__version__},
        "paths": paths,
        "components": {"schemas": schemas.COMPONENTS},
    }


def _operation(method: str, path: str, summary: str, body: type | None, status: str) -> dict[str, Any]:
    failure = {
        "description": "Why not",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    done: dict[str, Any] = {"description": "Done"}
    if status != "204":
        done["content"] = schemas.content(method, path)
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "responses": {status: done, "default": failure},
    }
    flags = [*schemas.FLAGS.get((method, path), ())]
    if status == "202" and not path.endswith("/job/abort"):
        flags.append("wait")
        waited = {**done["content"], **schemas.FOLLOWED}
        operation["responses"]["200"] = {
            "description": "Done, after waiting for its end; or its changes, for who accepts events",
            "content": waited,
        }
    operation["parameters"] += [{"name": name, "in": "query", "schema": schemas.FLAG} for name in flags]
    if body is not None:
        content = {"application/json": {"schema": schema(body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type that a request may hold."""
    if kind in _BASIC:
        return {"type": _BASIC[kind]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": schema(get_args(kind)[0])}
    if get_origin(kind) in {Union, types.UnionType}:
        return {"anyOf": [{"type": "null"} if k is type(None) else schema(k) for k in get_args(kind)]}
    hints = get_type_hints(kind)
    fields = attrs.fields(kind)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [f.name for f in fields if f.default is attrs.NOTHING],
        "properties": {f.name: schema(hints[f.name]) for f in fields},
    }
