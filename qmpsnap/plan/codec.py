"""Plans as JSON and back: what the journal holds.

Each act is written with its class name, so that a newer daemon reads an older one's plans. ``VERSION`` rises when an act
changes its meaning; a journal of a version that we do not know is not touched.
"""

from __future__ import annotations

from typing import Any

from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError
from cattrs.strategies import configure_tagged_union

from qmpsnap.plan import steps

VERSION = 1

_converter = Converter(forbid_extra_keys=True)
_act: Any = steps.Act  # cattrs takes unions, its annotations only classes
configure_tagged_union(_act, _converter, tag_name="kind")
# A union with None is a type of its own to cattrs: without these an undo would be written without its class.
_converter.register_unstructure_hook(
    steps.Act | None, lambda act: None if act is None else _converter.unstructure(act, _act)
)
_converter.register_structure_hook(
    steps.Act | None, lambda value, _type: None if value is None else _converter.structure(value, _act)
)


def dump(plan: steps.Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    written: dict[str, Any] = _converter.unstructure(plan)
    return {"version": VERSION, **written}


def load(value: dict[str, Any]) -> steps.Plan:
    """The plan of ``dump``; ``ValueError`` for a version or a shape that we do not know."""
    if not isinstance(value, dict):
        raise ValueError("its plan is no object")  # noqa: TRY004 - one kind of error for whatever is wrong with a file
    values = dict(value)
    version = values.pop("version", None)
    if version != VERSION:
        raise ValueError(f"its plan has version {version!r}, this qmpsnap knows {VERSION}")
    try:
        return _converter.structure(values, steps.Plan)
    except BaseValidationError as error:
        raise ValueError(f"its plan cannot be read: {transform_error(error, 'plan')[0]}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its plan cannot be read: {error!r}") from error
