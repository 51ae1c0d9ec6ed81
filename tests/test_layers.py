"""Imports go down the layers only, and thinking imports nothing that waits, reads or ticks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: The drawing of docs/design.md. A module may import its own layer's folder and everything on lower layers.
LAYERS: dict[str, int] = {
    "errors": 0, "config": 0, "paths": 0, "faults": 0,
    "model": 1, "plan": 2,
    "talk": 3,
    "act": 4,
    "own": 5,
    "server": 6, "daemon": 7,
}  # fmt: skip

#: What a level that only thinks may not know.
FORBIDDEN = {
    "trio",
    "os",
    "time",
    "random",
    "logging",
    "structlog",
    "socket",
    "subprocess",
    "asyncio",
    "secrets",
    "pathlib",
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "qmpsnap").rglob("*.py")):
        part = path.relative_to(ROOT / "qmpsnap").parts[0].removesuffix(".py")
        if part in LAYERS:
            yield part, path


def test_imports_go_down() -> None:
    """No module imports from a layer above its own."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part, path in _modules()
        for name in _imports(path)
        if name.startswith("qmpsnap.") and LAYERS.get(name.split(".")[1], -1) > LAYERS[part]
    ]

    assert wrong == []


def test_thinking_does_not_look() -> None:
    """Level 1 imports nothing that waits, reads or ticks: it can be tested by value."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part, path in _modules()
        if part in {"model", "plan"}
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN
    ]

    assert wrong == []


def test_the_client_starts_light() -> None:
    """The client's process imports none of the daemon's parts."""
    heavy = (
        "qmpsnap.server",
        "qmpsnap.own",
        "qmpsnap.act",
        "qmpsnap.talk",
        "trio",
        "structlog",
        "qemu",
        "starlette",
        "attrs",
    )
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "qmpsnap" / "cli").rglob("*.py"))
        for name in _imports(path)
        if name.startswith(heavy)
    ]

    assert wrong == []
