"""What every client may rely on, with the fake as with QEMU, through our Monitor as through QMPClient."""

import contextlib
import json
import os
import signal

import pytest
import trio

from qmpsnap import errors
from qmpsnap.talk import monitor
from tests.contract.conftest import Join, RealQemu
from tests.lab.fake_qemu import FakeQemu

DEADLINE = 20


async def test_the_version_is_the_greetings(join: Join) -> None:
    client = await join()
    answer = (await client.execute("query-version"))["qemu"]
    assert client.version == (answer["major"], answer["minor"], answer["micro"])


async def test_an_answer_is_the_return_member_itself(join: Join) -> None:
    client = await join()
    assert (await client.execute("query-status"))["status"] == "prelaunch"
    assert await client.execute("query-jobs") == []
    assert await client.execute("stop") == {}


@pytest.mark.parametrize(
    ("command", "arguments", "qemu_class", "desc"),
    [
        ("no-such", None, "CommandNotFound", "The command no-such has not been found"),
        ("query-status", {"x": 1}, "GenericError", "Parameter 'x' is unexpected"),
    ],
)
async def test_an_error_tells_class_and_description_and_ends_nothing(
    join: Join, command: str, arguments: dict[str, int] | None, qemu_class: str, desc: str
) -> None:
    client = await join()
    with pytest.raises(errors.CommandFailed) as caught:
        await client.execute(command, arguments)
    assert caught.value.facts == {"command": command, "reason": desc, "qemu_class": qemu_class}
    assert str(caught.value) == desc
    assert await client.execute("query-jobs") == []


async def test_pipelined_commands_get_their_own_answers(join: Join) -> None:
    client = await join()
    answers: dict[str, object] = {}

    async def ask(command: str) -> None:
        answers[command] = await client.execute(command)

    async def ask_wrongly() -> None:
        with pytest.raises(errors.CommandFailed):
            await client.execute("no-such")

    with trio.fail_after(DEADLINE):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for command in ("query-version", "query-jobs", "query-status"):
                    nursery.start_soon(ask, command)
                nursery.start_soon(ask_wrongly)
            assert answers["query-jobs"] == []
            assert set(answers) == {"query-version", "query-jobs", "query-status"}
            assert "qemu" in answers["query-version"]  # type: ignore[operator] # any JSON
            assert "running" in answers["query-status"]  # type: ignore[operator] # any JSON


async def test_events_arrive_in_order_and_only_for_changes(join: Join) -> None:
    client = await join()
    with trio.fail_after(DEADLINE), client.events() as events:
        for command in ("stop", "cont", "cont", "stop", "stop", "cont"):
            await client.execute(command)
        seen = [await events.receive() for _ in range(3)]
    assert [event.name for event in seen] == ["RESUME", "STOP", "RESUME"]
    assert [event.data for event in seen] == [{}, {}, {}]
    assert all(event.timestamp > 1.6e9 for event in seen)


async def test_every_subscriber_gets_every_event(join: Join) -> None:
    client = await join()
    with trio.fail_after(DEADLINE), client.events() as first, client.events() as second:
        await client.execute("cont")
        assert (await first.receive()).name == (await second.receive()).name == "RESUME"


async def test_quit_announces_answers_and_ends(join: Join) -> None:
    client = await join()
    with trio.fail_after(DEADLINE), client.events() as events:
        assert await client.execute("quit") == {}
        event = await events.receive()
        assert (event.name, event.data) == ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        with pytest.raises(trio.EndOfChannel):
            await events.receive()
        await client.wait_closed()
        with pytest.raises(errors.Disconnected) as caught:
            await client.execute("query-status")
    assert caught.value.sent is False  # type: ignore[attr-defined] # a fact


async def test_a_command_after_quit_is_unanswered_not_failed(join: Join) -> None:
    """The link ends before the answer; `sent` says that the command may have been carried out."""
    client = await join()
    outcomes: list[BaseException] = []

    async def ask() -> None:
        try:
            while True:
                await client.execute("query-version")
        except errors.Disconnected as error:
            outcomes.append(error)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            # QMPClient may lose this answer: its reader gives up what it has when a write fails.
            # That we do not: test_monitor_faults.py
            with contextlib.suppress(errors.Disconnected):
                await client.execute("quit")
    assert len(outcomes) == 5


async def test_our_own_closing_ends_calls_and_events(join: Join) -> None:
    client = await join()
    with trio.fail_after(DEADLINE), client.events() as events:
        await client.aclose()
        with pytest.raises(trio.EndOfChannel):
            await events.receive()
        await client.wait_closed()
        await client.aclose()


async def test_the_second_client_waits_and_takes_over(join: Join) -> None:
    first = await join()
    joined = trio.Event()

    async def wait_for_place() -> None:
        second = await join()
        joined.set()
        assert (await second.execute("query-status"))["status"] == "running"

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_place)
            await first.execute("cont")
            for _ in range(50):
                await first.execute("query-status")
            assert not joined.is_set()
            await first.aclose()


async def test_a_cancelled_command_disturbs_no_other(join: Join) -> None:
    client = await join()
    with trio.fail_after(DEADLINE):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(client.execute, "query-version")
                await client.execute("query-jobs")
                scope.cancel()
        for _ in range(30):
            assert await client.execute("query-jobs") == []


async def test_the_fake_words_everything_as_qemu_does(server: FakeQemu | RealQemu) -> None:
    """What no client of ours would send, line by line, on a bare socket."""
    script = {
        b'{"execute":"query-status","id":1}': '{"id": 1, "error": {"class": "CommandNotFound", "desc": '
        "\"Expecting capabilities negotiation with 'qmp_capabilities'\"}}",
        b"garbage": '{"error": {"class": "GenericError", '
        '"desc": "JSON parse error, invalid keyword \'garbage\'"}}',
        b'{"execute":"qmp_capabilities","id":"a"}': '{"return": {}, "id": "a"}',
        b'{"execute":"qmp_capabilities"}': '{"error": {"class": "CommandNotFound", "desc": '
        '"Capabilities negotiation is already complete, command ignored"}}',
        b"[1]": '{"error": {"class": "GenericError", "desc": "QMP input must be a JSON object"}}',
        b'{"execute":"no-such","id":[1,{"x":2}]}': '{"id": [1, {"x": 2}], "error": '
        '{"class": "CommandNotFound", "desc": "The command no-such has not been found"}}',
        b'{"id":3}': '{"id": 3, "error": {"class": "GenericError", '
        '"desc": "QMP input lacks member \'execute\'"}}',
        b'{"execute":5}': '{"error": {"class": "GenericError", '
        '"desc": "QMP input member \'execute\' must be a string"}}',
        b'{"execute":"query-jobs","bogus":1}': '{"error": {"class": "GenericError", '
        '"desc": "QMP input member \'bogus\' is unexpected"}}',
        b'{"execute":"query-jobs","arguments":[]}': '{"error": {"class": "GenericError", '
        '"desc": "QMP input member \'arguments\' must be an object"}}',
        b'{"execute":"query-jobs","id":null}': '{"return": [], "id": null}',
        b'{"execute":"query-status"}': '{"return": {"status": "prelaunch", "singlestep": false, '
        '"running": false}}',
    }
    with trio.fail_after(DEADLINE):
        async with await trio.open_unix_socket(server.path) as stream:
            replies = _Lines(stream)
            assert (await replies.next()).startswith(b'{"QMP": {"version": {"qemu": {"micro": ')
            for line, expected in script.items():
                await stream.send_all(line + b"\n")
                assert _members(await replies.next()) == _members(expected.encode()), line
            two = b'{"execute":"query-jobs","id":5}{"execute":"query-jobs","id":6}\n'
            await stream.send_all(two)
            assert [(await replies.next()).split(b'"id"')[1] for _ in range(2)] == [b": 5}", b": 6}"]


async def test_two_may_wait_and_a_third_is_turned_away(
    server: FakeQemu | RealQemu, nursery: trio.Nursery
) -> None:
    with trio.fail_after(DEADLINE):
        first = await monitor.connect(nursery, server.path)
        async with await trio.open_unix_socket(server.path), await trio.open_unix_socket(server.path):
            with pytest.raises(errors.MonitorBusy, match=r"qmp\.sock .*queue of waiting clients is full"):
                await monitor.connect(nursery, server.path)
        await first.aclose()


async def test_who_waits_is_told_of_the_other_client(
    server: FakeQemu | RealQemu, nursery: trio.Nursery
) -> None:
    states: list[monitor.State] = []
    taken = trio.Event()

    def on_state(state: monitor.State) -> None:
        states.append(state)
        if state is monitor.State.TAKEN:
            taken.set()

    async def wait_for_place() -> None:
        second = await monitor.connect(nursery, server.path, on_state=on_state, greeting_timeout=0.02)
        await second.execute("query-status")
        await second.aclose()

    with trio.fail_after(DEADLINE):
        first = await monitor.connect(nursery, server.path)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait_for_place)
            await taken.wait()
            await first.aclose()
    # between the two clients a slow machine may look hung
    assert [state for state in states if state is not monitor.State.HUNG] == [
        monitor.State.CONNECTING,
        monitor.State.TAKEN,
        monitor.State.READY,
    ]


@pytest.mark.qemu
async def test_who_waits_for_nothing_is_told_that_too(real_qemu: RealQemu, nursery: trio.Nursery) -> None:
    states: list[monitor.State] = []

    def on_state(state: monitor.State) -> None:
        states.append(state)
        if state is monitor.State.HUNG:
            os.kill(real_qemu.pid, signal.SIGCONT)

    os.kill(real_qemu.pid, signal.SIGSTOP)
    with trio.fail_after(DEADLINE):
        client = await monitor.connect(nursery, real_qemu.path, on_state=on_state, greeting_timeout=0.1)
        assert client.peer_pid == real_qemu.pid
        await client.aclose()
    assert states == [monitor.State.CONNECTING, monitor.State.HUNG, monitor.State.READY]


@pytest.mark.qemu
async def test_qemu_sends_the_next_client_what_the_last_one_asked_for(
    real_qemu: RealQemu, nursery: trio.Nursery
) -> None:
    """Why our ids are never used twice. If newer QEMU fails here, rejoice and keep the ids."""
    with trio.fail_after(DEADLINE):
        first = await monitor.connect(nursery, real_qemu.path)
        await first.execute("blockdev-add", {"driver": "null-co", "node-name": "n0"})
        async with await trio.open_unix_socket(real_qemu.path) as second, trio.open_nursery() as asking:
            replies = _Lines(second)
            command = {"command-line": 'qemu-io n0 "sleep 500"'}  # HMP's own sleep: a slow command
            asking.start_soon(first.execute, "human-monitor-command", command)
            while not first._calls:
                await trio.lowlevel.checkpoint()
            asking.cancel_scope.cancel()
            await first.aclose()
            assert "QMP" in _members(await replies.next())
            foreign = _members(await replies.next())
            assert foreign["return"] == ""
            assert isinstance(foreign["id"], str)
            assert foreign["id"].endswith(".2")


class _Lines:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = b""

    async def next(self) -> bytes:
        while b"\r\n" not in self._rest:
            chunk = await self._stream.receive_some()
            assert chunk, "the server hung up"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line


def _members(line: bytes) -> dict[str, object]:
    members: dict[str, object] = json.loads(line)
    return members
