"""qemu-launch as people run it, and QEMU on the other side: contents tell which layer was booted."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qmpsnap.model import chain
from qmpsnap.plan import steps
from qmpsnap.talk import files, journal
from tests import requires
from tests.conftest import StartMachine
from tests.lab import layouts, qemu
from tests.lab.images import KIB, MIB
from tests.lab.layouts import MARK, MARK_LENGTH, Layout
from tests.launch.conftest import UUID, Home, taken

pytestmark = requires.requires_qemu

NEWEST = 0xA7
PLACE = 512 * KIB


def overlay(path: Path, below: Path, form: str = "qcow2") -> Path:
    """A layer over another that holds something of its own."""
    made = qemu.image(path, backing=below.absolute(), backing_format=form)
    qemu.write_pattern(made, "qcow2", NEWEST, PLACE, 64 * KIB)
    return made


def image(path: Path, form: str = "qcow2") -> Path:
    made = qemu.image(path, 16 * MIB, form)
    qemu.write_pattern(made, form, MARK, 0, MARK_LENGTH)
    return made


def prefix(home: Home) -> list[str]:
    return [*home.program, "--name", "daisy", "--"]


def newest(vm: qemu.Qemu, disk: str) -> bool:
    return vm.guest_read_ok(disk, NEWEST, PLACE, 64 * KIB) and vm.guest_read_ok(disk, MARK, 0, MARK_LENGTH)


# --- from a definition ---


DEFINITION = """
uuid = "0a1b2c3d-0000-4000-8000-00000000da15"
memory = "32M"
accel = "tcg"
firmware = "{firmware}"
agent = true
[[disk]]
target = "vda"
file = "{file}"
format = "raw"
[[disk]]
target = "sda"
file = "{second}"
format = "qcow2"
bus = "scsi"
"""


def define(home: Home, where: Path) -> tuple[Path, Path]:
    firmware = qemu.idle_firmware(where / "idle.bin")
    first, second = image(where / "a.raw", "raw"), image(where / "b.qcow2")
    home.define("daisy", DEFINITION.format(firmware=firmware, file=first, second=second))
    return first, second


def start(home: Home, *arguments: str) -> qemu.Qemu:
    folder = Path(home.paths.machine_dir("daisy"))
    folder.mkdir(parents=True)
    return qemu.Qemu(folder, [*home.program, "daisy", *arguments], env=home.env)


def query(path: str, command: str) -> Any:
    client = qemu.QMP(Path(path))
    try:
        return client.execute(command)
    finally:
        client.close()


def test_dry_run_is_one_line_and_makes_nothing(home: Home, short_dir: Path) -> None:
    define(home, short_dir)
    before = sorted(short_dir.rglob("*"))
    done = home.run("--dry-run", "daisy", "--", "-S")
    run = f"{short_dir}/root/run/domain/daisy"
    json_a = (
        '{"driver": "raw", "node-name": "disk-vda", "file": {"driver": "file", "node-name": "disk-vda-file",'
        f' "filename": "{short_dir}/a.raw"}}}}'
    )
    json_b = (
        '{"driver": "qcow2", "node-name": "disk-sda", "file": {"driver": "file", "node-name": "disk-sda-file",'
        f' "filename": "{short_dir}/b.qcow2"}}}}'
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"qemu-system-x86_64 -name guest=daisy -uuid {UUID} -machine q35,accel=tcg -cpu max -m 32M -smp 1"
        f" -nodefaults -no-user-config -display none -bios {short_dir}/idle.bin -device virtio-scsi-pci,id=scsi0"
        f" -blockdev '{json_a}' -device virtio-blk-pci,id=vda,drive=disk-vda,bootindex=1"
        f" -blockdev '{json_b}' -device scsi-hd,bus=scsi0.0,scsi-id=0,id=sda,drive=disk-sda,bootindex=2"
        f" -chardev socket,id=console,path={run}/console.sock,server=on,wait=off -serial chardev:console"
        f" -chardev socket,id=qmp,path={run}/qmp.sock,server=on,wait=off -mon chardev=qmp,mode=control"
        f" -device virtio-serial-pci -chardev socket,id=agent,path={run}/agent.sock,server=on,wait=off"
        " -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 -S"
        f" -chardev socket,id=qmpsnap,path={run}/monitor.sock,server=on,wait=off -mon chardev=qmpsnap,mode=control\n"
    )
    assert sorted(short_dir.rglob("*")) == before


def test_a_defined_machine_runs(home: Home, short_dir: Path) -> None:
    define(home, short_dir)
    with start(home, "--", "-boot", "menu=off") as vm:
        row = query(home.paths.monitor("daisy"), "query-block")
        assert [r["qdev"] for r in row] == ["/machine/peripheral/vda/virtio-backend", "sda"]
        assert vm.guest_read_ok("vda", MARK, 0, MARK_LENGTH)
        assert vm.guest_read_ok("sda", MARK, 0, MARK_LENGTH)
        assert vm.qmp("query-uuid")["UUID"] == UUID
        assert vm.qmp("query-name")["name"] == "daisy"
        names = {"monitor.sock", "qmp.sock", "agent.sock", "console.sock", "lock"}
        assert names <= set(os.listdir(vm.directory))
        assert Path(f"/proc/{vm.pid}/comm").read_text().startswith("qemu-system")


@pytest.mark.parametrize(
    ("machine", "bus"),
    [*itertools.product(["q35", "pc"], ["virtio", "scsi", "sata"]), ("pc", "ide")],
)
def test_every_bus(home: Home, short_dir: Path, machine: str, bus: str) -> None:
    first, second = image(short_dir / "a.qcow2"), image(short_dir / "b.qcow2")
    text = f'accel = "tcg"\nmachine = "{machine}"\nmemory = "32M"\n'
    text += f'firmware = "{qemu.idle_firmware(short_dir / "idle.bin")}"\n'
    for target, file in (("d1", first), ("d2", second)):
        text += f'[[disk]]\ntarget = "{target}"\nfile = "{file}"\nformat = "qcow2"\nbus = "{bus}"\n'
    home.define("daisy", text)
    with start(home) as vm:
        assert vm.guest_read_ok("d1", MARK, 0, MARK_LENGTH)
        assert vm.guest_read_ok("d2", MARK, 0, MARK_LENGTH)
        assert vm.guest_io("d2", "length")


def test_a_defined_machine_boots_its_recorded_layer(home: Home, short_dir: Path) -> None:
    first, second = define(home, short_dir)
    top = overlay(short_dir / "a.s1", first, "raw")
    home.record("daisy", {"vda": top, "sda": second}, [taken("s1", "vda", first, top, "raw")])
    with start(home) as vm:
        assert newest(vm, "vda")
        assert vm.guest_read_ok("sda", MARK, 0, MARK_LENGTH)
        assert f"qemu-launch: vda: {first} -> {top}" in vm.stderr


def test_after_a_pull_the_definition_still_finds_its_disk(home: Home, short_dir: Path) -> None:
    """The definition's file is no longer in the chain; that it is the state of a snapshot of vda is what connects them."""
    first, second = define(home, short_dir)
    top = image(short_dir / "a.s1")  # pulled: nothing is below it
    qemu.write_pattern(top, "qcow2", NEWEST, PLACE, 64 * KIB)
    home.record("daisy", {"vda": top, "sda": second}, [taken("s1", "vda", first, top, "raw")])
    with start(home) as vm:
        assert newest(vm, "vda")


def test_a_definition_that_names_another_image(home: Home, short_dir: Path) -> None:
    first, second = define(home, short_dir)
    old = image(short_dir / "old.qcow2")
    home.record("daisy", {"vda": old, "sda": second})
    done = home.run("daisy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: '{first}' is not in the backing chain of disk vda of domain 'daisy', whose active layer is '{old}';"
        " name that one, or use what is named with --as-given\n"
    )
    assert str(first) in home.run("daisy", "--as-given", "--dry-run").stdout


def test_a_new_disk_in_the_definition(home: Home, short_dir: Path) -> None:
    first, _second = define(home, short_dir)
    home.record("daisy", {"vda": (first, "raw")})
    assert "b.qcow2" in home.run("daisy", "--dry-run").stdout


def test_a_disk_less_and_a_disk_more(home: Home, short_dir: Path) -> None:
    """The definition says which disk is which: a new one is not mistaken for the recorded one that is gone."""
    first, second = define(home, short_dir)
    home.record("daisy", {"vda": (first, "raw"), "vdx": image(short_dir / "x.qcow2")})
    assert f"{second}" in home.run("daisy", "--dry-run").stdout


def test_disks_in_extra_arguments(home: Home, short_dir: Path) -> None:
    base = image(short_dir / "base.qcow2")
    top = overlay(short_dir / "top", base)
    home.define("daisy", f'accel = "tcg"\nextra_args = ["-drive", "file={base},if=virtio"]\n')
    home.record("daisy", {"vda": top})
    assert f"file={top},if=virtio,format=qcow2" in home.run("daisy", "--dry-run").stdout


def test_a_damaged_snapshot_does_not_keep_a_machine_off(home: Home, short_dir: Path) -> None:
    first, second = define(home, short_dir)
    top = overlay(short_dir / "a.s1", first, "raw")
    home.record("daisy", {"vda": top, "sda": second}, [taken("s1", "vda", first, top, "raw")])
    Path(home.paths.snapshot_file("daisy", "s1")).write_text("")
    done = home.run("daisy", "--dry-run")
    assert str(top) in done.stdout
    assert "s1.xml" in done.stderr


def test_a_missing_active_layer(home: Home, short_dir: Path) -> None:
    _first, second = define(home, short_dir)
    home.record("daisy", {"vda": short_dir / "gone.s1", "sda": second})
    done = home.run("daisy")
    assert done.returncode == 1
    assert f"'{short_dir}/gone.s1', which is missing" in done.stderr


def test_no_definition(home: Home) -> None:
    done = home.run("daisy")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: domain 'daisy' is not defined: there is no {home.paths.definition_file('daisy')}\n"
    )


def test_a_machine_that_somebody_else_starts(home: Home) -> None:
    home.define("daisy", 'monitor = "/run/daisy.sock"\n')
    assert "monitor says that somebody else starts it" in home.run("daisy").stderr


def test_usage() -> None:
    home = Home(Path("/nonexistent"))
    for arguments in (
        [],
        ["a", "--name", "b", "--", "true"],
        ["--name", "b"],
        ["a", "b"],
        ["--wait", "x", "a"],
    ):
        done = home.run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
    assert home.run("../x").stderr == "error: invalid domain name '../x': name can't contain '/'\n"
    assert home.run("--help").returncode == 0


# --- an existing command ---


@pytest.mark.parametrize("layout", layouts.all_layouts(), ids=str)
def test_every_layout_starts_on_its_active_layers(
    layout: Layout, home: Home, short_dir: Path, machine: StartMachine
) -> None:
    """Whatever way the disks are given, the guest reads what is only in the newest layer, and writes go there."""
    if layout.name == "native-aio" and not layouts.direct_io(short_dir):
        pytest.skip("the file system has no O_DIRECT")
    setup = layout.prepare(short_dir)
    ours = [d for d in setup.disks if d.kind in {"disk", "bare", "temporary"} and d.path is not None]
    tops = {d.guest: overlay(short_dir / f"top{n}", d.path, d.format) for n, d in enumerate(ours) if d.path}
    home.record("daisy", tops)
    vm = machine(setup.args, prefix=prefix(home), env=home.env, **setup.keywords)
    for disk in ours:
        assert disk.path is not None
        before = disk.path.read_bytes()
        assert newest(vm, disk.guest)
        vm.guest_write(disk.guest, 0x77, 1 * MIB, 64 * KIB)
        vm.guest_flush(disk.guest)
        assert qemu.read_ok(tops[disk.guest], 0x77, 1 * MIB, 64 * KIB) == (disk.kind != "temporary")
        assert disk.path.read_bytes() == before
        top = vm.backend(disk.guest)["inserted"]
        assert top["cache"]["direct"] == disk.direct
        if disk.kind != "temporary":
            assert not disk.node or disk.filters or top["node-name"] == disk.node


@pytest.mark.parametrize("option", ["-hda", ""])
def test_shorthands(option: str, home: Home, short_dir: Path, machine: StartMachine) -> None:
    base = image(short_dir / "base.raw", "raw")
    home.record("daisy", {"hda": overlay(short_dir / "top", base, "raw")})
    arguments = [option, "base.raw"] if option else ["base.raw"]
    vm = machine(arguments, prefix=prefix(home), env=home.env, cwd=short_dir, machine_type="pc")
    assert newest(vm, "ide0-hd0")


def test_positional_image_before_its_options(home: Home, short_dir: Path, machine: StartMachine) -> None:
    base = image(short_dir / "base.raw", "raw")
    home.record("daisy", {"hda": overlay(short_dir / "top", base, "raw")})
    vm = machine([base, "-rtc", "base=utc"], prefix=prefix(home), env=home.env, machine_type="pc")
    assert newest(vm, "ide0-hd0")


def test_the_first_start_records_nothing_and_has_a_monitor(
    home: Home, short_dir: Path, machine: StartMachine
) -> None:
    base = image(short_dir / "a, b.qcow2")
    vm = machine(
        ["-drive", f"file={qemu.escape(base)},format=qcow2,if=virtio"], prefix=prefix(home), env=home.env
    )
    assert query(home.paths.monitor("daisy"), "query-status")["running"]
    assert vm.guest_read_ok("virtio0", MARK, 0, MARK_LENGTH)
    assert not Path(home.paths.state).exists()


def test_guard(home: Home, short_dir: Path) -> None:
    """Images below other machines' disks, and states of snapshots, are not written to; to read them is allowed."""
    base = image(short_dir / "base.qcow2")
    top = overlay(short_dir / "top", base)
    side = image(short_dir / "side.qcow2")
    home.record("rose", {"vda": top}, [taken("s1", "vda", side, top)])
    for file in (base, side):
        done = home.run("--name", "daisy", "--", "/bin/echo", "-drive", f"file={file},format=qcow2")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: '{file}' must not be written to: it ")
        assert "domain 'rose'" in done.stderr
        read = home.run("--name", "daisy", "--", "/bin/echo", "-drive", f"file={file},readonly=on")
        assert read.returncode == 0, read.stderr
    assert "snapshot 's1' of domain 'rose'" in done.stderr


def test_guard_knows_definitions_that_never_ran(home: Home, short_dir: Path) -> None:
    base = image(short_dir / "base.qcow2")
    clone = overlay(short_dir / "clone", base)
    home.define("rose", f'[[disk]]\ntarget = "vda"\nfile = "{clone}"\nformat = "qcow2"\n')
    done = home.run("--name", "daisy", "--", "/bin/echo", base)
    assert "disk vda of domain 'rose' boots that" in done.stderr


def test_guard_of_the_machine_itself(home: Home, short_dir: Path) -> None:
    """--as-given takes any image but one that this would damage."""
    base = image(short_dir / "base.qcow2")
    top = overlay(short_dir / "top", base)
    home.record("daisy", {"vda": top}, [taken("s1", "vda", base, top)])
    done = home.run("--as-given", "--name", "daisy", "--", "/bin/echo", "-hda", base)
    assert "it holds the state of snapshot 's1' of domain 'daisy'" in done.stderr


def test_other_machines_damage_does_not_stop_ours(home: Home, short_dir: Path) -> None:
    base = image(short_dir / "base.qcow2")
    home.record("rose", {"vda": short_dir / "gone"})
    Path(home.paths.domain_file("lily")).write_text("<domain>")
    home.define("tulip", "disk = 1\n")
    done = home.run("--name", "daisy", "--", "/bin/echo", base)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{base} -chardev")
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["qemu-launch"] * 2
    # But one's own record is what a start is built on.
    assert home.run("--name", "lily", "--", "/bin/echo", base).returncode == 1


def test_drives_in_a_file_that_we_do_not_read(home: Home, short_dir: Path) -> None:
    base = image(short_dir / "base.qcow2")
    hidden, harmless = short_dir / "hidden", short_dir / "harmless"
    hidden.write_text(f'[drive "a"]\nfile = "{base}"\n')
    harmless.write_text("[machine]\n")
    home.record("daisy", {"vda": overlay(short_dir / "top", base)})
    done = home.run("--name", "daisy", "--", "/bin/echo", "-readconfig", hidden)
    assert f"cannot see which images '-readconfig {hidden}' opens" in done.stderr
    assert home.run("--name", "daisy", "--", "/bin/echo", "-readconfig", harmless).returncode == 0


# --- running, changing, undecided ---


def test_already_running(home: Home, short_dir: Path) -> None:
    define(home, short_dir)
    with start(home) as vm:
        done = home.run("daisy")
        assert done.returncode == 1
        assert done.stderr == (
            f"error: domain 'daisy' is already running: {home.paths.monitor('daisy')} answers\n"
        )
        assert vm.alive
        vm.kill9()
        folder = Path(home.paths.machine_dir("daisy"))
        assert (folder / "monitor.sock").exists()
        with qemu.Qemu(folder, [*home.program, "daisy"], env=home.env) as again:
            assert again.guest_read_ok("vda", MARK, 0, MARK_LENGTH)


def test_qemu_holds_the_machines_lock_until_it_ends(home: Home, short_dir: Path) -> None:
    define(home, short_dir)
    with start(home) as vm, open(f"{home.paths.machine_dir('daisy')}/lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        vm.kill9()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_open_journal_waits_for_the_daemon(home: Home, short_dir: Path) -> None:
    """While the daemon has not decided, nothing starts; when it has, what it decided is booted."""
    first, second = define(home, short_dir)
    home.record("daisy", {"vda": (first, "raw"), "sda": second})
    entry = home.open_journal("daisy")
    daemon = files.lock(home.paths.lock)
    assert "unfinished operation (op1)" in home.run("daisy", "--wait", "0.2").stderr
    assert "unfinished operation (op1)" in home.run("daisy", "--dry-run").stderr
    with subprocess.Popen([*home.program, "daisy", "--", "-S"], env={**os.environ, **home.env}) as waiting:
        try:
            top = overlay(short_dir / "a.s1", first, "raw")
            home.record("daisy", {"vda": top, "sda": second})
            entry.unlink()
            monitor = until_it_answers(home)
            block = monitor.execute("query-block")
            assert block[0]["inserted"]["file"] == str(top)
            monitor.close()
        finally:
            waiting.kill()
            os.close(daemon)


@pytest.mark.parametrize("written", [True, False])
def test_a_crash_in_a_snapshot_is_settled_before_the_boot(home: Home, short_dir: Path, written: bool) -> None:
    """Daemon and QEMU died between transaction and record: if QEMU had written to the overlay it is the disk, else it never was."""
    first, second = define(home, short_dir)
    home.record("daisy", {"vda": (first, "raw"), "sda": second})
    top, temp = short_dir / "a.s1", str(short_dir / ".temp")
    qemu.image(top, backing=first, backing_format="raw")
    if written:
        qemu.write_pattern(top, "qcow2", NEWEST, PLACE, 64 * KIB)
    undo = steps.RemoveOverlay(str(top), temp, str(first))
    make = steps.MakeOverlay(str(top), temp, str(first), "raw", 16 * MIB, str(first))
    expected = chain.Layer("qs-1-0", "qcow2", str(top), 16 * MIB)
    work = [
        steps.Step("create", make, undo),
        steps.Step("transaction", steps.Command("transaction", {"actions": []})),
        steps.Step("look", steps.ExpectActive({"vda": expected})),
        steps.Step("record", steps.Record({"vda": (str(top), "qcow2")}, {})),
    ]
    plan = steps.Plan("snapshot-create", "daisy", tuple(work), commit=2, targets=("vda",))
    journal.Journal(home.paths).begin(journal.Entry("1", 1.0, plan))
    with start(home) as vm:
        assert vm.backend("vda")["inserted"]["file"] == str(top if written else first)
        assert vm.guest_read_ok("vda", NEWEST if written else 0, PLACE, 64 * KIB)
        assert top.exists() == written
        assert "Recovery" in vm.stderr
        assert "Step done" not in vm.stderr  # that is for the daemon's debug log
        assert os.listdir(home.paths.journal_dir("daisy")) == []


def until_it_answers(home: Home) -> qemu.QMP:
    deadline = time.monotonic() + qemu.PATIENCE
    while True:
        try:
            return qemu.QMP(Path(home.paths.monitor("daisy")))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.01)  # the socket appears without an event


def test_a_socket_path_that_is_too_long(short_dir: Path) -> None:
    home = Home(short_dir / ("x" * 100))
    done = home.run("--name", "daisy", "--", "/bin/echo")
    assert (done.returncode, done.stdout) == (1, "")
    assert "107 are possible" in done.stderr
    assert not home.folder.exists()


def test_no_such_program(home: Home) -> None:
    done = home.run("--name", "daisy", "--", "/nowhere/qemu")
    assert done.stderr == "error: cannot execute '/nowhere/qemu': No such file or directory\n"


def test_the_command_has_plain_signals_and_one_descriptor_more(home: Home) -> None:
    script = "grep SigIgn /proc/self/status; ls /proc/self/fd"
    done = home.run("--name", "daisy", "--", "/bin/sh", "-c", script)
    _name, ignored, *descriptors = done.stdout.split()
    # Python had these two ignored; what whoever started us ignores (nohup's SIGHUP) stays so.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not int(ignored, 16) >> (number - 1) & 1
    assert len(descriptors) == 5  # three, the lock, and the one by which ls reads


def test_it_starts_at_once() -> None:
    """None of the daemon's libraries: a boot does not wait for them."""
    heavy = {"trio", "structlog", "starlette", "qemu.qmp", "cattrs", "asyncio", "h11", "rich"}
    code = f"import json, sys, qemu_launch.main; print(json.dumps(sorted({heavy!r} & set(sys.modules))))"
    home = Home(Path("/nonexistent"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, **home.env}
    )
    assert json.loads(done.stdout) == []
