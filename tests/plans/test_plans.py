"""One view and one request make one plan: every case is a directory, golden, no Python.

``view.json`` (and ``domain.json``, ``tree.json``, ``facts.json`` where they matter) with ``request.json`` give ``plan.json`` or
``refusal.json``. ``QMPSNAP_REGENERATE=1`` writes the golden files anew; they are reviewed as code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cattrs import Converter

from qmpsnap import errors
from qmpsnap.model import chain, domain_xml, snapshot
from qmpsnap.plan import codec, metadata, pull, recovery, requests, snapshot_create, steps
from tests.plans.schema import VERSIONS, Schema

HERE = Path(__file__).parent
NOW = 1795446929
OPERATION = "0123456789ab"

_converter = Converter(forbid_extra_keys=True)
CASES = sorted(path.parent for path in HERE.glob("*/*/request.json"))


def _load(case: Path, name: str, default: Any) -> Any:
    path = case / name
    return json.loads(path.read_text()) if path.exists() else default


def _view(case: Path) -> chain.View:
    return _converter.structure(
        _load(case, "view.json", None) or json.loads((case.parent / "view.json").read_text()), chain.View
    )


def _domain(view: chain.View) -> domain_xml.RecordedDomain:
    disks = tuple(
        domain_xml.RecordedDisk(d.target, d.bus, d.active.file, d.active.format, d.device, d.qdev)
        for d in view.disks
        if d.chain
    )
    return domain_xml.RecordedDomain(view.domain, "c820233a-4109-4a00-9040-fa52ae7dcec7", disks=disks)


def _plan(case: Path) -> steps.Plan:
    view, request = _view(case), json.loads((case / "request.json").read_text())
    verb = request.pop("verb")
    tree = snapshot.Tree.of(_converter.structure(_load(case, "tree.json", []), list[snapshot.Snapshot]))
    if verb == "pull":
        wanted_pull = _converter.structure(request, requests.Pull)
        stamp = _load(case, "stamp.json", "")
        return pull.plan(
            view, wanted_pull, operation=OPERATION, tree=tree, recorded=_domain(view), stamp=stamp
        )
    if verb == "forget":
        return metadata.forget(view.domain, tree, _converter.structure(request, requests.Forget))
    if verb == "current":
        return metadata.set_current(view.domain, tree, _converter.structure(request, requests.SetCurrent))
    wanted = _converter.structure(request, requests.SnapshotCreate)
    given = _load(case, "facts.json", {})
    _name, chosen = snapshot_create.choose(view, tree, wanted, NOW)
    facts = {
        c.file: _converter.structure(
            {"path": c.file, "kind": "absent", **given.get(c.file, {})}, chain.FileFact
        )
        for c in chosen
    }
    way = "blockdev" if (case / "blockdev").exists() else "auto"
    return snapshot_create.plan(
        view,
        tree,
        _domain(view),
        wanted,
        operation=OPERATION,
        now=NOW,
        facts=facts,
        way=way,  # type: ignore[arg-type]  # both are ways
    )


def _outcome(case: Path) -> tuple[str, Any]:
    try:
        plan = _plan(case)
    except errors.Error as error:
        return "refusal.json", {"code": error.code, "message": str(error)}
    return "plan.json", json.loads(json.dumps(codec.dump(plan)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_plan(case: Path) -> None:
    """The plan, or the refusal, is the one that was reviewed."""
    name, value = _outcome(case)
    if os.environ.get("QMPSNAP_REGENERATE"):
        for old in ("plan.json", "refusal.json"):
            (case / old).unlink(missing_ok=True)
        (case / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    assert (case / name).exists(), f"{case.name} now gives {name}: {value}"
    assert json.loads((case / name).read_text()) == value


def _commands() -> Iterator[Any]:
    for case in CASES:
        if (case / "plan.json").exists():
            plan = codec.load(json.loads((case / "plan.json").read_text()))
            for step in plan.steps:
                for act in (step.act, step.undo):
                    if isinstance(act, steps.Command | steps.StartJob):
                        yield pytest.param(
                            act, id=f"{case.parent.name}/{case.name}/{step.name}/{act.execute}"
                        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("act", list(_commands()))
def test_qemu_takes_every_command(act: steps.Command | steps.StartJob, version: str) -> None:
    """Every planned command is one that every supported QEMU knows, with its arguments."""
    assert Schema(version).faults(act.execute, act.arguments) == []


def test_the_schema_finds_faults() -> None:
    """The check above can fail: unknown commands, arguments, values and missing ones are found."""
    schema = Schema(VERSIONS[0])

    assert schema.faults("block-steam", {}) == ["block-steam: no such command"]
    assert schema.faults("job-finalize", {}) == ["job-finalize: id is missing"]
    assert schema.faults("job-finalize", {"id": 1}) == ["job-finalize.id: 1 is no string"]
    assert schema.faults("blockdev-add", {"driver": "qcow3", "node-name": "n"})
    wrong = {"actions": [{"type": "blockdev-snapshot", "data": {"node": "a", "overly": "b"}}]}
    assert schema.faults("transaction", wrong) == [
        "transaction.actions[0].data: overlay is missing",
        "transaction.actions[0].data: overly is unknown",
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_what_is_planned_can_be_undone_and_read_back(case: Path) -> None:
    """Every plan survives the journal; every step up to the commit point that changes something can be taken back."""
    try:
        plan = _plan(case)
    except errors.Error:
        return
    lasting = (steps.MakeOverlay, steps.StartJob)

    assert codec.load(json.loads(json.dumps(codec.dump(plan)))) == plan
    assert all(step.undo for step in plan.steps[: plan.commit + 1] if isinstance(step.act, lasting))
    if any(isinstance(s.act, steps.MakeOverlay) for s in plan.steps):
        made = {s.act.file: "empty" for s in plan.steps if isinstance(s.act, steps.MakeOverlay)}
        assert recovery.decide(plan, recovery.Seen(None, made)).from_step is None  # type: ignore[arg-type]  # "empty" is an Overlay
