"""QEMU's own schema (query-qmp-schema, stored for each supported version): would it take this command?"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "schemas"
VERSIONS = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))


class Schema:
    """One QEMU version's schema."""

    def __init__(self, version: str) -> None:
        entries = json.loads(gzip.decompress((FOLDER / f"{version}.json.gz").read_bytes()))
        self._types: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in entries}

    def faults(self, command: str, arguments: Mapping[str, Any]) -> list[str]:
        """What QEMU would refuse about the command, each with its place; empty when it would take it."""
        entry = self._types.get(command)
        if entry is None or entry["meta-type"] != "command":
            return [f"{command}: no such command"]
        return self._check(entry["arg-type"], arguments, command)

    def _check(self, name: str, value: Any, where: str) -> list[str]:
        kind = self._types[name]
        match kind["meta-type"]:
            case "object":
                return self._object(kind, value, where)
            case "array":
                if not isinstance(value, list | tuple):
                    return [f"{where}: no array"]
                return [
                    fault
                    for n, item in enumerate(value)
                    for fault in self._check(kind["element-type"], item, f"{where}[{n}]")
                ]
            case "enum":
                values = kind.get("values") or [member["name"] for member in kind["members"]]
                return [] if value in values else [f"{where}: {value!r} is not one of its values"]
            case "alternate":
                tried = [self._check(member["type"], value, where) for member in kind["members"]]
                return [] if any(not faults for faults in tried) else [f"{where}: fits no alternative"]
            case "builtin":
                return self._builtin(kind["json-type"], value, where)
        return [f"{where}: unknown meta-type"]

    def _builtin(self, kind: str, value: Any, where: str) -> list[str]:
        kinds: dict[str, Any] = {
            "string": str,
            "int": int,
            "boolean": bool,
            "null": type(None),
            "number": (int, float),
        }
        wanted = kinds.get(kind)
        fits = wanted is None or (
            isinstance(value, wanted) and (kind == "boolean" or not isinstance(value, bool))
        )
        return [] if fits else [f"{where}: {value!r} is no {kind}"]

    def _object(self, kind: dict[str, Any], value: Any, where: str) -> list[str]:
        if not isinstance(value, Mapping):
            return [f"{where}: no object"]
        members = {member["name"]: member for member in kind["members"]}
        if tag := kind.get("tag"):
            case = next((v["type"] for v in kind["variants"] if v["case"] == value.get(tag)), None)
            variant = self._types[case] if case else {"members": []}
            members |= {member["name"]: member for member in variant["members"]}
        faults = [
            f"{where}: {name} is missing"
            for name, m in members.items()
            if "default" not in m and name not in value
        ]
        for name, item in value.items():
            if name not in members:
                faults.append(f"{where}: {name} is unknown")
            else:
                faults += self._check(members[name]["type"], item, f"{where}.{name}")
        return faults
