"""Numbers with a unit, read as virsh reads them."""

from __future__ import annotations

from qmpsnap.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qmpsnap.cli.parser import Args

_MIB = 1 << 20
_MAX = (1 << 63) - 1


def seconds(args: Args) -> int | None:
    """--timeout, a positive count of seconds that fits milliseconds in an int."""
    text = args.raw("timeout")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) <= (1 << 31) // 1000:
        raise Failure(f"Numeric value '{text}' for <timeout> option is malformed or out of range")
    return int(text)


def bandwidth(args: Args) -> int | None:
    """--bandwidth in bytes per second: without a unit MiB, or bytes with --bytes."""
    text = args.raw("bandwidth")
    if text is None:
        return None
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    malformed = f"Scaled numeric value '{text}' for <--bandwidth> option is malformed or out of range"
    if not digits:
        raise Failure(malformed)
    suffix = text[len(digits) :]
    scale = (1 if args.given("bytes") else _MIB) if not suffix else factor(suffix)
    if scale is None:
        raise Failure(malformed, f"invalid argument: unknown suffix '{suffix}'")
    if int(digits) * scale > _MAX:
        raise Failure(malformed)
    return int(digits) * scale


def factor(suffix: str) -> int | None:
    """What a unit multiplies by: ``k`` and ``KiB`` by 1024, ``kB`` by 1000; None for what libvirt does not know."""
    lower = suffix.lower()
    if lower in ("b", "byte", "bytes"):
        return 1
    power = "kmgtpe".find(lower[0]) + 1
    if power == 0 or lower[1:] not in ("", "b", "ib"):
        return None
    return int((1000 if lower[1:] == "b" else 1024) ** power)
