"""A monitor whose peer misbehaves, dies, is late, or is not QEMU at all."""

import gc
import logging
import os
import random
import signal
import socket
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from qmpsnap import errors
from qmpsnap.talk import link, monitor
from tests.lab import fake_qemu
from tests.lab.fake_qemu import FakeQemu, Session

Connect = Callable[..., Awaitable[monitor.Monitor]]


@pytest.fixture
async def connect(short_dir: Path, nursery: trio.Nursery) -> Connect:
    """Connect to a fake that behaves as told; the keywords are `monitor.connect`'s."""

    async def make(session: Session, **options: object) -> monitor.Monitor:
        path = str(short_dir / f"{len(os.listdir(short_dir))}.sock")
        nursery.start_soon(FakeQemu(path, session).run)
        return await monitor.connect(nursery, path, **options)  # type: ignore[arg-type] # checked there

    return make


@pytest.fixture(autouse=True)
def _fail_rather_than_hang() -> Iterator[None]:
    """In real time: trio's own deadlines would make the clock of these tests jump."""

    def bark(signum: int, frame: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- who is no QEMU ---


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b'{"return": {}}\r\n', "no greeting"),
        (b"\xff\xfe\xfd\n", "garbage"),
        (b'{"QMP": 1}\n', "must be a JSON object"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        (b"{\n    ", "pretty=on"),
    ],
)
async def test_a_peer_that_greets_wrongly_is_named_garbage(
    connect: Connect, said: bytes, reason: str
) -> None:
    with pytest.raises(errors.MonitorGarbage, match=reason):
        await connect(fake_qemu.says(said))


async def test_a_peer_that_dies_before_the_session_is_gone(connect: Connect) -> None:
    with pytest.raises(errors.MonitorGone, match="QEMU closed it within a message"):
        await connect(fake_qemu.half_line)
    with pytest.raises(errors.MonitorGone, match=r"QEMU closed it$"):
        await connect(fake_qemu.hang_up)


async def test_paths_that_lead_to_no_monitor(short_dir: Path, nursery: trio.Nursery) -> None:
    def at(name: str) -> Awaitable[monitor.Monitor]:
        return monitor.connect(nursery, short_dir / name)

    with pytest.raises(errors.MonitorGone, match="No such file"):
        await at("nothing")
    (short_dir / "file").touch()
    with pytest.raises(errors.MonitorGone, match="refused"):
        await at("file")
    with pytest.raises(errors.MonitorGone, match="Not a directory"):
        await at("file/socket")
    with pytest.raises(errors.MonitorDenied, match="too long"):
        await at("x" * 200)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(short_dir / "datagram"))
        with pytest.raises(errors.MonitorDenied):
            await at("datagram")


async def test_a_path_without_permission_is_denied(
    short_dir: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)  # as root, no mode would refuse
    with pytest.raises(errors.MonitorDenied, match="Permission denied"):
        await monitor.connect(nursery, short_dir / "qmp.sock")


async def test_a_silent_peer_is_waited_for_as_long_as_it_takes(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    states: list[monitor.State] = []
    with trio.move_on_after(3600) as scope:
        await connect(fake_qemu.never_greets, on_state=states.append)
    assert scope.cancelled_caught
    assert states == [monitor.State.CONNECTING, monitor.State.HUNG]


async def test_giving_up_leaves_no_socket_and_no_task(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    def open_things() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living

    descriptors, tasks = open_things()
    for _ in range(5):
        with trio.move_on_after(1):
            await connect(fake_qemu.never_greets)
        with pytest.raises(errors.MonitorGarbage):
            await connect(fake_qemu.says(b"x\n"))
    await trio.testing.wait_all_tasks_blocked()
    assert open_things() == (descriptors + 10, tasks + 10)  # the listening fakes


# --- who goes wrong later ---


async def test_events_and_foreign_answers_before_ours_do_not_confuse(connect: Connect) -> None:
    client = await connect(fake_qemu.event_before_caps_reply)
    assert client.version == (7, 2, 22)
    assert client.peer_pid == os.getpid()
    assert await client.execute("query-jobs") == []


async def test_a_wrong_answer_reaches_nobody(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.wrong_ids))
    assert [await client.execute("query-name") for _ in range(3)] == ["right"] * 3
    assert client.unknown_replies == 6


async def test_the_first_answer_of_two_counts(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.answers_twice))
    assert [await client.execute("query-name") for _ in range(3)] == [1, 1, 1]
    assert await client.execute("query-name") == 1
    assert client.unknown_replies >= 3


async def test_garbage_later_ends_the_link_but_not_what_came_before(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.garbage_after_reply))
    with client.events() as events:
        assert await client.execute("query-name") == "whole"
        await client.wait_closed()
        assert [event async for event in events] == []
    assert client.closed
    assert isinstance(client.reason, errors.MonitorGarbage)
    assert str(client.reason).endswith("Failed to deserialize QMP message: <html>")
    with pytest.raises(errors.Disconnected, match="no answer to stop: monitor speaks garbage") as caught:
        await client.execute("stop")
    assert caught.value.facts["sent"] is False


async def test_hanging_up_before_the_answer_leaves_it_unknown(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.hangs_up))
    with pytest.raises(errors.Disconnected, match="no answer to stop: QEMU closed it") as caught:
        await client.execute("stop")
    assert caught.value.facts["sent"] is True
    await client.wait_closed()


async def test_an_error_without_id_ends_the_link(connect: Connect) -> None:
    complaint = fake_qemu.failure("GenericError", "JSON parse error, stray 'x'")
    client = await connect(fake_qemu.answers(lambda request: [complaint]))
    with pytest.raises(errors.Disconnected, match="error that answers no command: JSON parse error"):
        await client.execute("stop")


async def test_a_long_line_is_read_and_an_endless_one_ends_the_link(connect: Connect) -> None:
    def long(request: fake_qemu.Message) -> list[fake_qemu.Message | bytes]:
        return [{"return": "x" * request["arguments"]["size"], "id": request["id"]}]

    client = await connect(fake_qemu.answers(long))
    assert len(await client.execute("query-name", {"size": 7 << 20})) == 7 << 20
    with pytest.raises(errors.Disconnected, match="line longer than 8388608 bytes"):
        await client.execute("query-name", {"size": 64 << 20})
    assert len(str(client.reason)) < 200


async def test_what_was_said_before_a_failed_write_is_still_heard(short_dir: Path) -> None:
    path = str(short_dir / "qmp.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ours = link.open_link(path, line_limit=1000, write_timeout=1)
        server, _ = listener.accept()
    server.sendall(b'{"return": {}, "id": "quit"}\n')
    server.close()
    await ours.send(b"to nobody\n")
    assert await ours.receive() == b'{"return": {}, "id": "quit"}'
    with pytest.raises(errors.Disconnected, match="QEMU closed it"):
        await ours.receive()
    ours.close()


async def test_a_deaf_peer_costs_the_link_not_the_daemon(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    """Even if every caller was cancelled, the line begun is finished or the link closed, in bounded time."""
    client = await connect(fake_qemu.deaf, write_timeout=30)
    started = trio.current_time()
    with trio.move_on_after(5) as scope:
        await client.execute("stop", {"padding": "x" * (4 << 20)})
    assert scope.cancelled_caught
    assert trio.current_time() - started == pytest.approx(30)
    await client.wait_closed()
    assert str(client.reason) == "QEMU read nothing for 30 s"


# --- cancellation ---


async def test_a_storm_of_cancellations_gives_no_wrong_answer(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    dice = random.Random(7)
    client = await connect(fake_qemu.late_answers(lambda: dice.random() * 10))
    right = cancelled = 0

    async def ask(number: int, patience: float) -> None:
        nonlocal right, cancelled
        with trio.move_on_after(patience) as scope:
            answer = await client.execute("query-name", {"number": number})
            assert answer == {"number": number}
            right += 1
        cancelled += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for number in range(600):
            nursery.start_soon(ask, number, dice.random() * 10)
    assert right + cancelled == 600
    assert min(right, cancelled) > 100
    assert await client.execute("query-name", {"number": -1}) == {"number": -1}
    await trio.sleep(11)
    assert client.late_replies == cancelled
    assert not client._calls


async def test_who_is_cancelled_while_the_link_ends_is_told_that_it_was_cancelled(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    client = await connect(fake_qemu.late_answers(lambda: 1000))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(client.execute, "stop", {"number": number})
            await trio.testing.wait_all_tasks_blocked()
            client._end(errors.Disconnected(reason="for the test"))
            scope.cancel()
    assert scope.cancelled_caught


async def test_a_command_cancelled_in_the_queue_was_never_sent(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    client = await connect(fake_qemu.deaf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.execute, "query-name", {"padding": "x" * (4 << 20)})
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await client.execute("stop")
        assert [call.command for call in client._calls.values()] == ["query-name"]
        nursery.cancel_scope.cancel()


async def test_a_service_that_ends_ends_its_monitors(connect: Connect, short_dir: Path) -> None:
    path = str(short_dir / "qmp.sock")
    async with trio.open_nursery() as fakes:
        fakes.start_soon(FakeQemu(path).run)
        async with trio.open_nursery() as service:
            client = await monitor.connect(service, path)
            events = client.events()
            service.cancel_scope.cancel()
        await client.wait_closed()
        with events:
            assert [event async for event in events] == []
        with pytest.raises(errors.Disconnected, match="qmpsnap closed it"):
            await client.execute("query-name")
        fakes.cancel_scope.cancel()


async def test_a_monitor_closed_while_a_call_waits(connect: Connect) -> None:
    client = await connect(fake_qemu.deaf)

    async def ask() -> None:
        with pytest.raises(errors.Disconnected, match="qmpsnap closed it"):
            await client.execute("stop")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        async with client:
            pass
    with client.events() as events:
        assert [event async for event in events] == []


# --- events ---


async def test_a_diligent_subscriber_gets_a_whole_storm(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.event_storm))
    seen: list[int] = []

    async def collect() -> None:
        with client.events() as events:
            seen.extend([event.data["n"] async for event in events])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await trio.testing.wait_all_tasks_blocked()
        await client.execute("query-name", {"count": 20_000})
        await client.aclose()
    assert seen == list(range(20_000))


async def test_a_subscriber_that_sleeps_through_a_storm_is_ended_not_skipped(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.event_storm))
    with client.events() as sleeper:
        await client.execute("query-name", {"count": monitor.EVENTS_KEPT + 1})
        assert [event.data["n"] async for event in sleeper] == list(range(monitor.EVENTS_KEPT))
    assert not client.closed
    with client.events() as again:
        await client.execute("query-name", {"count": 1})
        assert (await again.receive()).data == {"n": 0}


async def test_a_subscriber_that_left_is_forgotten(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.event_storm))
    client.events().close()
    await client.execute("query-name", {"count": 1})
    assert not client._subscribers


async def test_a_storm_that_nobody_reads_costs_no_memory(connect: Connect) -> None:
    client = await connect(fake_qemu.answers(fake_qemu.event_storm))
    await client.execute("query-name", {"count": 10_000})
    with client.events():
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            await client.execute("query-name", {"count": 2_000})
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # `EVENTS_KEPT` events of about 1 kB, and one chunk; 20 000 events would be 20 MB
    assert after - before < 4_000_000


# --- the log ---


async def test_the_wire_is_rendered_only_for_who_reads_it(
    connect: Connect, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    client = await connect(fake_qemu.good)
    await client.execute("query-jobs")
    assert "-->" not in capsys.readouterr().out
    caplog.set_level(logging.DEBUG)
    with pytest.raises(errors.CommandFailed):
        await client.execute("query-jobs", {"x" * 10_000: 1})
    shown = capsys.readouterr().out  # where an unconfigured structlog writes
    assert '--> {"execute":"query-jobs"' in shown
    assert '<-- {"error"' in shown
    assert len(shown) < 2_000
