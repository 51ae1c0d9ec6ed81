"""virsh's progress line in a pipe, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from qmpsnap.cli import progress


def test_the_line_in_a_pipe() -> None:
    """Each percentage once, 100 only at the end (transcript 9-s1, but for the repeats)."""
    stream = io.StringIO()
    with progress.Line("Block Pull", stream) as display:
        for current in (0, 1, 4, 4, 55, 100):
            display.update(current, 100)
        display.finished()
    seen = ("  0", "  1", "  4", " 55", " 99", "100")
    assert stream.getvalue() == "".join(f"\rBlock Pull: [{value} %]" for value in seen)


def test_a_job_that_fails_never_shows_100() -> None:
    stream = io.StringIO()
    with progress.Line("Block Pull", stream) as display:
        display.update(100, 100)
    assert stream.getvalue() == "\rBlock Pull: [ 99 %]"


@pytest.mark.parametrize(
    ("current", "total", "value"),
    [
        (0, 0, 0),
        (5, 0, 0),
        (0, 10, 0),
        (999, 1000, 99),
        (10, 10, 99),
        (11, 10, 99),
        (-1, 10, 0),
        (1 << 62, 1 << 63, 50),
    ],
)
def test_percent(current: int, total: int, value: int) -> None:
    assert progress.percent(current, total) == value


def test_the_bar_on_a_terminal() -> None:
    """Bytes, rate and time left; the line is given back at the end."""
    screen = io.StringIO()
    with progress.Bar("Block Pull", Console(file=screen, force_terminal=True, width=120)) as display:
        display.update(0, 0)
        display.update(5 << 20, 10 << 20)
        display.finished()
    shown = screen.getvalue()
    assert "Block Pull" in shown
    assert "100%" in shown
    assert "10.0/10.0 MiB" in shown
    assert shown.endswith("\n\x1b[?25h")  # the cursor is shown again


def test_the_display_fits_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb terminal gets the line; a bar needs a terminal; nothing is shown unasked."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr", Terminal())
    assert type(progress.begin("x", verbose=True)) is progress.Line
    assert type(progress.begin("x", verbose=False)) is progress.Silent
    monkeypatch.setenv("TERM", "xterm")
    with progress.begin("x", verbose=True) as display:
        assert type(display) is progress.Bar
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(progress.begin("x", verbose=True)) is progress.Line
