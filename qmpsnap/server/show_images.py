"""Orphans and the trash, as the objects of docs/control-protocol.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qmpsnap.own import operations, trashcan
from qmpsnap.plan import orphans, trash
from qmpsnap.talk import trash as bins

Json = dict[str, Any]


def orphan_object(one: orphans.Orphan) -> Json:
    """Orphan."""
    return {
        "file": one.file,
        "domain": one.domain or None,
        "known": one.known,
        "size": one.size,
        "allocation": one.allocation,
        "backing": one.backing or None,
        "proof": list(one.proof),
    }


def orphans_object(found: Iterable[orphans.Orphan], unknown: Iterable[str]) -> Json:
    return {"orphans": [orphan_object(one) for one in found], "unknown": list(unknown)}


def trash_object(one: trash.Record, problem: str = "") -> Json:
    """Trash."""
    return {
        "id": one.id,
        "file": one.file,
        "moved": one.moved,
        "domain": one.domain or None,
        "size": one.size,
        "allocation": one.allocation,
        "when": one.when,
        "until": one.until,
        "problem": problem,
    }


def _stray(one: bins.Stray) -> Json:
    return {
        "id": None,
        "file": None,
        "moved": one.moved,
        "domain": None,
        "size": one.size,
        "allocation": one.allocation,
        "when": None,
        "until": None,
        "problem": "no record says where it was",
    }


def contents_object(found: trashcan.Contents) -> Json:
    """Everything in the trash, oldest first, then what no record names."""
    rows = [trash_object(one, bins.MISSING if one.id in found.missing else "") for one in found.records]
    return {"trash": [*rows, *map(_stray, found.strays)], "problems": list(found.problems)}


def removed_object(outcome: trashcan.Outcome) -> Json:
    return {"trashed": [trash_object(one) for one in outcome.done], "kept": _errors(outcome)}


def emptied_object(outcome: trashcan.Outcome) -> Json:
    return {"deleted": [one.id for one in outcome.done], "kept": _errors(outcome)}


def _errors(outcome: trashcan.Outcome) -> list[Json]:
    return [operations.wire_error(error) for error in outcome.kept]
