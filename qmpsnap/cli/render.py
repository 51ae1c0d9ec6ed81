"""Text as virsh 9.0.0 lays it out: tables, trees, sizes, times; pure functions over plain values.

The oracle is ``libvirt/transcripts``; ``tests/cli/golden`` holds its snippets.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Zero width joiner and non-joiner have category Cf like the controls that reorder a line, but make emoji and words.
_JOINERS = "\u200c\u200d"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str) -> str:
    r"""The text with everything that could drive a terminal shown as ``\x1b``, byte for byte, as virsh's tables do."""
    if text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    import unicodedata

    if char.isprintable() or char in _JOINERS or unicodedata.category(char) in ("Zs", "Co"):
        return char
    # PEP 383: Python shows a byte that is not UTF-8 as a surrogate of this range; other surrogates come from JSON.
    how = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", how))


def width(text: str) -> int:
    """How many columns a terminal gives the text."""
    if text.isascii():
        return len(text)
    import unicodedata

    columns = 0
    for char in text:
        if unicodedata.category(char) in ("Mn", "Me", "Cf"):
            continue
        columns += 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
    return columns


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, quiet: bool = False) -> str:
    """virsh's table: a cell is a space and its text, two spaces between cells, the last one not padded.

    ``quiet`` leaves out the header, which then does not widen the columns either.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    shown = cells if quiet else [list(header), *cells]
    widths = [max((width(row[i]) for row in shown), default=0) for i in range(len(header))]
    lines = [_row(row, widths) for row in shown]
    if not quiet:
        lines.insert(1, "-" * sum(columns + 3 for columns in widths))
    return "".join(line + "\n" for line in lines)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [" " + cell + " " * (columns - width(cell)) for cell, columns in zip(cells, widths, strict=True)]
    padded[-1] = " " + cells[-1]
    return "  ".join(padded)


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """``Name:           value`` lines, the value in column 16."""
    return "".join(f"{label + ':':<15} {printable(value)}\n" for label, value in pairs)


def tree(parents: Sequence[tuple[str, str | None]]) -> str:
    """virsh's drawing of (name, parent) pairs, siblings in the order given; what hangs on no root is left out.

    A chain of snapshots may be deeper than Python's recursion limit, so the walk keeps its own stack.
    """
    children: dict[str, list[str]] = {}
    for name, parent in parents:
        if parent is not None:
            children.setdefault(parent, []).append(name)
    lines: list[str] = []
    roots = [name for name, parent in parents if parent is None]
    # One entry is (name, indent of its own line, whether a sibling follows, whether it is a root).
    stack = [(name, "", False, True) for name in reversed(roots)]
    while stack:
        name, indent, follows, is_root = stack.pop()
        lines.append(printable(name) if is_root else f"{indent}+- {printable(name)}")
        below = "" if is_root else indent + ("| " if follows else "  ")
        kids = children.get(name, [])
        if kids:
            lines.append(below + "  |")
        elif not follows:
            lines.append(below)
        stack += [(kid, below + "  ", kid != kids[-1], False) for kid in reversed(kids)]
    return "".join(line + "\n" for line in lines)


def size(count: float) -> str:
    """A count of bytes as ``20.000 GiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.3f} {_UNITS[unit]}"


def moment(epoch: float) -> str:
    """A point in time, in the local time of whoever reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(epoch))


def sort_key(name: str) -> tuple[str, str]:
    """strcasecmp's order: only ASCII letters fold; the exact name decides between equals, so that the order is fixed."""
    return "".join(char.lower() if char.isascii() else char for char in name), name


def escape_xml(text: str) -> str:
    """The text for an attribute or an element, escaped as libvirt does."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&apos;"), ('"', "&quot;")):
        text = text.replace(char, entity)
    return text


def safe_xml(document: str) -> str:
    """An XML document with the controls that XML allows (DEL, C1) as character references: the same document."""
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(f"&#x{ord(char):x};" if "\x7f" <= char <= "\x9f" else char for char in document)
