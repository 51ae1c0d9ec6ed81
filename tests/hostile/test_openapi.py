"""The real server fuzzed from its own OpenAPI document, over its socket, with a real machine behind it."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qmpsnap import errors
from qmpsnap.server import openapi
from tests import requires
from tests.hostile import unix_session
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import MIB

pytestmark = requires.requires_qemu

_BASE = "http://qmpsnap"

#: Streams without an end: tests/hostile/test_clients.py is about these.
_ENDLESS = {"/v1/events"}

#: What succeeds on nothing that is here: no job runs, no image is in the trash, no other machine is there to be joined or left.
_NOT_HERE = {
    ("post", "/v1/domains"),
    ("delete", "/v1/domains/{domain}"),
    ("post", "/v1/domains/{domain}/disks/{disk}/job/abort"),
    ("put", "/v1/domains/{domain}/disks/{disk}/job/bandwidth"),
    ("delete", "/v1/trash/{id}"),
    ("post", "/v1/trash/{id}/restore"),
}

_GOOD, _BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

_KNOWN = {
    kind.code: kind.http
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.Error)
}


@attrs.frozen
class Host:
    daemon: Daemon
    session: requests.Session
    schema: schemathesis.BaseSchema
    #: What is there, by the parameter that names it.
    there: dict[str, list[str]]

    def ensure(self) -> None:
        """The snapshot is there, even if it was forgotten meanwhile, and its overlay stays where it was."""
        if self.daemon.api("GET", "/domains/daisy/snapshots/s1").status == 404:
            disks = [{"target": "vda", "file": f"{self.there['disk'][1]}.{time.monotonic_ns()}"}]
            body = {"name": "s1", "disks": disks}
            assert self.daemon.api("POST", "/domains/daisy/snapshots?wait=true", body).status == 200


def _strict(value: Any) -> Any:
    """The document, where an object has no other members than those named: clients must bear more, we must say them."""
    if isinstance(value, dict):
        value = {key: _strict(inner) for key, inner in value.items()}
        if value.get("type") == "object" and "properties" in value:
            value.setdefault("additionalProperties", False)
    elif isinstance(value, list):
        value = [_strict(inner) for inner in value]
    return value


def _document(folder: Path) -> dict[str, Any]:
    """Ours, strict, and harmless."""
    found: dict[str, Any] = copy.deepcopy(_strict(openapi.document()))
    for place in _places(found):
        # As root we may write anywhere, and would.
        place["file"] = {"anyOf": [{"enum": [str(folder / "x.q")]}, {"type": "string", "pattern": "^[^/]"}]}
    return found


def _places(value: Any) -> Iterator[dict[str, Any]]:
    """The members of each kind of request that names a file to be made."""
    if isinstance(value, dict):
        if "driver" in value.get("properties", {}):
            yield value["properties"]
        for inner in value.values():
            yield from _places(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="qo-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        daemon = stack.enter_context(running(settings="greeting_timeout = 0.2\n"))
        image = qemu.image(folder / "a.qcow2", 4 * MIB)
        drive = f"file={image},format=qcow2,if=virtio"
        vm = stack.enter_context(qemu.Machine(folder / "m", ["-drive", drive]))
        daemon.ok("attach", "daisy", vm.monitor_path)
        body = {"name": "s1"}
        done = daemon.api("POST", "/domains/daisy/snapshots?wait=true", body)
        assert done.status == 200, done
        session = stack.enter_context(unix_session.connect(daemon.socket))
        schema = schemathesis.openapi.from_dict(_document(folder))
        there = {
            "domain": ["daisy", "1"],
            "disk": ["vda", str(folder / "a.qcow2"), "vda[1]"],
            "name": ["s1"],
            "id": [done.body["id"]],
            "metadata": ["true"],
        }
        yield Host(daemon, session, schema, there)


def _check(answer: schemathesis.Response) -> None:
    """An error is one of ours, with its status; a bug of ours says that it is one, and fails."""
    if answer.status_code < 400:
        return
    error = answer.json()["error"]
    assert error["code"] != "internal", answer.text
    if error["code"] == "no-route":
        assert answer.status_code in {404, 405}
    else:
        assert answer.status_code == _KNOWN[error["code"]], answer.text
    assert "\n" not in error["message"]


def _asked() -> list[tuple[schemathesis.GenerationMode, str, str]]:
    """Each path well and badly; badly only where there is anything that can be bad: a text in a path cannot."""
    found = [
        (method, path, one)
        for path, methods in openapi.document()["paths"].items()
        for method, one in methods.items()
        if path not in _ENDLESS
    ]
    return [(_GOOD, method, path) for method, path, _one in found] + [
        (_BAD, method, path)
        for method, path, one in found
        if "requestBody" in one or any(parameter["in"] == "query" for parameter in one["parameters"])
    ]


@pytest.mark.parametrize(("mode", "method", "path"), _asked())
def test_every_answer_is_documented(
    host: Host, mode: schemathesis.GenerationMode, method: str, path: str
) -> None:
    """Whatever is asked: status, content type and body are those of the document, and no answer is a bug of ours."""
    operation = host.schema[path][method.upper()]

    # `daisy` is what all the others are about: it stays.
    there = {} if (method, path) == ("delete", "/v1/domains/{domain}") else host.there
    statuses = set()

    @given(
        case=operation.as_strategy(generation_mode=mode),
        hit=st.fixed_dictionaries(
            {}, optional={key: st.sampled_from(values) for key, values in there.items()}
        ),
    )
    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case[Any], hit: dict[str, str]) -> None:
        for place in (case.path_parameters, case.query, case.body):
            if isinstance(place, dict) and mode is _GOOD:
                place.update({key: hit[key] for key in place.keys() & hit.keys()})
        answer = case.call(base_url=_BASE, session=host.session)
        _check(answer)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=_CHECKS)

    host.ensure()
    ask()
    assert "Traceback" not in host.daemon.log
    # That it only ever hears "no such domain" would be no test.
    assert mode is not _GOOD or (method, path) in _NOT_HERE or any(status < 300 for status in statuses)


def test_the_document_is_whole() -> None:
    """Every reference leads somewhere, and every path answers something of a shape."""
    found = openapi.document()
    for methods in found["paths"].values():
        for one in methods.values():
            for status, answer in one["responses"].items():
                assert status == "204" or answer["content"]
    assert schemathesis.openapi.from_dict(found).statistic.operations.total == len(openapi.OPERATIONS)
