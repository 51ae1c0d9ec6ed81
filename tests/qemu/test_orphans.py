"""Images that nobody needs any more: found, moved to the trash, put back, deleted; and all that keeps them where they are."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmpsnap.model import domain_xml
from qmpsnap.talk import files
from tests import requires
from tests.conftest import StartMachine
from tests.lab import images, qemu
from tests.lab.daemon import Daemon, running
from tests.lab.images import KIB, MIB
from tests.lab.qmp import PATIENCE

pytestmark = requires.requires_qemu

BIN = ".qmpsnap-trash"
SIZE = 1 * MIB


class Shelf:
    """A daemon that knows the directory of ``now``, the disk of a domain that is off. Its layers once were base <- a <- b."""

    def __init__(self, directory: Path, settings: str = "", now: Path | None = None) -> None:
        self.images = directory / "i"
        self.images.mkdir()
        self.now = images.image(now or self.images / "now", SIZE)
        base = images.image(self.images / "base", SIZE)
        images.image(self.images / "a", backing=base)
        images.image(self.images / "b", backing=self.images / "a")
        self.daemon = Daemon(directory / "r")
        was = (*(self.path(name) for name in ("base", "a", "b")), str(directory / "gone/c"))
        disk = domain_xml.RecordedDisk("vda", "virtio", str(self.now), "qcow2", was=was)
        recorded = domain_xml.RecordedDomain("daisy", "64ff5d70-1bd4-4d3b-ab1b-ed5232911a6c", disks=(disk,))
        self.write("config/qmpsnap.toml", settings)
        self.write("state/domain/daisy.xml", domain_xml.build(recorded))

    def write(self, name: str, text: str) -> Path:
        path = self.daemon.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def path(self, name: str) -> str:
        return str(self.images / name)

    def orphans(self) -> dict[str, bool]:
        """File names to whether they were ours, in order."""
        found = self.daemon.get("/orphans")
        return {Path(one["file"]).name: one["known"] for one in found["orphans"]}

    def trash(self) -> dict[str, str]:
        """Ids by file name."""
        found = self.daemon.get("/trash")
        return {Path(one["file"]).name: one["id"] for one in found["trash"]}

    def remove(self, *names: str) -> str:
        return self.daemon.ok("orphans", "--remove", *(self.path(name) for name in names))

    def refused(self, *names: str) -> str:
        """The line that refuses to remove them; nothing has changed."""
        before = sorted(os.listdir(self.images))
        line = self.daemon.refused("orphans", "--remove", *(self.path(name) for name in names))
        assert sorted(os.listdir(self.images)) == before
        return line.replace(f"{self.images}/", "")


@pytest.fixture
def shelf(short_dir: Path) -> Iterator[Shelf]:
    found = Shelf(short_dir)
    with found.daemon:
        yield found


@contextlib.contextmanager
def opened(path: str, *flags: str) -> Iterator[None]:
    """Somebody has the image open, read-only with `-r`."""
    # As raw: what is below it may not be there.
    command = [images.tool("qemu-io"), *flags, "-f", "raw", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: files.opened(path))
            yield
        finally:
            process.kill()


def until(true: Callable[[], bool]) -> None:
    """Poll until it is true: for what another process does."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_pull_leaves(machine: StartMachine, short_dir: Path) -> None:
    """A chain of three under a running machine: its layers are needed, then they are not; the guest never notices."""
    base = images.image(short_dir / "a.qcow2", SIZE)
    with running() as daemon:
        vm = machine(["-drive", f"file={base},format=qcow2,if=virtio"])
        daemon.ok("attach", "daisy", vm.monitor_path)
        for number in (1, 2):
            vm.guest_write("virtio0", number, number * 64 * KIB, 64 * KIB)
            vm.guest_flush("virtio0")
            daemon.ok("snapshot-create-as", "daisy", f"s{number}", "--disk-only")
        layers = [base, short_dir / "a.s1"]
        digests = [images.content_digest(layer) for layer in layers]
        daemon.ok("blockpull", "daisy", "vda", "--wait")
        assert daemon.get("/orphans") == {"orphans": [], "unknown": []}, "snapshots need what they hold"
        line = daemon.refused("orphans", "--remove", layers[1])
        assert "it holds the state of snapshot 's2' of domain 'daisy'" in line

        daemon.ok("snapshot-delete", "daisy", "s1", "--metadata")
        daemon.ok("snapshot-delete", "daisy", "s2", "--metadata")
        shown = daemon.ok("orphans").splitlines()
        assert [line.split()[:2] for line in shown[2:4]] == [[str(layers[1]), "daisy"], [str(base), "daisy"]]
        assert (
            "it was a layer of disk vda of domain 'daisy'; nothing that is known here needs it;" in shown[2]
        )
        assert daemon.ok("orphans", "--remove").count("moved to the trash as") == 2
        assert daemon.get("/orphans") == {"orphans": [], "unknown": []}
        assert not base.exists()

        rows = daemon.get("/trash")["trash"]
        assert [row["file"] for row in rows] == [str(layers[1]), str(base)]
        assert [line.split()[:2] for line in daemon.ok("trash").splitlines()[2:4]] == [
            [row["id"], row["file"]] for row in rows
        ]
        upper, lower = (row["id"] for row in rows)
        assert daemon.refused("trash", "--restore", upper) == (
            f"'{layers[1]}' cannot be restored: '{base}' below it is in the trash: restore {lower} first"
        )
        for ident in (lower, upper):
            assert daemon.ok("trash", "--restore", ident).endswith("restored\n\n")
        assert [images.content_digest(layer) for layer in layers] == digests
        daemon.ok("orphans", "--remove")
        deleted = daemon.ok("trash", "--empty").splitlines()
        assert [line.split()[1] for line in deleted[:2]] == ["deleted", "deleted"]
        assert daemon.get("/trash") == {"trash": [], "problems": []}
        assert os.listdir(short_dir / BIN) == []
        assert all(vm.guest_read_ok("virtio0", number, number * 64 * KIB, 64 * KIB) for number in (1, 2))


def test_a_strangers_overlay(shelf: Shelf) -> None:
    """It is shown, goes only when it is named, and keeps what is below it in its place."""
    images.image(shelf.images / "clone", backing=shelf.images / "a")
    assert shelf.orphans() == {"b": True, "clone": False, "a": False, "base": False}
    assert shelf.remove().count("moved to the trash") == 1
    assert shelf.refused("a") == (
        "'a' cannot be removed: the image 'clone' has it as its backing file; remove that one first"
    )
    assert shelf.remove("base", "a", "clone").count("moved to the trash") == 3
    assert [*shelf.trash()] == ["b", "clone", "a", "base"]
    assert "No orphans that were ours" in shelf.remove()


@pytest.mark.parametrize("flags", [["-r"], []], ids=["read-only", "read-write"])
def test_an_image_that_is_open(shelf: Shelf, flags: list[str]) -> None:
    """By any QEMU and any qemu-img, for reading too: it stays, and all below it."""
    with opened(shelf.path("a"), *flags):
        assert shelf.orphans() == {"b": True}
        assert shelf.refused("b", "a") == "'a' cannot be removed: a process has it open; keep it"
        assert shelf.refused("base").startswith("'base' cannot be removed: ")
    assert shelf.orphans() == {"b": True, "a": True, "base": True}


def test_names(shelf: Shelf) -> None:
    """Links to what is needed and to what is not; a line break; bytes that are no UTF-8; and no name at all."""
    (shelf.images / "link").symlink_to("b")
    (shelf.images / "again").symlink_to("now")
    os.link(shelf.now, shelf.images / "hard")
    images.image(shelf.images / "two\nlines", backing=shelf.images / "b")
    os.rename(shelf.images / "b", os.fsencode(shelf.images) + b"/\xff")
    images.image(shelf.images / "b", backing=shelf.images / "base")
    assert shelf.orphans() == {"two\nlines": False, "b": False, "\udcff": False, "a": False, "base": False}
    shown = shelf.daemon.ok("orphans")
    assert f" {shelf.images}/two\\x0alines  " in shown
    assert f" {shelf.images}/\\xff  " in shown
    for name in ("again", "hard"):
        assert "cannot be removed: disk vda of domain 'daisy' boots it" in shelf.refused(name)
    assert shelf.refused("link") == "'link' is no orphan: it is a link: name the file that it leads to"
    for name in ("..", ".", "nothing", "now/x"):
        assert " is no orphan: " in shelf.refused(name)

    name = f"{shelf.images}/\udcff"
    answer = shelf.daemon.api("POST", "/orphans/remove", {"files": [f"{shelf.images}/../i/two\nlines", name]})
    assert [one["file"] for one in answer.body["trashed"]] == [f"{shelf.images}/two\nlines", name]
    for one in answer.body["trashed"]:
        assert shelf.daemon.api("POST", f"/trash/{one['id']}/restore").status == 200
    bodies: list[object] = [{"files": ["i/b"]}, {"files": ["/b\0"]}, {"files": "/"}, {"file": []}]
    for wrong in bodies:
        assert shelf.daemon.api("POST", "/orphans/remove", wrong).error["code"] == "bad-request"
    for ident in ("none", "..", "%2e%2e%2fdomain%2fdaisy.xml"):
        for method, path in (("DELETE", f"/trash/{ident}"), ("POST", f"/trash/{ident}/restore")):
            assert shelf.daemon.api(method, path).status == 404


def test_a_directory_by_another_name(short_dir: Path) -> None:
    """Images that are found by two ways are shown once, by their own names."""
    (short_dir / "way").symlink_to("i")
    shelf = Shelf(short_dir, f'image_dirs = ["{short_dir}/way"]')
    with shelf.daemon:
        assert [one["file"] for one in shelf.daemon.get("/orphans")["orphans"]] == [
            shelf.path(name) for name in ("b", "a", "base")
        ]
        assert shelf.daemon.ok("orphans", "--remove", short_dir / "way/b").startswith(
            f"'{shelf.path('b')}' moved"
        )
        shelf.daemon.ok("orphans", "--remove")
        assert [*shelf.trash()] == ["b", "a", "base"]


def test_a_directory_that_no_disk_uses_any_more(short_dir: Path) -> None:
    """Former layers are looked for where they were; a directory that is gone hides nothing."""
    (short_dir / "j").mkdir()
    shelf = Shelf(short_dir, now=short_dir / "j/now")
    with shelf.daemon:
        assert shelf.orphans() == {"b": True, "a": True, "base": True}
        assert shelf.daemon.get("/orphans")["unknown"] == []
        shelf.remove()
        assert [*shelf.trash()] == ["b", "a", "base"]


def test_what_was_there_before_it_is_restored(shelf: Shelf) -> None:
    """Never over another file, nor over a base that has changed or is gone; once that is as it was, it works."""
    shelf.remove("b")
    ident = shelf.trash()["b"]

    def why() -> str:
        line = shelf.daemon.refused("trash", "--restore", ident)
        assert shelf.trash() == {"b": ident}
        return line.replace(f"{shelf.images}/", "").removeprefix("'b' cannot be restored: ")

    other = images.image(shelf.images / "b", SIZE)
    assert why() == "there is a file of that name"
    other.unlink()
    before = os.stat(shelf.path("base"))
    images.write_pattern(shelf.path("base"), "qcow2", 1, 0, 4 * KIB)
    assert why() == "'base' below it has been changed since"
    os.truncate(shelf.path("base"), before.st_size)
    os.utime(shelf.path("base"), ns=(before.st_atime_ns, before.st_mtime_ns))
    os.rename(shelf.path("a"), shelf.path("elsewhere"))
    assert why() == "'a' below it is gone"
    os.rename(shelf.path("elsewhere"), shelf.path("a"))
    shelf.daemon.ok("trash", "--restore", ident)
    assert shelf.orphans() == {"b": True, "a": True, "base": True}
    assert shelf.daemon.refused("trash", "--restore", ident) == f"no image with id '{ident}' in the trash"


@pytest.mark.parametrize("what", ["opened", "written to", "replaced"])
def test_between_the_look_and_the_move(shelf: Shelf, what: str) -> None:
    """The daemon stands still in between. Looked at again, the image stays where it is."""
    daemon = shelf.daemon
    daemon.kill9()
    daemon.start(faults={"QMPSNAP_CRASH": "trash/linked-synced:hang"})
    with daemon.spawn("orphans", "--remove") as client, contextlib.ExitStack() as stack:
        until(lambda: Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if what == "opened":
            stack.enter_context(opened(shelf.path("b"), "-r"))
        elif what == "written to":
            images.write_pattern(shelf.path("b"), "qcow2", 1, 0, 4 * KIB)
        else:
            images.image(shelf.images / "new", SIZE)
            os.rename(shelf.path("new"), shelf.path("b"))
        digest = images.content_digest(shelf.path("b"))
        os.kill(daemon.pid, signal.SIGCONT)
        _stdout, stderr = client.communicate(timeout=PATIENCE)
    reason = "a process has it open" if what == "opened" else "it has been changed meanwhile"
    assert reason in stderr.decode()
    assert client.returncode == 1
    assert images.content_digest(shelf.path("b")) == digest
    if what == "replaced":  # nobody else has a name of the image that was there: it must not go
        assert [*shelf.trash()] == ["b"]
        return
    assert shelf.trash() == {}
    assert os.listdir(shelf.images / BIN) == []


def test_a_directory_that_cannot_be_used(shelf: Shelf) -> None:
    """Something else has the place of the trash: one clear line, and nothing is moved."""
    place = shelf.images / BIN
    for target in ("now", "/"):
        place.symlink_to(target)
        line = shelf.refused()
        assert re.fullmatch(rf"cannot use '{BIN}': (Not a directory|Too many levels of symbolic links)", line)
        place.unlink()
    assert [*shelf.trash()] == []
    assert os.listdir(shelf.daemon.root / "state/trash") == []
    shelf.remove()


def test_what_is_unknown(shelf: Shelf) -> None:
    """While a snapshot cannot be read, nobody knows what it needs: all is shown, nothing is removed, nothing is deleted."""
    shelf.remove("b")
    bad = shelf.write("state/snapshot/daisy/s1.xml", "<domainsnapshot")
    shelf.daemon.restart()
    assert [*shelf.orphans()] == ["a", "base"]
    assert "Nothing can be removed: " in shelf.daemon.ok("orphans")
    assert "who needs it is not known: " in shelf.refused()
    assert "who needs it is not known: " in shelf.refused("a")
    done = shelf.daemon.cli("trash", "--empty")
    assert (done.status, done.stdout) == (1, "\n")
    assert "who needs it is not known: " in done.stderr
    assert [*shelf.trash()] == ["b"]
    bad.unlink()
    shelf.daemon.restart()
    assert [*shelf.orphans()] == ["a", "base"]
    shelf.daemon.ok("trash", "--empty", shelf.trash()["b"])
    assert shelf.trash() == {}


def test_the_grace_time(short_dir: Path) -> None:
    """What has been in the trash for its time is deleted at the daemon's next look, but for what somebody needs again."""
    shelf = Shelf(short_dir, "trash_days = 0")
    with shelf.daemon as daemon:
        shelf.remove()
        ids = shelf.trash()
        assert [*ids] == ["b", "a", "base"]
        moved = {name: str(shelf.images / BIN / ident) for name, ident in ids.items()}
        images.image(shelf.images / "new", SIZE, backing=moved["base"])
        assert daemon.stop() == 0
        with opened(moved["a"], "-r"):
            daemon.start()
            until(lambda: daemon.log.count("Kept in the trash") == 2)
        assert shelf.trash() == {name: ids[name] for name in ("a", "base")}
        assert f"the image '{shelf.path('new')}' has it as its backing file" in daemon.log
        assert "a process has it open" in daemon.log

        os.unlink(shelf.path("new"))
        images.image(shelf.images / "new", SIZE, backing=shelf.path("a"))  # where it was, and no longer is
        done = daemon.cli("trash", "--empty")
        assert (done.status, done.stdout) == (1, f"{ids['base']} deleted\n\n")
        assert f"'{shelf.path('a')}' cannot be removed: the image" in done.stderr
        os.unlink(shelf.path("new"))
        daemon.restart()
        until(lambda: not shelf.trash())


def test_what_no_record_explains(shelf: Shelf) -> None:
    """A file without a record, a record without its file system, and one that is damaged: shown, and never touched."""
    shelf.remove()
    ids = shelf.trash()
    (shelf.images / BIN / "stray").write_text("precious")
    (shelf.daemon.root / "state/trash" / ids["a"]).write_text("{")
    elsewhere = shelf.daemon.root / "state/trash/0123456789ab"
    away = json.loads((shelf.daemon.root / "state/trash" / ids["base"]).read_text())
    gone = {"id": "0123456789ab", "file": "/none/x", "moved": f"/none/{BIN}/0123456789ab", "until": 0}
    gone["when"] = away["when"] + 1
    elsewhere.write_text(json.dumps({**away, **gone}))
    shelf.daemon.restart()
    found = shelf.daemon.get("/trash")
    assert [row["id"] for row in found["trash"]] == [ids["b"], ids["base"], "0123456789ab", None, None]
    assert {Path(row["moved"]).name for row in found["trash"][3:]} == {ids["a"], "stray"}
    assert found["problems"][0].startswith(f"{shelf.daemon.root}/state/trash/{ids['a']} cannot be read: ")
    shown = shelf.daemon.ok("trash").splitlines()
    assert shown[4].endswith("it is not there; is its file system mounted?")
    assert {line.rpartition("  ")[2] for line in shown[5:7]} == {"no record says where it was"}

    done = shelf.daemon.cli("trash", "--empty")
    assert (done.status, done.stdout.count(" deleted\n")) == (1, 2)
    assert done.stderr == (
        f"error: cannot remove '/none/{BIN}/0123456789ab': it is not there; is its file system mounted?\n"
    )
    assert sorted(os.listdir(shelf.images / BIN)) == sorted([ids["a"], "stray"])
    shelf.daemon.ok("trash", "--empty", "0123456789ab")
    assert not elsewhere.exists()
    assert qemu.info(shelf.images / BIN / ids["a"])["format"] == "qcow2"
