"""virsh's command line grammar, read from a table of options.

Why not argparse: it was tried and cannot read virsh's language (python 3.11, virsh 9.0.0):

- ``snapshot-create-as daisy --disk-only s1``: "unrecognized arguments: s1". In virsh a word fills the next option
  that takes text, wherever flags stand between the words.
- ``snapshot-info daisy -dash``: a name with a leading dash is a word for virsh and an unknown option for argparse.
- each missing option has a line of its own, and an option given twice is an error.

It also costs 2.3 ms of a start of 25 ms.
"""

from __future__ import annotations

from qmpsnap.cli.failure import Failure, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FLAG, TEXT, NUMBER, DATA, ARGV = "flag", "string", "number", "data", "argv"


class Option:
    """One option of a verb; ``fills`` says whether a bare word may become its value."""

    __slots__ = ("fills", "help", "kind", "name")

    def __init__(self, name: str, kind: str, text: str, *, fills: bool = True) -> None:
        self.name = name
        self.kind = kind
        self.help = text
        self.fills = fills and kind != FLAG

    def synopsis(self) -> str:
        """The option as virsh shows it in a SYNOPSIS."""
        if self.kind == FLAG:
            return f"[--{self.name}]"
        if self.kind == DATA:
            return f"<{self.name}>"
        if self.kind == ARGV:
            return f"[[--{self.name}] <string>]..."
        return f"[--{self.name} <{self.kind}>]"

    def label(self) -> str:
        """The option as virsh shows it under OPTIONS."""
        if self.kind == FLAG:
            return f"--{self.name}"
        if self.kind in (DATA, ARGV):
            return f"[--{self.name}] <string>"
        return f"--{self.name} <{self.kind}>"


class Verb:
    """A command: its options in virsh's order, and the ``module.function`` that serves it."""

    __slots__ = ("description", "handler", "name", "options", "summary")

    def __init__(self, name: str, handler: str, summary: str, description: str, *options: Option) -> None:
        self.name = name
        self.handler = handler
        self.summary = summary
        self.description = description
        self.options = options

    def find(self, name: str) -> Option | None:
        return next((option for option in self.options if option.name == name), None)

    def help(self) -> str:
        """The page of ``help VERB``, laid out as virsh does."""
        synopsis = " ".join([self.name, *(option.synopsis() for option in self.options)])
        rows = "".join(f"    {option.label():<15}  {option.help}\n" for option in self.options)
        return (
            f"  NAME\n    {self.name} - {self.summary}\n\n"
            f"  SYNOPSIS\n    {synopsis}\n\n"
            f"  DESCRIPTION\n    {self.description}\n\n"
            f"  OPTIONS\n{rows}\n"
        )


class Args:
    """The options that were given: what a verb asks for by name."""

    __slots__ = ("_values", "help")

    def __init__(self, values: dict[str, list[str]], *, wants_help: bool = False) -> None:
        self._values = values
        self.help = wants_help

    def given(self, name: str) -> bool:
        return name in self._values

    def raw(self, name: str) -> str | None:
        """The text of an option as it was typed, which may be empty."""
        values = self._values.get(name)
        return values[0] if values else None

    def text(self, name: str) -> str | None:
        """The text of an option, or None when it was not given; an empty one fails as in virsh."""
        value = self.raw(name)
        if value == "":
            raise Failure(f"Failed to get option '{name}': Option argument is empty")
        return value

    def need(self, name: str) -> str:
        """The text of a required option (the parser has seen to its presence)."""
        value = self.text(name)
        if value is None:
            raise Failure(f"Failed to get option '{name}': Option argument is empty")
        return value

    def every(self, name: str) -> list[str]:
        return self._values.get(name, [])


def parse(verb: Verb, words: list[str]) -> Args:
    """Read the words behind a verb; raises Usage with virsh's text."""
    reader = _Reader(verb)
    reader.read(words)
    if not reader.wants_help:
        _check_required(verb, reader.values)
    return Args(reader.values, wants_help=reader.wants_help)


class _Reader:
    """The words so far: which options have a value, and whether ``--`` has made everything a word."""

    def __init__(self, verb: Verb) -> None:
        self.verb = verb
        self.values: dict[str, list[str]] = {}
        self.wants_help = False

    def read(self, words: list[str]) -> None:
        rest = iter(words)
        for word in rest:
            if word == "--":
                for only_data in rest:
                    self._fill(only_data)
            elif _is_option(word):
                self._take(word[2:], rest)
            else:
                self._fill(word)

    def _fill(self, word: str) -> None:
        """Give a bare word to the next option that takes text."""
        for option in self.verb.options:
            if option.fills and (option.kind == ARGV or option.name not in self.values):
                self.values.setdefault(option.name, []).append(word)
                return
        raise Usage(f"unexpected data '{word}'")

    def _take(self, text: str, rest: Iterator[str]) -> None:
        """Read ``name``, ``name=value`` or ``name value``."""
        name, equals, value = text.partition("=")
        option = None if name == "help" else self._find(name)
        if option is None or option.kind == FLAG:
            if equals:
                raise Usage(f"invalid '=' after option --{name}")
            self.wants_help = self.wants_help or option is None
            self.values[name] = []
            return
        given = value if equals else next(rest, None)
        if given is None:
            raise Usage(f"expected syntax: --{name} <{NUMBER if option.kind == NUMBER else 'string'}>")
        self.values.setdefault(name, []).append(given)

    def _find(self, name: str) -> Option:
        option = self.verb.find(name)
        if option is None:
            raise Usage(f"command '{self.verb.name}' doesn't support option --{name}")
        if option.kind != ARGV and name in self.values:
            raise Usage(f"option --{name} already seen")
        return option


def _is_option(word: str) -> bool:
    return word.startswith("--") and word[2:3].isascii() and word[2:3].isalnum()


def _check_required(verb: Verb, values: dict[str, list[str]]) -> None:
    missing = [o.name for o in verb.options if o.kind == DATA and o.name not in values]
    if missing:
        raise Usage(*(f"command '{verb.name}' requires <{name}> option" for name in missing))
