"""The control API as an OpenAPI 3.1 document, made from the same attrs classes that decode the requests."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

import qmpsnap
from qmpsnap.plan import requests
from qmpsnap.server import decode

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
    ("get", "/v1/operations/{id}", "One operation", None, "200"),
    ("get", "/v1/operations/{id}/events", "Its changes, as server-sent events", None, "200"),
]


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, status in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, summary, body, status)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qmpsnap", "version": qmpsnap.__version__},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "kind", "status", "message", "facts"],
            "properties": {
                "code": {"type": "string"},
                "kind": {"type": "string"},
                "status": {"type": "integer"},
                "message": {"type": "string"},
                "facts": {"type": "object"},
            },
        }
    },
}


def _operation(path: str, summary: str, body: type | None, status: str) -> dict[str, Any]:
    failure = {
        "description": "Why not",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "responses": {status: {"description": "Done"}, "default": failure},
    }
    if status == "202":
        operation["parameters"].append({"name": "wait", "in": "query", "schema": {"type": "boolean"}})
        operation["responses"]["200"] = {"description": "Done, after waiting for its end"}
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
