"""Bodies of requests as the values of ``plan.requests``, strictly: all that is wrong is named, each with its JSON path.

cattrs alone would turn 5 into "5" and take no notice of unknown keys (facts/stack.md 3).
"""

from __future__ import annotations

import json
import os
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


@attrs.frozen
class Remove:
    """Orphans by their absolute names; none are all that were ours."""

    files: tuple[str, ...] = ()


LONGEST_PATH = 4095  # the kernel's PATH_MAX, without the final NUL

#: Items of a list, and keys of an object. To say of 100,000 what is wrong with each took 12 s, in which nobody was served.
MOST = 1000

_converter = Converter(forbid_extra_keys=True, detailed_validation=True)
# For what is inside of lists: to cattrs a string is a list of strings, too.
_lists = Converter(forbid_extra_keys=True, detailed_validation=True)


def _exact(kind: type) -> Any:
    def structure(value: Any, _type: type) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return structure


for _kind in (str, int, bool):
    _converter.register_structure_hook(_kind, _exact(_kind))
    _lists.register_structure_hook(_kind, _exact(_kind))


def _list(value: Any, kind: Any) -> Any:
    _exact(list)(value, list)
    if len(value) > MOST:
        raise TypeError(f"more than {MOST} items")
    return _lists.structure(value, kind)


_converter.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is tuple, _list)


def body(raw: bytes, kind: type[T]) -> T:
    """The body as a value; ``BadRequest`` names everything that is wrong with it."""
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest(reason=f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.BadRequest(reason="the body is not a JSON object")
    if len(value) > MOST:
        raise errors.BadRequest(reason=f"the body has more than {MOST} keys @ $")
    try:
        made = _converter.structure(value, kind)
    except BaseValidationError as error:
        raise errors.BadRequest(reason="; ".join(transform_error(error))) from error
    for number in ("bandwidth",):
        if not 0 <= getattr(made, number, 0) < 2**63:
            raise errors.BadRequest(reason=f"{number} must be from 0 to 2^63-1 @ $.{number}")
    for key in ("monitor", "agent", "files"):
        found = getattr(made, key, "")
        for path in [found] if isinstance(found, str) else found:
            _check_path(path, key)
    return made


def _check_path(path: str, key: str) -> None:
    """It could be a path: bytes that are no UTF-8 come as ``server.answer`` writes them."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise errors.BadRequest(reason=f"a path cannot have half a character @ $.{key}") from None
    if b"\0" in raw or len(raw) > LONGEST_PATH:
        reason = f"a path has no NUL, and at most {LONGEST_PATH} bytes @ $.{key}"
        raise errors.BadRequest(reason=reason)
