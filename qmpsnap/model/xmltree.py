"""XML read without trust and written without surprises, on the standard library's ElementTree.

Expat alone accepts entity declarations and any depth; a document that has a DOCTYPE or is deeper than a backing chain of 200
can make it is refused here (attacks tried in facts/stack.md 5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn
from xml.etree import ElementTree as ET

from qmpsnap import errors

#: 200 nested <backingStore> in <disk> in <devices> in <domain> in <domainsnapshot>, and room to spare.
DEEPEST = 256

#: Ours.
NAMESPACE = "https://qmpsnap.invalid/xmlns/domain/1"

#: The usual prefixes of what is found in libvirt's domains; other namespaces get ns0, ns1 and so on.
PREFIXES = {
    NAMESPACE: "qmpsnap",
    "http://libvirt.org/schemas/domain/qemu/1.0": "qemu",
    "http://libosinfo.org/xmlns/libvirt/domain/1.0": "libosinfo",
}

# Bound to its prefix by definition; expat refuses another one (Namespaces in XML, 3).
_XML = {"http://www.w3.org/XML/1998/namespace": "xml"}

# What a number may have: any memory in KiB, any time that the C library can show (it ends at 67767976233532799).
_DIGITS = re.compile(r"\s*[0-9]{1,16}\s*")

_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Builder(ET.TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ET.ParseError(f"elements nest deeper than {DEEPEST}")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str, system: str) -> NoReturn:
        raise ET.ParseError(f"a DOCTYPE ({name}) is not allowed")


def parse(text: str | bytes, origin: str) -> ET.Element:
    """The root element of ``text``; ``Corrupt`` names ``origin`` and the reason in one line."""
    try:
        return ET.fromstring(text, parser=ET.XMLParser(target=_Builder()))
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that Python lacks
        raise errors.BadXml(origin=origin, reason=str(error)) from error


def text(value: str) -> str:
    """The value, if XML can hold it: ElementTree would write control characters that no parser reads back."""
    if found := _ILLEGAL.search(value):
        raise errors.BadXml(
            origin=repr(value[:64]), reason=f"has the character {found.group()!a}, which XML cannot hold"
        )
    return value


def add(parent: ET.Element, tag: str, value: str | None = None, **attributes: str) -> ET.Element:
    """Appends a child with its text and attributes, in the order given."""
    child = ET.SubElement(parent, tag, {name: text(v) for name, v in attributes.items()})
    if value is not None:
        child.text = text(value)
    return child


def write(root: ET.Element) -> str:
    """The document as libvirt lays it out: two spaces for each level, attributes in single quotes, a final newline.

    The tree is used up: namespaces become attributes of the elements that need them, because ElementTree would declare all of
    them on the root, and libvirt keeps only what is declared inside <metadata>.
    """
    _declare(root, _XML)
    ET.indent(root)
    return _quotes(_serial(root).replace(" />", "/>")) + "\n"


def carried(element: ET.Element) -> str:
    """The element as a document of its own, to be put into another one by ``parse``; it loses what comes after it."""
    element.tail = None
    return _serial(element)


def _serial(element: ET.Element) -> str:
    # In text ElementTree leaves carriage returns as they are, and every parser then reads newlines (XML 2.11).
    return ET.tostring(element, encoding="unicode").replace("\r", "&#13;")


def same(one: ET.Element, other: ET.Element) -> bool:
    """The elements say the same; white space around text and the order of attributes say nothing."""
    return (
        (one.tag, one.attrib, (one.text or "").strip())
        == (other.tag, other.attrib, (other.text or "").strip())
        and len(one) == len(other)
        and all(same(*pair) for pair in zip(one, other, strict=True))
    )


def _declare(element: ET.Element, known: Mapping[str, str]) -> None:
    scope = dict(known)

    def prefixed(name: str) -> str:
        if not name.startswith("{"):
            return name
        namespace, _, local = name[1:].rpartition("}")
        if namespace not in scope:
            scope[namespace] = PREFIXES.get(namespace, f"ns{len(scope)}")
            element.set(f"xmlns:{scope[namespace]}", namespace)
        return f"{scope[namespace]}:{local}"

    element.tag = prefixed(element.tag)
    for name in [name for name in element.keys() if name.startswith("{")]:  # noqa: SIM118 - an Element is no mapping
        element.set(prefixed(name), element.attrib.pop(name))
    for child in element:
        _declare(child, scope)


def _quotes(document: str) -> str:
    """ElementTree writes attributes in double quotes, libvirt in single ones; text between tags is left alone."""
    return re.sub(r"<[^<>]*>", lambda tag: re.sub(r'="([^"]*)"', _attribute, tag.group()), document)


def _attribute(match: re.Match[str]) -> str:
    return "='" + match.group(1).replace("'", "&apos;").replace("&quot;", '"') + "'"


def content(element: ET.Element, path: str, default: str = "") -> str:
    """The text at ``path`` below the element."""
    found = element.find(path)
    return (found.text or "") if found is not None else default


def number(element: ET.Element, path: str) -> int | None:
    """The whole number at ``path`` below the element; None where there is none, or one that nothing can have."""
    found = content(element, path)
    return int(found) if _DIGITS.fullmatch(found) else None
