"""The command line is read as virsh reads it; where virsh is installed, virsh itself is the oracle."""

import shutil
import subprocess

import pytest

from qmpsnap.cli import client, verbs
from qmpsnap.cli.failure import Usage
from qmpsnap.cli.main import main
from qmpsnap.cli.parser import parse
from qmpsnap.cli.verbs.scaled import factor
from qmpsnap.cli.verbs.snapshot_create import split_commas
from tests.cli.conftest import Run, Serve
from tests.cli.world import World

# (words, the lines on stderr): all measured with virsh 9.0.0. None of them prints anything on stdout.
USAGE = [
    ("snapshot-list", "command 'snapshot-list' requires <domain> option"),
    ("snapshot-dumpxml test", "command 'snapshot-dumpxml' requires <snapshotname> option"),
    ("blockpull", "command 'blockpull' requires <domain> option\ncommand 'blockpull' requires <path> option"),
    ("snapshot-list test --bogus", "command 'snapshot-list' doesn't support option --bogus"),
    ("snapshot-list test --fr a", "command 'snapshot-list' doesn't support option --fr"),
    ("list --NAME", "command 'list' doesn't support option --NAME"),
    ("snapshot-list --bogus --help", "command 'snapshot-list' doesn't support option --bogus"),
    ("foo", "unknown command: 'foo'"),
    ("list extra", "unexpected data 'extra'"),
    ("list -- --all", "unexpected data '--all'"),
    ("list -", "unexpected data '-'"),
    ("list --=", "unexpected data '--='"),
    ("list ---name", "unexpected data '---name'"),
    ("snapshot-list test --tree=yes", "invalid '=' after option --tree"),
    ("list --name=", "invalid '=' after option --name"),
    ("list --help=3", "invalid '=' after option --help"),
    ("snapshot-list test --from", "expected syntax: --from <string>"),
    ("snapshot-list --domain", "expected syntax: --domain <string>"),
    ("blockpull test vda --bandwidth", "expected syntax: --bandwidth <number>"),
    ("snapshot-list test --domain test", "option --domain already seen"),
    ("snapshot-list test --tree --tree", "option --tree already seen"),
]

MALFORMED = "Scaled numeric value '{}' for <--bandwidth> option is malformed or out of range"

# (words, the lines on stderr): found when the command has begun, so stdout gets virsh's empty line.
BEGUN = [
    ("snapshot-list test --tree --name", "Options --tree and --name are mutually exclusive"),
    ("snapshot-list test --parent --roots", "Options --parent and --roots are mutually exclusive"),
    ("snapshot-list test --parent --tree", "Options --parent and --tree are mutually exclusive"),
    ("snapshot-list test --tree --roots", "Options --roots and --tree are mutually exclusive"),
    ("snapshot-list test --roots --from x", "Options --roots and --from are mutually exclusive"),
    ("snapshot-list test --roots --current", "Options --roots and --current are mutually exclusive"),
    ("snapshot-list test --from a --current", "--from and --current are mutually exclusive"),
    ("snapshot-list test --descendants", "--descendants requires either --from or --current"),
    ("snapshot-list test --tree --leaves", "--leaves and --tree are mutually exclusive"),
    ("snapshot-list test --tree --no-leaves", "--no-leaves and --tree are mutually exclusive"),
    ("snapshot-list test --from=", "Failed to get option 'from': Option argument is empty"),
    ("snapshot-list --domain=", "Failed to get option 'domain': Option argument is empty"),
    ("snapshot-info test", "--snapshotname or --current is required"),
    ("snapshot-info test x --current", "--snapshotname and --current are mutually exclusive"),
    ("snapshot-parent test", "--snapshotname or --current is required"),
    ("snapshot-delete test x --current", "--snapshotname and --current are mutually exclusive"),
    ("snapshot-current test x --name", "Options --name and --snapshotname are mutually exclusive"),
    ("list --table --name", "Options --table and --name are mutually exclusive"),
    ("domblkinfo test", "command 'domblkinfo' requires <device> option"),
    ("domblkinfo test --device=", "command 'domblkinfo' requires <device> option"),
    ("domblkinfo test vda --all", "Options --all and --device are mutually exclusive"),
    ("blockpull test vda --verbose", "Option --wait is required by option --verbose"),
    ("blockpull test vda --async", "Option --wait is required by option --async"),
    ("blockpull test vda --timeout 0", "Numeric value '0' for <timeout> option is malformed or out of range"),
    (
        "blockpull test vda --timeout -1",
        "Numeric value '-1' for <timeout> option is malformed or out of range",
    ),
    ("blockpull test vda --timeout=", "Numeric value '' for <timeout> option is malformed or out of range"),
    ("blockpull test vda --base=", "Failed to get option 'base': Option argument is empty"),
    ("blockpull test vda --bandwidth abc", MALFORMED.format("abc")),
    (
        "blockpull test vda --bandwidth 1.5",
        f"{MALFORMED.format('1.5')}\ninvalid argument: unknown suffix '.5'",
    ),
    ("blockpull test vda --bandwidth 99999999999999999999", MALFORMED.format("99999999999999999999")),
    ("blockjob test vda --info --abort", "Options --info and --abort are mutually exclusive"),
    ("blockjob test vda --info --async --pivot", "Options --info and --pivot are mutually exclusive"),
    ("blockjob test vda --raw --info --bandwidth 3", "Options --raw and --bandwidth are mutually exclusive"),
    ("blockjob test vda --bytes --async", "Options --bytes and --async are mutually exclusive"),
    ("snapshot-create-as test n d --memspec foo,bar", "unable to parse memspec: foo,bar"),
    (
        "snapshot-create-as test --diskspec vda,stype=bogus,file=/x",
        "Unknown storage type: 'bogus'\nunable to parse diskspec: vda,stype=bogus,file=/x",
    ),
    (
        "snapshot-create-as test --diskspec vda,file=/a,file=/b",
        "unable to parse diskspec: vda,file=/a,file=/b",
    ),
]


def _errors(lines: str) -> str:
    return "".join(f"error: {line}\n" for line in lines.split("\n"))


@pytest.mark.parametrize(("words", "lines"), USAGE, ids=[words for words, _ in USAGE])
def test_usage(words: str, lines: str, run: Run) -> None:
    """Words that cannot be understood are answered without the daemon."""
    assert run(*words.split(" ")) == (1, "", _errors(lines))


@pytest.mark.parametrize(("words", "lines"), BEGUN, ids=[words for words, _ in BEGUN])
def test_contradictions(words: str, lines: str, run: Run, serve: Serve) -> None:
    """Options that contradict each other, and values that are none."""
    serve(World())
    assert run(*words.split(" ")) == (1, "\n", _errors(lines))


@pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is not installed")
@pytest.mark.parametrize(("words", "lines"), [*USAGE, *BEGUN], ids=[words for words, _ in [*USAGE, *BEGUN]])
def test_virsh_says_the_same(words: str, lines: str) -> None:
    """The expectations above are virsh's own words (its test driver needs no libvirtd)."""
    command = ["virsh", "-c", "test:///default", *words.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    blank = "" if (words, lines) in USAGE else "\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, blank, _errors(lines))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("snapshot-create-as daisy --disk-only s1", {"domain": "daisy", "name": "s1"}),
        (
            "snapshot-create-as daisy s1 --disk-only text",
            {"domain": "daisy", "name": "s1", "description": "text"},
        ),
        ("snapshot-create-as s1 --domain daisy", {"domain": "s1"}),
        ("snapshot-list --domain daisy x", {"domain": "daisy", "from": "x"}),
        ("snapshot-info daisy -dash", {"snapshotname": "-dash"}),
        ("snapshot-info daisy --snapshotname --foo", {"snapshotname": "--foo"}),
        ("snapshot-info --snapshotname=--foo --domain=daisy", {"snapshotname": "--foo", "domain": "daisy"}),
        ("snapshot-list daisy -- --from", {"from": "--from"}),
        ("blockpull daisy vda 5 base", {"bandwidth": "5", "base": "base"}),
        ("list --", {}),
    ],
)
def test_a_word_fills_the_next_free_option(words: str, options: dict[str, str]) -> None:
    """virsh's rule, which argparse cannot follow."""
    name, *rest = words.split()
    verb = verbs.find(name)
    assert verb is not None
    if words == "snapshot-create-as s1 --domain daisy":
        with pytest.raises(Usage, match="already seen"):
            parse(verb, rest)
        return
    args = parse(verb, rest)
    assert {option: args.raw(option) for option in options} == options


def test_words_left_over_are_diskspecs() -> None:
    verb = verbs.find("snapshot-create-as")
    assert verb is not None
    args = parse(verb, ["daisy", "n", "d", "vda", "--diskspec", "vdb,file=/x", "vdc"])
    assert args.every("diskspec") == ["vda", "vdb,file=/x", "vdc"]
    assert args.raw("memspec") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vda", ["vda"]),
        ("a,b=/x,,y,c", ["a", "b=/x,y", "c"]),
        ("", [""]),
        (",,", [","]),
        ("a,", ["a", ""]),
        (",,,b", [",", "b"]),
    ],
)
def test_split_commas(text: str, parts: list[str]) -> None:
    assert split_commas(text) == parts


@pytest.mark.parametrize(
    ("suffix", "value"),
    [
        ("k", 1024),
        ("KiB", 1024),
        ("kB", 1000),
        ("M", 1 << 20),
        ("g", 1 << 30),
        ("bytes", 1),
        ("b", 1),
        ("x", None),
        ("kk", None),
    ],
)
def test_units(suffix: str, value: int | None) -> None:
    assert factor(suffix) == value


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--bogus list", "unsupported option '--bogus'. See --help."),
        ("-x list", "unsupported option '-x'. See --help."),
        ("--quiet=1 list", "unsupported option '--quiet'. See --help."),
        ("-c", "option '-c'/'--connect' requires an argument"),
        ("--output xml list", "unsupported output format 'xml': use text or json"),
        ("list --output xml", "unsupported output format 'xml': use text or json"),
        ("--output json detach daisy", "command 'detach' doesn't support option --output"),
        ("help foo", "command or command group 'foo' doesn't exist"),
    ],
)
def test_global_options(words: str, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 1
    assert capsys.readouterr() == ("", _errors(lines))


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["-q", "help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb is in the help; without arguments the help is what there is."""
    assert main(words) == 0
    out = capsys.readouterr().out
    for _, _, group in verbs.GROUPS:
        for verb in group:
            assert f"\n    {verb.name} " in out


@pytest.mark.parametrize(
    "words", [["help", "snapshot-info"], ["snapshot-info", "--help"], ["snapshot-info", "d", "--help"]]
)
def test_help_of_a_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == (
        "  NAME\n    snapshot-info - snapshot information\n\n"
        "  SYNOPSIS\n    snapshot-info <domain> [--snapshotname <string>] [--current] [--output <string>]\n\n"
        "  DESCRIPTION\n    Returns basic information about a snapshot.\n\n"
        "  OPTIONS\n"
        "    [--domain] <string>  domain name\n"
        "    --snapshotname <string>  snapshot name\n"
        "    --current        info on current snapshot\n"
        "    --output <string>  text (default) or json: the daemon's answer\n\n\n"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


@pytest.mark.parametrize("name", [verb.name for _, _, group in verbs.GROUPS for verb in group])
def test_every_verb_has_its_function(name: str) -> None:
    from qmpsnap.cli.main import _handler

    verb = verbs.find(name)
    assert verb is not None
    assert callable(_handler(verb))


@pytest.mark.parametrize("environ", [{"QMPSNAP_ROOT": "/r"}, {"XDG_RUNTIME_DIR": "/run/user/7"}, {}])
@pytest.mark.parametrize("uid", [0, 1000])
def test_the_socket_is_where_the_daemon_puts_it(
    environ: dict[str, str], uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's copy of the rule (it may not import attrs) agrees with ``paths.find``."""
    from qmpsnap import paths

    for name in ("QMPSNAP_ROOT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert client.default_socket() == paths.find(environ, uid).socket
    assert client.socket_path("qemu:///system") == client.default_socket()
    assert client.socket_path("/x.sock") == "/x.sock"
