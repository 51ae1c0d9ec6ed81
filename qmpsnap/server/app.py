"""The control API's routes: a request is decoded, handed to its domain, and what comes back is shown.

Nothing is decided here. Errors of ours become their answer in one place; a client that leaves leaves its operation running.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import qmpsnap
from qmpsnap import errors
from qmpsnap.act import execute
from qmpsnap.model import snapshot_xml
from qmpsnap.own import checking, domain, inventory, operations
from qmpsnap.plan import requests
from qmpsnap.server import bus, decode, openapi, show, show_images
from qmpsnap.server.answer import JSONResponse
from qmpsnap.server.stream import Stream

Handler = Callable[[Request], Awaitable[Response]]

# Progress is for eyes: ten a second are enough, and a slow reader does not make the daemon keep more.
_EVENTS_EVERY = 0.1


class Api:
    """The routes over one inventory."""

    def __init__(self, domains: inventory.Inventory, events: bus.Bus) -> None:
        self._domains = domains
        self._events = events

    def app(self) -> Starlette:
        """The ASGI application."""
        d = "/v1/domains/{domain}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/v1/health", self.health),
            ("GET", "/v1/openapi.json", self.document),
            ("GET", "/v1/events", self.events),
            ("GET", "/v1/domains", self.domains),
            ("POST", "/v1/domains", self.attach),
            ("GET", d, self.domain),
            ("DELETE", d, self.detach),
            ("GET", f"{d}/check", self.check),
            ("POST", f"{d}/accept", self.accept),
            ("GET", f"{d}/disks", self.disks),
            ("GET", f"{d}/jobs", self.jobs),
            ("POST", f"{d}/disks/{{disk:path}}/job/abort", self.abort),
            ("PUT", f"{d}/disks/{{disk:path}}/job/bandwidth", self.bandwidth),
            ("POST", f"{d}/pull", self.pull),
            ("GET", f"{d}/snapshots", self.snapshots),
            ("POST", f"{d}/snapshots", self.create),
            ("PUT", f"{d}/current", self.current),
            ("GET", f"{d}/snapshots/{{name}}", self.snapshot),
            ("DELETE", f"{d}/snapshots/{{name}}", self.forget),
            ("GET", f"{d}/snapshots/{{name}}/xml", self.snapshot_xml),
            ("GET", "/v1/orphans", self.orphans),
            ("POST", "/v1/orphans/remove", self.remove_orphans),
            ("GET", "/v1/trash", self.trash),
            ("DELETE", "/v1/trash", self.empty_trash),
            ("DELETE", "/v1/trash/{id}", self.delete_trash),
            ("POST", "/v1/trash/{id}/restore", self.restore),
            ("GET", "/v1/operations/{id}", self.operation),
            ("GET", "/v1/operations/{id}/events", self.operation_events),
        ]
        routes = [Route(path, _answering(handler), methods=[method]) for method, path, handler in table]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_routed})

    # --- domains ---

    async def health(self, _request: Request) -> Response:
        count = len(self._domains.domains)
        return JSONResponse({"status": "ok", "version": qmpsnap.__version__, "domains": count})

    async def document(self, _request: Request) -> Response:
        return JSONResponse(openapi.document())

    async def domains(self, _request: Request) -> Response:
        found = sorted(self._domains.domains.values(), key=lambda one: one.name)
        return JSONResponse({"domains": [show.domain_object(one) for one in found]})

    def _domain(self, request: Request) -> domain.Domain:
        return self._domains.get(request.path_params["domain"])

    async def domain(self, request: Request) -> Response:
        return JSONResponse(show.domain_object(self._domain(request)))

    async def attach(self, request: Request) -> Response:
        wanted = decode.body(await request.body(), decode.Attach)
        found = await self._domains.attach(wanted.name, wanted.monitor, wanted.agent)
        return JSONResponse(show.domain_object(found), 201)

    async def detach(self, request: Request) -> Response:
        await self._domains.detach(request.path_params["domain"])
        return Response(status_code=204)

    async def check(self, request: Request) -> Response:
        found, full = self._domain(request), _flag(request, "full")
        seen = await found.inspect()
        if full:
            running = found.state != "shut off"
            seen = await execute.in_thread(
                checking.with_tools, seen, self._domains.definition(found.name), running
            )
        return JSONResponse(await execute.in_thread(show.check_object, seen))

    async def accept(self, request: Request) -> Response:
        return await self._submit(request, decode.body(await request.body(), requests.Accept))

    # --- disks and jobs ---

    async def disks(self, request: Request) -> Response:
        found = self._domain(request)
        try:
            machine = found.machine()
        except errors.NotRunning:
            return JSONResponse({"disks": await execute.in_thread(show.recorded_disks, found.recorded)})
        view = await machine.observer.look(fresh=True)
        return JSONResponse({"disks": await execute.in_thread(show.disk_objects, view, found.open)})

    async def jobs(self, request: Request) -> Response:
        found = self._domain(request)
        view = await found.machine().observer.look()
        owner = show.owners(found.open)
        pairs = [(view.job_of(disk), disk.target) for disk in view.disks]
        return JSONResponse({"jobs": [show.job_object(job, disk, owner) for job, disk in pairs if job]})

    async def abort(self, request: Request) -> Response:
        found, disk = self._domain(request), request.path_params["disk"]
        operation = await found.abort(disk)
        return JSONResponse(operation.wire() if operation else {"aborted": disk}, 202)

    async def bandwidth(self, request: Request) -> Response:
        found, disk = self._domain(request), request.path_params["disk"]
        wanted = decode.body(await request.body(), decode.Bandwidth)
        target, job = await found.set_speed(disk, wanted.bandwidth)
        return JSONResponse(show.job_object(job, target, show.owners(found.open)))

    # --- snapshots ---

    async def snapshots(self, request: Request) -> Response:
        tree = self._domain(request).tree
        missing = await execute.in_thread(show.missing_images, tree)
        current = tree.current.name if tree.current else None
        return JSONResponse({"snapshots": show.snapshot_objects(tree, missing), "current": current})

    async def snapshot(self, request: Request) -> Response:
        tree, name = self._domain(request).tree, request.path_params["name"]
        value = tree.get(name)
        missing = await execute.in_thread(show.missing_images, tree)
        family, current = tree.family()[name], value is tree.current
        return JSONResponse(show.snapshot_object(tree, value, family, current, missing))

    async def snapshot_xml(self, request: Request) -> Response:
        value = self._domain(request).tree.get(request.path_params["name"])
        return Response(snapshot_xml.dump(value), media_type="application/xml")

    async def create(self, request: Request) -> Response:
        wanted = decode.body(await request.body(), requests.SnapshotCreate)
        return await self._submit(request, wanted)

    async def current(self, request: Request) -> Response:
        wanted = decode.body(await request.body(), requests.SetCurrent)
        return await self._submit(request, wanted)

    async def forget(self, request: Request) -> Response:
        flags = {key: _flag(request, key) for key in ("metadata", "children", "children_only")}
        if not flags.pop("metadata"):
            raise errors.Unsupported(
                what="deleting a snapshot with its data",
                instead="; --metadata forgets it and leaves every image",
            )
        return await self._submit(request, requests.Forget(request.path_params["name"], **flags))

    async def pull(self, request: Request) -> Response:
        return await self._submit(request, decode.body(await request.body(), requests.Pull))

    # --- orphans and the trash ---

    async def orphans(self, _request: Request) -> Response:
        return JSONResponse(show_images.orphans_object(*await self._domains.trash.find_orphans()))

    async def remove_orphans(self, request: Request) -> Response:
        wanted = decode.body(await request.body(), decode.Remove)
        return JSONResponse(show_images.removed_object(await self._domains.trash.remove(wanted.files)))

    async def trash(self, _request: Request) -> Response:
        return JSONResponse(show_images.contents_object(await self._domains.trash.contents()))

    async def restore(self, request: Request) -> Response:
        found = await self._domains.trash.restore(request.path_params["id"])
        return JSONResponse(show_images.trash_object(found))

    async def delete_trash(self, request: Request) -> Response:
        await self._domains.trash.delete(request.path_params["id"])
        return Response(status_code=204)

    async def empty_trash(self, _request: Request) -> Response:
        return JSONResponse(show_images.emptied_object(await self._domains.trash.empty()))

    # --- operations ---

    async def _submit(self, request: Request, wanted: requests.Request) -> Response:
        found = self._domain(request)
        operation = await found.submit(wanted)
        return await self._watch(request, operation, 202)

    async def _watch(self, request: Request, operation: operations.Operation, status: int) -> Response:
        if operation.error is None and "text/event-stream" in request.headers.get("accept", ""):
            return Stream(_changes(operation), media_type="text/event-stream")
        if _flag(request, "wait"):
            await operation.wait_ended()
            status = 200
        if operation.error is not None and (operation.ended or status == 200):
            return _error(operation.error)
        return JSONResponse(operation.wire(), status, {"Location": f"/v1/operations/{operation.id}"})

    async def operation(self, request: Request) -> Response:
        found = self._domains.operations.get(request.path_params["id"])
        if isinstance(found, dict):
            return JSONResponse(found)
        if _flag(request, "wait"):
            await found.wait_ended()
        return JSONResponse(found.wire())

    async def operation_events(self, request: Request) -> Response:
        found = self._domains.operations.get(request.path_params["id"])
        return Stream(_changes(found), media_type="text/event-stream")

    async def events(self, _request: Request) -> Response:
        return Stream(self._events.stream(), media_type="text/event-stream")


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in {"true", "false"}:
        raise errors.BadRequest(reason=f"{name} must be true or false, not '{value[:32]}' @ ?{name}")
    return value == "true"


async def _changes(found: operations.Operation | dict[str, Any]) -> AsyncIterator[bytes]:
    """The operation at every change, at most ten a second, until its end; for one that ended long ago its end."""
    if isinstance(found, dict):
        yield bus.sse("operation", found)
        return
    while True:
        changed = found.changed_event()
        yield bus.sse("operation", found.wire())
        if found.ended:
            return
        await changed.wait()
        # The end is told at once: somebody waits for it.
        with trio.move_on_after(_EVENTS_EVERY):
            await found.wait_ended()


def _answering(handler: Handler) -> Handler:
    """Errors that are raised on purpose become answers; a bug goes on to the server, which logs it."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except errors.Error as error:
            return _error(operations.wire_error(error), error.http)

    return answer


def _error(error: dict[str, Any], status: int | None = None) -> Response:
    return JSONResponse(
        {"error": error}, status or _STATUS.get(error["code"]) or _KINDS.get(error["kind"], 500)
    )


_KINDS = {
    kind.code: kind.http for kind in (errors.Refused, errors.Busy, errors.CommandFailed, errors.Disconnected)
}
_STATUS = {
    kind.code: kind.http
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.Error)
}


async def _not_routed(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    error = errors.NoRoute(method=request.method, path=request.url.path[:200], reason=raised.detail)
    return _error(operations.wire_error(error), raised.status_code)
