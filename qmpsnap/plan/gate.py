"""The gate before every act that writes to an image or takes it away: whoever needs the image is named, and nothing is done."""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap import errors
from qmpsnap.model import images
from qmpsnap.plan import steps


def creates(plan: steps.Plan) -> list[str]:
    """Images that the plan makes."""
    return [step.act.file for step in plan.steps if isinstance(step.act, steps.MakeOverlay)]


def writes(plan: steps.Plan) -> list[str]:
    """Images whose contents will be others. A pull is none: its layer takes in what it showed before, and reads as it did."""
    return [step.act.file for step in plan.steps if isinstance(step.act, steps.TakeOverlay)]


def rewrites(plan: steps.Plan) -> list[str]:
    """Images whose bytes will be others, and their contents not."""
    return [step.act.file for step in plan.steps if isinstance(step.act, steps.Settle) and step.act.pulled]


def abandons(plan: steps.Plan) -> list[str]:
    """Images that are removed when the plan is taken back."""
    return [step.act.file for step in plan.undo if isinstance(step.act, steps.RemoveOverlay)]


def mentions(plan: steps.Plan) -> set[str]:
    """Every image that the plan depends on while it is open."""
    found: set[str] = set()
    for act in (step.act for step in (*plan.steps, *plan.undo)):
        match act:
            case steps.MakeOverlay() | steps.RebaseBack():
                found |= {act.file, act.backing}
            case steps.TakeOverlay() | steps.Settle():
                found.add(act.file)
            case steps.ExpectBacking():
                found |= {act.file, act.base} - {""}
    return found


def check(plan: steps.Plan, graph: images.Graph) -> None:
    """``WouldHurt`` names whoever needs an image that the plan would make anew or write to."""
    for file in creates(plan):
        # It is not there, and somebody goes on naming it: an empty image would pass for what is lost.
        _refuse(file, "created", graph.hurt(file), "give the overlay another name")
    for file in writes(plan):
        _refuse(file, "written to", graph.hurt(file), "use a new overlay")
    for file in rewrites(plan):
        # They would read what they read before, but by its fingerprint the image would pass for damaged.
        others = [harm for harm in graph.hurt(file) if harm.need.domain not in {"", plan.domain}]
        _refuse(file, "pulled into", others, "pull into a layer above it")


def check_known(file: str, graph: images.Graph) -> None:
    """``WouldHurt`` while something could not be read that may need the image: without it there is no proof."""
    if graph.unknown:
        reason = f"who needs it is not known: {graph.unknown[0]}"
        raise errors.WouldHurt(file=file, act="removed", reason=reason, way="see to that first")


def check_removal(file: str, graph: images.Graph, but: Iterable[str] = ()) -> None:
    """``WouldHurt`` names who needs the image, of all that was found; the operations ``but`` do not count."""
    ours = set(but)
    harms = [h for h in graph.hurt(file) if h.need.kind != "operation" or h.need.what not in ours]
    _refuse(file, "removed", harms, "keep it")


def _refuse(file: str, act: str, harms: list[images.Harm], way: str) -> None:
    if harms:
        # That a snapshot lists it says less than that its state would be lost.
        harms = sorted(harms, key=lambda harm: harm.need.kind == "overlay")
        more = f" (and {len(harms) - 1} more)" if len(harms) > 1 else ""
        raise errors.WouldHurt(file=file, act=act, reason=f"{harms[0]}{more}", way=way)
