"""The entry point: global options, one verb, and its end."""

from __future__ import annotations

import io
import os
import sys

from qmpsnap.cli import verbs
from qmpsnap.cli.failure import Failure, Unreachable, Usage
from qmpsnap.cli.parser import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qmpsnap.cli.parser import Verb
    from qmpsnap.cli.session import Session

    Handler = Callable[[Session], int | None]

_HELP = """
qmpsnap [options]... <verb> [args...]

  options:
    -c | --connect=SOCKET   the daemon's control socket
    -h | --help             this help
    -q | --quiet            quiet mode: no headers, no remarks
         --output=FORMAT    text (default) or json: the daemon's answer
    -v | --version          version

  verbs:
"""
_LETTERS = {"c": "connect", "q": "quiet", "h": "help", "v": "version"}
# What a shell makes of a process that SIGPIPE or SIGINT ended.
_PIPE_STATUS, _INTERRUPT_STATUS = 141, 130


class Options:
    """The options before the verb."""

    __slots__ = ("action", "connect", "output", "quiet", "rest")

    def __init__(self, words: Sequence[str]) -> None:
        self.action = "run"
        self.connect: str | None = None
        self.output: str | None = None
        self.quiet = False
        self.rest = self._read(list(words))

    def _read(self, words: list[str]) -> list[str]:
        """Take the options, as getopt does, and return the words from the verb on."""
        while words and words[0].startswith("-") and words[0] != "-":
            word = words.pop(0)
            if word == "--":
                break
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                self._take(name, value if equals else None, words)
                continue
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                name = _LETTERS.get(letter, "")
                if not name:
                    raise Usage(f"unsupported option '-{letter}'. See --help.")
                value_here = letters if name == "connect" and letters else None
                self._take(name, value_here, words)
                letters = "" if name == "connect" else letters
        return words

    def _take(self, name: str, value: str | None, words: list[str]) -> None:
        if name in ("connect", "output"):
            if value is None:
                if not words:
                    short = "'-c'/" if name == "connect" else ""
                    raise Usage(f"option {short}'--{name}' requires an argument")
                value = words.pop(0)
            setattr(self, name, value)
        elif name == "quiet" and value is None:
            self.quiet = True
        elif name in ("help", "version") and value is None:
            self.action = name
        else:
            raise Usage(f"unsupported option '--{name}'. See --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status; nothing is left open or half written.

    Without ``argv`` it is the process: it ends here, without taking the interpreter apart, which took 2 of its 15 ms.
    """
    status = _main(sys.argv[1:] if argv is None else argv)
    if argv is None:
        os._exit(status)
    return status


def _main(words: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a name gets it escaped instead of a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return _PIPE_STATUS
    except OSError as e:
        _discard_stdout()
        return _end(Failure(f"cannot write to stdout: {e.strerror}"))
    except KeyboardInterrupt:
        return _INTERRUPT_STATUS
    return status


def _run(words: Sequence[str]) -> int:
    try:
        options = Options(words)
        if options.action == "version":
            from qmpsnap import __version__

            print(__version__)
            return 0
        if options.action == "help" or not options.rest:
            print(_global_help())
            return 0
        return _run_verb(options)
    except Usage as e:
        return _end(e)


def _run_verb(options: Options) -> int:
    name, *words = options.rest
    if name == "help":
        return _help(words)
    verb = verbs.find(name)
    if verb is None:
        raise Usage(f"unknown command: '{name}'")
    args = parse(verb, words)
    if args.help:
        print(verb.help())
        return 0
    if options.output is not None and verb.find("output") is None:
        raise Usage(f"command '{verb.name}' doesn't support option --output")
    from qmpsnap.cli.client import Client, socket_path
    from qmpsnap.cli.session import Session

    session = Session(args, Client(socket_path(options.connect)), quiet=options.quiet, output=options.output)
    try:
        status = _handler(verb)(session) or 0
    except Unreachable as e:
        return _end(e)
    except Usage:
        raise
    except Failure as e:
        status = _end(e)
    # virsh ends every command with an empty line, or the line that the command left open.
    session.extra("\n")
    return status


def _handler(verb: Verb) -> Handler:
    """The function that serves the verb; only its module is imported."""
    module, _, function = verb.handler.partition(".")
    name = f"qmpsnap.cli.verbs.{module}"
    __import__(name)
    handler: Handler = getattr(sys.modules[name], function)
    return handler


def _help(words: list[str]) -> int:
    if not words:
        print(_global_help())
        return 0
    verb = verbs.find(words[0])
    if verb is None:
        raise Usage(f"command or command group '{words[0]}' doesn't exist")
    print(verb.help())
    return 0


def _global_help() -> str:
    parts = [_HELP]
    for title, _, group in verbs.GROUPS:
        parts.append(f"\n {title}\n")
        parts += [f"    {verb.name:<30} {verb.summary}\n" for verb in group]
    parts.append("\n  (specify help <verb> for details about the verb)\n")
    return "".join(parts)


def _end(failure: Failure) -> int:
    from qmpsnap.cli.session import complain

    complain(*failure.lines)
    return failure.status


def _discard_stdout() -> None:
    """Let the interpreter's last flush of stdout go nowhere: it would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
