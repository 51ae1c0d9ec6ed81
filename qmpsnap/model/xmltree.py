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

#: Ours, by namespace; others get ns0, ns1 and so on.
NAMESPACE = "https://qmpsnap.invalid/xmlns/domain/1"
PREFIXES = {NAMESPACE: "qmpsnap"}

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
    except (ET.ParseError, ValueError) as error:
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
    _declare(root, {})
    ET.indent(root)
    return _quotes(ET.tostring(root, encoding="unicode").replace(" />", "/>")) + "\n"


def _declare(element: ET.Element, known: Mapping[str, str]) -> None:
    scope = dict(known)

    def prefixed(name: str) -> str:
        if not name.startswith("{"):
            return name
        namespace, _, local = name[1:].partition("}")
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
