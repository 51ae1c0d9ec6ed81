"""Bodies of requests as the values of ``plan.requests``, strictly: all that is wrong is named, each with its JSON path.

cattrs alone would turn 5 into "5" and take no notice of unknown keys (facts/stack.md 3).
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import attrs
from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError

from qmpsnap import errors

T = TypeVar("T")


@attrs.frozen
class Attach:
    name: str
    monitor: str
    agent: str = ""


@attrs.frozen
class Current:
    name: str


@attrs.frozen
class Bandwidth:
    bandwidth: int


_converter = Converter(forbid_extra_keys=True, detailed_validation=True)


def _exact(kind: type) -> Any:
    def structure(value: Any, _type: type) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return structure


for _kind in (str, int, bool):
    _converter.register_structure_hook(_kind, _exact(_kind))


def body(raw: bytes, kind: type[T]) -> T:
    """The body as a value; ``BadRequest`` names everything that is wrong with it."""
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest(reason=f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.BadRequest(reason="the body is not a JSON object")
    try:
        made = _converter.structure(value, kind)
    except BaseValidationError as error:
        raise errors.BadRequest(reason="; ".join(transform_error(error))) from error
    for number in ("bandwidth",):
        if not 0 <= getattr(made, number, 0) < 2**63:
            raise errors.BadRequest(reason=f"{number} must be from 0 to 2^63-1 @ $.{number}")
    return made
