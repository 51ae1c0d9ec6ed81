"""Tables, trees, sizes: values in, text out."""

import pytest

from qmpsnap.cli import render
from qmpsnap.cli.client import Document
from qmpsnap.cli.verbs.snapshot_list import chain_text
from tests.cli import golden, world


def test_tree_with_branches_and_two_roots() -> None:
    """The drawing is virsh's, byte for byte (``cat -A`` in facts 1.2)."""
    pairs = [("aroot", None), ("c1", "zroot"), ("c2", "zroot"), ("c3", "zroot"), ("g1", "c1"), ("g2", "c1")]
    pairs += [("gg", "g1"), ("k1", "aroot"), ("zroot", None)]
    assert render.tree(pairs) == golden.text("tree")


def test_a_root_alone_is_followed_by_an_empty_line() -> None:
    assert render.tree([("snap3-daisy", None)]) == "snap3-daisy\n\n"


def test_no_tree() -> None:
    assert render.tree([]) == ""


def test_a_tree_deeper_than_the_recursion_limit() -> None:
    """A chain of 5000 is drawn, not a traceback."""
    pairs: list[tuple[str, str | None]] = [("0", None), *((str(n), str(n - 1)) for n in range(1, 5000))]
    assert render.tree(pairs).count("+- ") == 4999


def test_table_of_odd_names() -> None:
    """Names sort as strcasecmp does, whatever the locale; the order of equals is fixed."""
    made = ("b", "B", "a", "A", "B10", "B2", "_x", "1", "10", "2", "é", "-dash", "sp ace")
    # 1700000000 is 22:13:20; the first was made at :29, one each second.
    times = {name: 1700000009 + number for number, name in enumerate(made)}
    rows = [(name, render.moment(times[name]), "disk-snapshot") for name in sorted(made, key=render.sort_key)]
    assert render.table(("Name", "Creation Time", "State"), rows) == golden.text("odd-names")


def test_an_empty_table_is_its_header() -> None:
    expected = " Name   Creation Time   State\n-------------------------------\n"
    assert render.table(("Name", "Creation Time", "State"), []) == expected


def test_a_quiet_table_is_as_narrow_as_its_cells() -> None:
    """Seen with ``virsh -q list``: the header does not widen the columns."""
    assert (
        render.table(("Id", "Name", "State"), [("1", "test", "running")], quiet=True)
        == " 1   test   running\n"
    )


def test_an_empty_last_cell_keeps_its_place() -> None:
    """As ``snapshot-list --parent`` of a root: three spaces at the end of the line."""
    assert render.table(("A", "B"), [("x", "")], quiet=True) == " x   \n"


@pytest.mark.parametrize(
    ("text", "columns"),
    [("ascii", 5), ("é", 1), ("e\u0301", 1), ("日本", 4), ("ﾊﾝ", 2), ("☃", 1), ("a\u200db", 2), ("", 0)],
)
def test_width(text: str, columns: int) -> None:
    """Wide characters take two columns, combining ones none."""
    assert render.width(text) == columns


def test_wide_and_combining_names_stay_in_line() -> None:
    rows = [("日本", "x"), ("e\u0301", "y"), ("abcd", "z")]
    assert render.table(("N", "V"), rows, quiet=True) == " 日本   x\n e\u0301      y\n abcd   z\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü é 日本 👍", "plain ü é 日本 👍"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\x7f", r"a\x0ab\x09c\x7f"),
        ("\x9b2J", r"\xc2\x9b2J"),
        ("abc\u202etxt", r"abc\xe2\x80\xaetxt"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\xed\xa0\x80"),
        ("no\u00a0break", "no\u00a0break"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """No byte of a name drives the terminal: controls are shown as virsh's tables show them."""
    assert render.printable(text) == shown


def test_controls_are_shown_in_trees_too() -> None:
    assert (
        render.tree([("a\nb", None), ("\x1b]0;x\x07", "a\nb")]) == "a\\x0ab\n  |\n  +- \\x1b]0;x\\x07\n    \n"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.000 B"),
        (1023, "1023.000 B"),
        (1024, "1.000 KiB"),
        (33820672, "32.254 MiB"),
        (33882112, "32.312 MiB"),
        (21474836480, "20.000 GiB"),
        (1 << 50, "1.000 PiB"),
        (1 << 63, "8.000 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert render.size(count) == text


def test_safe_xml() -> None:
    """The controls that XML allows become references, so that the document stays the same."""
    assert render.safe_xml("<name>a\x9bb\x7f é</name>") == "<name>a&#x9b;b&#x7f; é</name>"


def test_chain_after_a_pull() -> None:
    """The chain says what the tree cannot: the image of snap3 left it, and stays readable."""
    snapshots = [Document(one) for one in world.three_snapshots()]
    disk = world.disk("/i/snap3.qcow2", "/export/vmimgs/snap1-daisy.qcow2", "/export/vmimgs/daisy.qcow2")
    snapshots[1] |= {"revertible": False, "why_not": "snap1-daisy.qcow2 was written to"}
    assert chain_text(snapshots, [Document(disk)]) == golden.text("chain")


def test_chain_of_two_disks() -> None:
    """A second disk is a second row; name and verdict stand once."""
    one = Document(world.snapshot("s1"))
    one["disks"] = [
        {"target": t, "overlay": f"/{t}1", "image": f"/{t}0", "format": "qcow2"} for t in ("vda", "vdb")
    ]
    disks = [Document(world.disk("/vda1", "/vda0")), Document(world.disk("/other", target="vdb"))]
    disks.append(Document(world.disk(target="sda", device="cdrom")))
    assert chain_text([one], disks) == golden.text("chain-two-disks")


def test_chain_without_snapshots() -> None:
    assert chain_text([], [Document(world.disk("/a"))]) == "vda: /a (active)\n"
