"""What is refused, with virsh's words where virsh has the case (facts/libvirt.md 1.3), and that nothing happened."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import requires
from tests.lab import qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import MIB

pytestmark = requires.requires_qemu


class World:
    """The domain `daisy`: one disk, the chain daisy.qcow2 <- s1.qcow2 <- s2.qcow2, and an alien image beside it."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.vm = qemu.Machine(
            directory / "m", ["-drive", f"file={self.image('daisy')},format=qcow2,if=virtio"]
        )
        daemon.ok("attach", "daisy", self.vm.monitor_path)
        for name in ("s1", "s2"):
            spec = f"vda,file={directory}/{name}.qcow2"
            daemon.ok("snapshot-create-as", "daisy", name, "--disk-only", "--diskspec", spec)
        self.image("alien")

    def image(self, name: str) -> Path:
        return qemu.image(self.directory / f"{name}.qcow2", MIB)

    def picture(self) -> dict[str, Any]:
        return {
            "graph": self.vm.qmp("x-debug-query-block-graph"),
            "files": sorted(str(path) for path in self.directory.rglob("*")),
            "state": {str(p): p.read_bytes() for p in (self.daemon.root / "state").rglob("*") if p.is_file()},
            "domains": [domain["name"] for domain in self.daemon.get("/domains")["domains"]],
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One machine for all: nothing here may change it."""
    with running() as daemon:
        directory = daemon.root / "i"
        directory.mkdir()
        found = World(daemon, directory)
        yield found
        found.vm.close()


LONG = "n" * 300
CREATE = ("snapshot-create-as", "daisy")
BASE = "invalid argument: could not find image '{base}' beneath '{I}/s2.qcow2' in chain for 'vda'"

# The words behind `qmpsnap`, and the text behind `error: `; {I} is the directory of the images.
REFUSED = [
    # domains
    ("snapshot-create-as nosuch x --disk-only", "failed to get domain 'nosuch'"),
    ("domblklist nosuch", "failed to get domain 'nosuch'"),
    ("snapshot-list nosuch", "failed to get domain 'nosuch'"),
    ("snapshot-info nosuch s1", "failed to get domain 'nosuch'"),
    ("blockpull nosuch vda", "failed to get domain 'nosuch'"),
    ("blockjob nosuch vda", "failed to get domain 'nosuch'"),
    ("detach nosuch", "failed to get domain 'nosuch'"),
    (
        "detach daisy",
        "domain 'daisy' has 2 snapshots; delete their metadata first (snapshot-delete --metadata)",
    ),
    # snapshots
    ("snapshot-create-as daisy s1 --disk-only", "operation failed: domain moment s1 already exists"),
    (
        "snapshot-create-as daisy s1 --disk-only --diskspec vda,file={I}/dup.qcow2",
        "operation failed: domain moment s1 already exists",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vdz,file={I}/x.qcow2",
        "unsupported configuration: no disk named 'vdz'",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec {I}/s2.qcow2,file={I}/x.qcow2",
        "unsupported configuration: no disk named '{I}/s2.qcow2'",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file={I}/s1.qcow2",
        (
            "unsupported configuration: external snapshot file for disk vda already exists"
            " and is not a block device: {I}/s1.qcow2"
        ),
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file={I}/daisy.qcow2",
        (
            "unsupported configuration: external snapshot file for disk vda already exists"
            " and is not a block device: {I}/daisy.qcow2"
        ),
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file={I}/../i/m",
        (
            "unsupported configuration: external snapshot file for disk vda already exists"
            " and is not a block device: {I}/m"
        ),
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file=relative.qcow2",
        "XML error: disk snapshot image path 'relative.qcow2' must be absolute",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file=/no/such/dir/x.qcow2",
        "failed to create image file '/no/such/dir/x.qcow2': No such file or directory",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file=/etc/passwd/x",
        "failed to create image file '/etc/passwd/x': Not a directory",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,bogus=1",
        "unable to parse diskspec: vda,bogus=1",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,snapshot=internal",
        (
            "unsupported configuration: active qemu domains require external disk snapshots;"
            " disk vda requested internal"
        ),
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,snapshot=bogus",
        "XML error: Invalid value for attribute 'snapshot' in element 'disk': 'bogus'.",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,snapshot=no",
        "unsupported configuration: nothing selected for snapshot",
    ),
    (
        "snapshot-create-as daisy x --disk-only --diskspec vda,file={I}/x1 --diskspec vda,file={I}/x2",
        "unsupported configuration: disk 'vda' is requested twice",
    ),
    (
        "snapshot-create-as daisy ../evil --disk-only",
        "invalid snapshot name '../evil': name can't contain '/'",
    ),
    ("snapshot-create-as daisy a/b --disk-only", "invalid snapshot name 'a/b': name can't contain '/'"),
    ("snapshot-create-as daisy .. --disk-only", "invalid snapshot name '..': name can't start with '.'"),
    (
        "snapshot-create-as daisy .hidden --disk-only",
        "invalid snapshot name '.hidden': name can't start with '.'",
    ),
    (
        "snapshot-create-as daisy two\nlines --disk-only",
        "invalid snapshot name 'two\\nlines': name can't contain control characters",
    ),
    (
        f"snapshot-create-as daisy {LONG} --disk-only",
        f"invalid snapshot name '{LONG[:60]}...': name can't be longer than 247 bytes",
    ),
    (
        "snapshot-info daisy nosuch",
        "Domain snapshot not found: no domain snapshot with matching name 'nosuch'",
    ),
    ("snapshot-dumpxml daisy ..", "Domain snapshot not found: no domain snapshot with matching name '..'"),
    (
        "snapshot-current daisy nosuch",
        "Domain snapshot not found: no domain snapshot with matching name 'nosuch'",
    ),
    (
        "snapshot-delete daisy nosuch --metadata",
        "Domain snapshot not found: no domain snapshot with matching name 'nosuch'",
    ),
    ("snapshot-parent daisy s1", "snapshot 's1' has no parent"),
    # pulls and jobs
    ("blockpull daisy vdz", "invalid argument: disk 'vdz' not found in domain"),
    ("blockpull daisy {I}/nosuch.qcow2", "invalid argument: disk '{I}/nosuch.qcow2' not found in domain"),
    ("blockpull daisy vda[9]", "invalid argument: disk 'vda[9]' not found in domain"),
    ("blockpull daisy vda --base {I}/nosuch.qcow2", BASE.replace("{base}", "{I}/nosuch.qcow2")),
    ("blockpull daisy vda --base {I}/alien.qcow2", BASE.replace("{base}", "{I}/alien.qcow2")),
    ("blockpull daisy vda --base /etc/passwd", BASE.replace("{base}", "/etc/passwd")),
    ("blockpull daisy vda --base {I}/s2.qcow2", BASE.replace("{base}", "{I}/s2.qcow2")),
    (
        "blockpull daisy {I}/s1.qcow2 --base {I}/s2.qcow2",
        "invalid argument: could not find image '{I}/s2.qcow2' beneath '{I}/s1.qcow2' in chain for 'vda'",
    ),
    (
        "blockpull daisy vda --base vda[99]",
        "invalid argument: could not find backing store index '99' in chain for 'vda'",
    ),
    (
        "blockpull daisy vda --base vda[0]",
        "invalid argument: could not find backing store index '0' in chain for 'vda'",
    ),
    ("blockpull daisy vda --async", "Option --wait is required by option --async"),
    (
        "blockpull daisy vda --bandwidth abc",
        "Scaled numeric value 'abc' for <--bandwidth> option is malformed or out of range",
    ),
    ("blockjob daisy vda --abort", "invalid argument: disk vda does not have an active block job"),
    ("blockjob daisy vda --bandwidth 5", "invalid argument: disk vda does not have an active block job"),
    ("blockjob daisy vdz --info", "invalid argument: disk 'vdz' not found in domain"),
    ("blockjob daisy vdz --abort", "invalid argument: disk 'vdz' not found in domain"),
    ("wait nosuch", "no operation with id 'nosuch'"),
    # attaching
    ("attach other {I}/none.sock", "cannot connect to monitor {I}/none.sock: No such file or directory"),
    ("attach other {I}/daisy.qcow2", "cannot connect to monitor {I}/daisy.qcow2: it is not a socket"),
    ("attach daisy {I}/m/qmp.sock", "domain 'daisy' already exists with monitor '{I}/m/monitor.sock'"),
    ("attach other {I}/m/monitor.sock", "domain 'daisy' already exists with monitor '{I}/m/monitor.sock'"),
    (
        "attach other {I}/../i/m/monitor.sock",
        "domain 'daisy' already exists with monitor '{I}/m/monitor.sock'",
    ),
    ("attach a/b {I}/m/qmp.sock", "invalid domain name 'a/b': name can't contain '/'"),
    ("attach .. {I}/m/qmp.sock", "invalid domain name '..': name can't start with '.'"),
]


@pytest.mark.parametrize(("command", "text"), REFUSED, ids=[command[:60] for command, _text in REFUSED])
def test_refused(command: str, text: str, world: World) -> None:
    """Status 1, one line, and nothing has changed, in QEMU, on disk or in the state directory."""
    before = world.picture()
    words = [word.replace("{I}", str(world.directory)) for word in command.split(" ")]
    assert world.daemon.refused(*words) == text.replace("{I}", str(world.directory))
    assert world.picture() == before


# The request, the HTTP status, the error's code, and what its message must say.
BODIES: list[tuple[str, str, object, int, str, str]] = [
    ("POST", "/domains/daisy/snapshots", {"nmae": "x"}, 400, "bad-request", "nmae"),
    ("POST", "/domains/daisy/snapshots", {"name": 5}, 400, "bad-request", "$.name"),
    (
        "POST",
        "/domains/daisy/snapshots",
        {"disks": [{"target": "vda", "flie": "/x"}]},
        400,
        "bad-request",
        "flie",
    ),
    ("POST", "/domains/daisy/snapshots", {"disks": [{}]}, 400, "bad-request", "target"),
    ("POST", "/domains/daisy/snapshots", {"disks": {"target": "vda"}}, 400, "bad-request", "$.disks"),
    (
        *("POST", "/domains/daisy/snapshots", {"disks": [{"target": "vda", "snapshot": "internal"}]}),
        *(400, "bad-request", "$.disks[0].snapshot"),
    ),
    (
        *("POST", "/domains/daisy/snapshots", {"disks": [{"target": "vda", "file": "rel"}]}),
        *(400, "file-relative", "'rel' must be absolute"),
    ),
    (
        *(
            "POST",
            "/domains/daisy/snapshots",
            {"name": "x", "disks": [{"target": "vda", "file": "/tmp/a\nb"}]},
        ),
        *(400, "bad-name", ""),
    ),
    ("POST", "/domains/daisy/snapshots", {"name": "x", "description": "\0"}, 400, "bad-name", ""),
    ("POST", "/domains/daisy/snapshots", {"name": "x", "description": "\ud800"}, 400, "bad-name", ""),
    ("POST", "/domains/daisy/snapshots", {"name": "x\ud800"}, 400, "bad-name", ""),
    ("POST", "/domains/daisy/snapshots", [], 400, "bad-request", "not a JSON object"),
    ("POST", "/domains/daisy/snapshots", b"{", 400, "bad-request", "not JSON"),
    ("POST", "/domains/daisy/snapshots", b"\xff", 400, "bad-request", "not JSON"),
    ("POST", "/domains/daisy/snapshots?wait=maybe", {"name": "s1"}, 400, "bad-request", "wait"),
    ("POST", "/domains/daisy/pull", {}, 400, "bad-request", "disk"),
    ("POST", "/domains/daisy/pull", {"disk": "vda", "bandwidth": -1}, 400, "bad-request", "bandwidth"),
    ("POST", "/domains/daisy/pull", {"disk": "vda", "bandwidth": 2**63}, 400, "bad-request", "bandwidth"),
    ("POST", "/domains/daisy/pull", {"disk": "vda", "bandwidth": True}, 400, "bad-request", "bandwidth"),
    ("POST", "/domains/daisy/pull", {"disk": "vda", "speed": 1}, 400, "bad-request", "speed"),
    ("POST", "/domains", {"name": "other"}, 400, "bad-request", "monitor"),
    ("POST", "/domains", {"name": "other", "monitor": "m.sock"}, 403, "monitor-denied", "must be absolute"),
    ("POST", "/domains", {"name": "x\ny", "monitor": "/m.sock"}, 400, "bad-name", "control"),
    ("POST", "/domains", {"name": "other", "monitor": "/m.sock", "qmp": 1}, 400, "bad-request", "qmp"),
    ("PUT", "/domains/daisy/current", {"name": "nosuch"}, 404, "no-snapshot", "nosuch"),
    ("PUT", "/domains/daisy/current", {}, 400, "bad-request", "name"),
    ("PUT", "/domains/daisy/disks/vda/job/bandwidth", {"bandwidth": "1"}, 400, "bad-request", "bandwidth"),
    ("DELETE", "/domains/daisy/snapshots/s1", None, 400, "unsupported", "--metadata"),
    ("GET", "/domains/daisy/snapshots/%2e%2e", None, 404, "no-snapshot", ".."),
    ("GET", "/nothing", None, 404, "no-route", "/nothing"),
    ("PATCH", "/domains/daisy", None, 405, "no-route", "PATCH"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "part"),
    BODIES,
    ids=[f"{b[1]} {str(b[2])[:40]!a}" for b in BODIES],
)
def test_bad_bodies(
    method: str, path: str, body: object, status: int, code: str, part: str, world: World
) -> None:
    """An error of the API's one shape that names the place, and nothing has changed."""
    before = world.picture()
    answer = world.daemon.api(method, path, body)
    assert (answer.status, answer.error["code"]) == (status, code), answer
    assert part in answer.error["message"]
    assert "\n" not in answer.error["message"]
    assert world.picture() == before


NAMES = ["-dash", "with space", "grün-é-☃", "<&>'\"", "%2F", "a.b.", "*?[", "$(x)", "c" * 247, "ü" * 123]


def test_names_that_are_allowed(daemon: Daemon, short_dir: Path) -> None:
    """Odd but possible names go through CLI, file, XML, a restart, and back."""
    image = qemu.image(short_dir / "a.qcow2", MIB)
    with qemu.Machine(short_dir / "m", ["-drive", f"file={image},format=qcow2,if=virtio"]) as vm:
        daemon.ok("attach", "daisy", vm.monitor_path)
        for number, name in enumerate(NAMES):
            spec = f"vda,file={short_dir}/{number}"
            text = f"about {name}"
            said = daemon.ok(
                "snapshot-create-as",
                "daisy",
                "--disk-only",
                "--diskspec",
                spec,
                "--name",
                name,
                "--description",
                text,
            )
            assert said == f"Domain snapshot {name} created\n"
        daemon.restart()
        daemon.ready("daisy")
        listed = daemon.ok("snapshot-list", "daisy", "--name").splitlines()
        assert sorted(listed[:-1]) == sorted(NAMES)
        for number, name in enumerate(NAMES):
            answer = daemon.get("/domains/daisy/snapshots")["snapshots"]
            found = next(snapshot for snapshot in answer if snapshot["name"] == name)
            assert found["description"] == f"about {name}"
            assert found["parent"] == (NAMES[number - 1] if number else None)
            info = daemon.ok("snapshot-info", "daisy", "--snapshotname", name)
            assert info.splitlines()[0] == f"Name:           {name}"
        daemon.ok("snapshot-delete", "daisy", "--snapshotname", NAMES[0], "--children", "--metadata")
        assert daemon.ok("snapshot-list", "daisy", "--name") == "\n"
        assert qemu.chain(short_dir / str(len(NAMES) - 1))[-1] == image


def test_a_domain_with_an_odd_name(daemon: Daemon, short_dir: Path) -> None:
    image = qemu.image(short_dir / "a.qcow2", MIB)
    name = "my <daisy> & 'co' 50% grün"
    with qemu.Machine(short_dir / "m", ["-drive", f"file={image},format=qcow2,if=virtio"]) as vm:
        daemon.ok("attach", name, vm.monitor_path)
        daemon.ok("snapshot-create-as", name, "s1", "--disk-only")
        daemon.restart()
        assert daemon.ok("snapshot-list", name, "--name") == "s1\n\n"
        assert name in daemon.ok("list", "--name").splitlines()


@pytest.mark.parametrize("talk", ["", "HELLO\r\n", '{"return": {}}\r\n', "\0" * 4096 + "\n"])
def test_attach_to_what_is_no_monitor(daemon: Daemon, short_dir: Path, talk: str) -> None:
    """The domain is attached whatever its monitor is, and says what is wrong with it."""
    path = short_dir / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        if not talk:
            os.close(listener.detach())
        else:
            from threading import Thread

            def speak() -> None:
                while True:
                    try:
                        peer, _address = listener.accept()
                    except OSError:
                        return
                    with peer:
                        peer.sendall(talk.encode())

            Thread(target=speak, daemon=True).start()
        daemon.ok("attach", "daisy", path)
        state = "garbage" if talk else "gone"
        found = daemon.until("daisy", lambda domain: domain["monitor"]["state"] == state)
        assert found["state"] == ("no state" if talk else "shut off")
        if talk:
            assert found["monitor"]["detail"]
            refusal = daemon.refused("snapshot-create-as", "daisy", "s1", "--disk-only")
            assert refusal.startswith(f"domain 'daisy': the monitor {path} is garbage: ")
            listener.shutdown(socket.SHUT_RDWR)
