"""XML read without trust and written without surprises."""

from __future__ import annotations

import time
from xml.etree import ElementTree as ET

import pytest

from qmpsnap import errors
from qmpsnap.model import xmltree

BOMB = "<!DOCTYPE a [<!ENTITY e0 'x'>" + "".join(
    f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (BOMB + "]><a>&e9;</a>", "a DOCTYPE (a) is not allowed"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "a DOCTYPE (a) is not allowed"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM '/etc/passwd'>]><a>&b;</a>", "a DOCTYPE (a) is not allowed"),
        ("<!DOCTYPE a [<!ENTITY % p SYSTEM '/etc/passwd'>%p;]><a/>", "a DOCTYPE (a) is not allowed"),
        ("<a>&nowhere;</a>", "undefined entity"),
        ("<a>" * 257 + "</a>" * 257, "elements nest deeper than 256"),
        ("<a>" * 1_000_000, "elements nest deeper than 256"),
        ("<a><b></a></b>", "mismatched tag"),
        ("<a/><b/>", "junk after document element"),
        ("<a b='1' b='2'/>", "duplicate attribute"),
        ("<x:a/>", "unbound prefix"),
        ("<a>&#0;</a>", "reference to invalid character number"),
        ("<a>\x00</a>", "not well-formed"),
        ("\ud800", "surrogates not allowed"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "unknown encoding"),
        (b"<?xml version='1.0' encoding='base64'?><a/>", "not a text encoding"),
        (b"<?xml version='1.0' encoding='utf-7'?><a/>", "multi-byte encodings are not supported"),
        (b"<a>\xff</a>", "not well-formed"),
        (b"\x7fELF\x02\x01\x01", "not well-formed"),
        (b"QFI\xfb\x00\x00\x00\x03", "not well-formed"),
        (b"", "no element found"),
    ],
)  # fmt: skip
def test_hostile(hostile: str | bytes, reason: str) -> None:
    """Whatever is in a file, it is refused in one line, soon, and nothing else is read for its sake."""
    began = time.monotonic()
    with pytest.raises(errors.Corrupt) as caught:
        xmltree.parse(hostile, "/s/f.xml")

    assert reason in str(caught.value)
    assert str(caught.value).startswith("XML error: /s/f.xml: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_as_deep_as_a_chain_can_be() -> None:
    """200 nested <backingStore> pass, there and back."""
    document = "<a>" * 256 + "</a>" * 256

    assert xmltree.write(xmltree.parse(document, "f")).count("<a>") == 255


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("it's", "'it&apos;s'"),
        ('"so"', "'\"so\"'"),
        ("'\"'", "'&apos;\"&apos;'"),
        ("a=\"b\" c='d'", "'a=\"b\" c=&apos;d&apos;'"),
        ("&quot;", "'&amp;quot;'"),
        ("&", "'&amp;'"),
        ("<a b=\"c\"/> />", "'&lt;a b=\"c\"/&gt; /&gt;'"),
        ("line\nnext\ttab\rback", "'line&#10;next&#09;tab&#13;back'"),
        ("", "''"),
        ("ü 😀", "'ü 😀'"),
    ],
)  # fmt: skip
def test_attributes(value: str, written: str) -> None:
    """Single quotes around everything, and every value comes back."""
    root = ET.Element("r")
    xmltree.add(root, "e", value, a=value)

    document = xmltree.write(root)

    assert f"<e a={written}>" in document or f"<e a={written}/>" in document
    found = xmltree.parse(document, "f").find("e")
    assert found is not None
    assert (found.get("a"), found.text or "") == (value, value)


@pytest.mark.parametrize(
    "value", ['a="b"', "x='y'", " ", "  \n  ", " />", "]]>", "-->", "<!--", "\r\n\r", "a\r", "\x85\u2028"]
)
def test_text_is_left_alone(value: str) -> None:
    """Neither quotes nor indentation nor an end of line on the way change a text."""
    root = ET.Element("r")
    xmltree.add(root, "e", value)
    xmltree.add(xmltree.add(root, "deep"), "e", value)

    found = xmltree.parse(xmltree.write(root), "f")

    assert [xmltree.content(found, path) for path in ("e", "deep/e")] == [value, value]


@pytest.mark.parametrize("value", ["\x00", "bell\x07", "\x1b[31m", "\x7f\ufffe", "\ud800"])
def test_what_xml_cannot_hold(value: str) -> None:
    """It is refused before it is written, in text and in attributes, and the line that says so can be shown."""
    root = ET.Element("r")
    with pytest.raises(errors.BadXml) as caught:
        xmltree.add(root, "e", value)
    assert "which XML cannot hold" in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(errors.BadXml):
        xmltree.add(root, "e", a=value)


def test_namespaces_stand_where_they_are_needed() -> None:
    """Each element that needs a namespace declares it itself: libvirt keeps only what is declared inside <metadata>."""
    text = f"<d xmlns:q='{xmltree.NAMESPACE}' xmlns:y='urn:y'><m><q:a><q:b/></q:a><y:c y:k='1' xml:space='preserve'/></m></d>"

    assert xmltree.write(xmltree.parse(text, "f")) == (
        "<d>\n  <m>\n"
        f"    <qmpsnap:a xmlns:qmpsnap='{xmltree.NAMESPACE}'>\n      <qmpsnap:b/>\n    </qmpsnap:a>\n"
        "    <ns1:c xmlns:ns1='urn:y' ns1:k='1' xml:space='preserve'/>\n"
        "  </m>\n</d>\n"
    )


def test_carried_text_keeps_every_character() -> None:
    """An element taken out of one document and put into another is the same one, carriage returns included."""
    root = xmltree.parse("<r><e a='&#13;&#10;&#9;'>&#13; x &#13;\n</e> tail</r>", "f")
    element = root.find("e")
    assert element is not None

    again = xmltree.parse(xmltree.carried(element), "f")

    assert (again.get("a"), again.text, again.tail) == ("\r\n\t", "\r x \r\n", None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<a b='1' c='2'><d/></a>", "<a c='2' b='1'>\n  <d/>\n</a>", True),
        ("<a>x</a>", "<a> x </a>", True),
        ("<a b='1'/>", "<a b='2'/>", False),
        ("<a><b/><c/></a>", "<a><c/><b/></a>", False),
        ("<a><b/></a>", "<a/>", False),
        ("<a>x</a>", "<a/>", False),
    ],
)
def test_same(one: str, other: str, same: bool) -> None:
    assert xmltree.same(ET.fromstring(one), ET.fromstring(other)) is same


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        (" 7\n", 7),
        ("0" * 9 + "1", 1),
        ("", None),
        ("-1", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 17, None),
    ],
)
def test_number(text: str, number: int | None) -> None:
    """A number that nothing can have is none: int() refuses 5000 digits, and no clock shows 17."""
    root = ET.Element("r")
    xmltree.add(root, "n", text)

    assert xmltree.number(root, "n") == number
    assert xmltree.number(root, "absent") is None
