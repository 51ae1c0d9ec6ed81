"""Errors, names, settings: the lowest layer."""

from __future__ import annotations

import re

import pytest

from qmpsnap import config, errors, paths
from qmpsnap.model import names

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.Error)]


def test_every_code_is_one_error() -> None:
    """A program can tell errors apart by their code."""
    codes = [c.code for c in CLASSES]

    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_one_line(kind: type[errors.Error]) -> None:
    """A message never breaks the line, whatever its facts are, and the exit status is an error's."""

    error = kind(**dict.fromkeys(_fields(kind.msg), _Lines("one\ntwo")))

    assert "\n" not in str(error)
    assert kind.status > 0
    assert 400 <= kind.http < 600


class _Lines(str):
    """A fact of two lines, which takes any format, a number's too."""

    def __format__(self, _spec: str) -> str:
        return str(self)


def _fields(template: str) -> list[str]:
    return ["reason", *re.findall(r"{self\.(\w+)", template)]


@pytest.mark.parametrize("name", ["s1", "name with spaces", "uni-é-☃", "<a>&\"'", "-dash", "a" * 247])
def test_good_names(name: str) -> None:
    """Whatever can be a file and stand in XML is a name."""
    assert names.check(name, "snapshot") == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "../evil", ".hidden", "..", "a\nb", "a\0b", "\x1b[31m", "é" * 124, "a\ud800"]
)
def test_bad_names(name: str) -> None:
    """The rest is refused, in one printable line."""
    with pytest.raises(errors.BadName) as caught:
        names.check(name, "snapshot")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("image", "overlay"),
    [
        ("/i/daisy.qcow2", "/i/daisy.s1"),
        ("/i/daisy", "/i/daisy.s1"),
        ("/i/a.b.c", "/i/a.b.s1"),
        ("/i.d/daisy", "/i.d/daisy.s1"),
        ("/i/.img", "/i/.img.s1"),
    ],
)
def test_overlay_is_named_as_libvirt_names_it(image: str, overlay: str) -> None:
    """The last extension is replaced by the snapshot's name."""
    assert names.overlay_file(image, "s1") == overlay


def test_devices_are_told_by_their_place() -> None:
    """An image in /dev/shm is a file."""
    assert names.is_device("/dev/vg/lv")
    assert not names.is_device("/dev/shm/daisy.qcow2")
    assert not names.is_device("/devices/x")


DEFINITION = 'memory = "1G"\n[[disk]]\ntarget = "vda"\nfile = "/i/a.qcow2"\nformat = "qcow2"\n'


def test_definition() -> None:
    """Defaults fill what is not said; the file's name is the machine's."""
    found = config.definition(DEFINITION, "daisy.toml", "daisy")

    assert found.name == "daisy"
    assert found.memory == "1G"
    assert found.disk == (config.DiskDefinition("vda", "/i/a.qcow2", "qcow2", "virtio"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memoy = '1G'", "d.toml: memoy is unknown; known:"),
        ("memory = 5", "d.toml: memory must be a str, not 5"),
        ("vcpus = true", "d.toml: vcpus must be a int, not True"),
        ("name = 'other'", "d.toml: name is 'other', but the file names 'daisy'"),
        ("memory = ", "d.toml:  is not TOML"),
        ("disk = 5", "d.toml: disk must be written as [[disk]]"),
        ("[[disk]]\ntarget = 'vda'", "d.toml: disk[0].file is missing"),
        (DEFINITION.replace("/i/", "i/"), "d.toml: disk[0].file must be an absolute path"),
        (DEFINITION + 'bus = "usb"\n', "d.toml: disk[0].bus is 'usb'; allowed: virtio, scsi, sata, ide"),
        (DEFINITION + DEFINITION.partition("\n")[2], "d.toml: disk.target names a target twice"),
        ("extra_args = 'x'", "d.toml: extra_args must be a list of strings"),
    ],
)
def test_bad_definitions(text: str, message: str) -> None:
    """File, key and reason, in one line."""
    with pytest.raises(errors.ConfigError) as caught:
        config.definition(text, "d.toml", "daisy")
    assert str(caught.value).startswith(message)


def test_settings() -> None:
    """Every setting has its type and its choices."""
    assert config.settings("", "q.toml") == config.Settings()
    assert config.settings('overlay = "blockdev"', "q.toml").overlay == "blockdev"
    with pytest.raises(errors.ConfigError, match="overlay is 'x'; allowed: auto, blockdev"):
        config.settings('overlay = "x"', "q.toml")


def test_paths() -> None:
    """QMPSNAP_ROOT, then systemd's directories, then those of root or of the user."""
    assert paths.find({"QMPSNAP_ROOT": "/r"}, 0).socket == "/r/run/qmpsnap.sock"
    assert paths.find({"STATE_DIRECTORY": "/s:/t"}, 0).state == "/s"
    assert paths.find({}, 0).state == "/var/lib/qmpsnap"
    assert paths.find({"HOME": "/h"}, 5).config == "/h/.config/qmpsnap"
    assert paths.find({"XDG_RUNTIME_DIR": "/x"}, 5).run == "/x/qmpsnap"
