"""The genuine `QMPClient`, with our `Monitor`'s interface: the other opinion in the contract suite.

It runs in a thread with an asyncio loop of its own, as no trio program should want it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import trio
from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, Runstate, StateError

from qmpsnap import errors
from qmpsnap.talk.wire import Event

T = TypeVar("T")


class Oracle:
    def __init__(self) -> None:
        self._client = QMPClient("oracle")
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._subscribers: list[trio.MemorySendChannel[Event]] = []
        self._ended = trio.Event()
        self._disconnecting = asyncio.Lock()
        self._token = trio.lowlevel.current_trio_token()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="oracle")
        self._thread.start()

    @classmethod
    async def connect(cls, path: str) -> Oracle:
        self = cls()
        try:
            await self._do(self._client.connect(path))
        except BaseException:
            await self._stop()
            raise
        asyncio.run_coroutine_threadsafe(self._follow(), self._loop)
        asyncio.run_coroutine_threadsafe(self._forward(), self._loop)
        return self

    @property
    def version(self) -> tuple[int, int, int]:
        greeting = self._client.greeting
        assert greeting is not None
        qemu: Any = greeting.QMP.version["qemu"]
        return qemu["major"], qemu["minor"], qemu["micro"]

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        try:
            return await self._do(self._client.execute(command, dict(arguments) if arguments else None))
        except ExecuteError as error:
            raise errors.CommandFailed(
                command=command, reason=str(error), qemu_class=error.error_class
            ) from None
        except (ExecInterruptedError, StateError) as error:
            sent = isinstance(error, ExecInterruptedError)
            raise errors.Disconnected(reason=str(error), command=command, sent=sent) from None

    def events(self) -> trio.MemoryReceiveChannel[Event]:
        send, receive = trio.open_memory_channel[Event](1024)
        self._subscribers.append(send)
        return receive

    async def wait_closed(self) -> None:
        await self._ended.wait()

    async def aclose(self) -> None:
        if self._loop.is_closed():
            return
        with trio.CancelScope(shield=True):
            if not self._ended.is_set():
                await self._do(self._disconnect())
                await self._ended.wait()
            await self._stop()

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Await in trio what runs in asyncio; cancelling the one cancels the other."""
        done = trio.Event()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: self._token.run_sync_soon(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    async def _follow(self) -> None:
        """End everything when the session ends: QMPClient's listeners just go silent."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        await self._disconnect()
        self._token.run_sync_soon(self._finish)

    async def _disconnect(self) -> None:
        # two at once trip over each other's clean-up; and it raises whatever ended the session
        async with self._disconnecting:
            if self._client.runstate is not Runstate.IDLE:
                with contextlib.suppress(Exception):
                    await self._client.disconnect()

    async def _forward(self) -> None:
        async for message in self._listener:
            fields: Any = message
            stamp = fields["timestamp"]["seconds"] + fields["timestamp"]["microseconds"] / 1e6
            self._token.run_sync_soon(self._publish, Event(fields["event"], fields.get("data", {}), stamp))

    def _publish(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber.send_nowait(event)

    def _finish(self) -> None:
        for subscriber in self._subscribers:
            subscriber.close()
        self._ended.set()

    async def _stop(self) -> None:
        async def cancel_rest() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with trio.CancelScope(shield=True):
            await self._do(cancel_rest())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await trio.to_thread.run_sync(self._thread.join)
            self._loop.close()
