"""The image graph by value: who would be hurt, what is missing, what nobody needs."""

from __future__ import annotations

import attrs
import pytest

from qmpsnap import errors
from qmpsnap.model import chain, images
from qmpsnap.plan import gate, steps

NAMES = ("golden", "a", "b", "clone", "other", "link")


def ident(name: str) -> images.Identity:
    return images.Identity("file", 1, NAMES.index("golden" if name == "link" else name))


def graph(*needs: images.Need, **backing: str) -> images.Graph:
    """Images by name, each with what it has below it; ``link`` is another name of ``golden``."""
    found = {name: images.Found(name, ident(name), backing=below) for name, below in backing.items()}
    return images.Graph(found, needs)


ACTIVE = images.Need("active", "b", "daisy", "vda")
STATE = images.Need("state", "a", "daisy", "s1")
CHAIN = {"golden": "", "a": "golden", "b": "a"}


def texts(found: images.Graph, file: str) -> list[str]:
    return [str(harm) for harm in found.hurt(file)]


def test_everybody_above_is_hurt() -> None:
    """Nearest first: the image itself, then what reads through it."""
    found = graph(ACTIVE, STATE, **CHAIN)

    assert texts(found, "b") == ["disk vda of domain 'daisy' boots it"]
    assert texts(found, "a") == [
        "it holds the state of snapshot 's1' of domain 'daisy'",
        "it is below 'b', and disk vda of domain 'daisy' boots that",
    ]
    assert len(texts(found, "golden")) == 2


def test_a_clone_that_nobody_knows_counts() -> None:
    """An image in a known directory that names it as its backing file, and one above that."""
    found = graph(ACTIVE, **CHAIN, clone="golden", other="clone")

    assert "it is below 'clone', and the image 'other' has that as its backing file" in texts(found, "golden")
    assert texts(found, "clone") == ["the image 'other' has it as its backing file"]
    assert texts(found, "other") == []


def test_a_link_hides_nothing() -> None:
    """Another name of an image is the image: who needs one needs the other."""
    found = graph(ACTIVE, **CHAIN, link="")

    assert texts(found, "link") == texts(found, "golden") != []
    assert found.names("link") == ("golden", "link")
    assert graph(images.Need("active", "link"), link="", golden="").needed() == {ident("golden")}


def test_circles_end() -> None:
    """Headers that name each other, and an image that names itself."""
    found = graph(ACTIVE, golden="b", a="golden", b="a", other="other")

    assert len(texts(found, "golden")) == 1
    assert [one.file for one in found.chain("b")] == ["b", "a", "golden"]
    assert found.missing("b") == "b"
    assert texts(found, "other") == []


def test_a_chain_of_ten_thousand() -> None:
    """Depth costs time, never the stack."""
    names = [f"i{n}" for n in range(10_000)]
    found = {
        name: images.Found(name, images.Identity("file", 1, n), backing=f"i{n - 1}" if n else "")
        for n, name in enumerate(names)
    }
    built = images.Graph(found, (images.Need("active", names[-1], "daisy", "vda"),))

    assert len(built.chain(names[-1])) == len(built.needed()) == 10_000
    assert len(built.hurt("i0")) == 1


def test_an_image_that_is_gone_is_still_named() -> None:
    """Who names it is known: an empty image of that name would pass for what is lost."""
    found = graph(images.Need("state", "gone", "daisy", "s1"), b="gone")

    assert texts(found, "gone") == [
        "it holds the state of snapshot 's1' of domain 'daisy'",
        "the image 'b' has it as its backing file",
    ]
    assert found.missing("b") == "gone"
    assert found.missing("gone") == "gone"
    assert graph(**CHAIN).missing("b") == ""


def make(file: str) -> steps.Step:
    return steps.Step(
        "overlay", steps.MakeOverlay(file, "t", "b", "qcow2", 1, "b"), steps.RemoveOverlay(file, "t", "b")
    )


def plan(*work: steps.Step) -> steps.Plan:
    look = steps.Step("look", steps.ExpectActive({"vda": chain.Layer("n", "qcow2", "new", 1)}))
    return steps.Plan("snapshot-create", "daisy", (*work, look), commit=len(work))


def test_the_gate() -> None:
    """A new image takes no name that somebody waits for; the guest gets no image to write to that somebody reads through."""
    found = graph(ACTIVE, images.Need("state", "gone", "rose", "s1"), **CHAIN, clone="golden", other="")

    gate.check(plan(make("new"), steps.Step("take", steps.TakeOverlay("other", "1"))), found)
    with pytest.raises(
        errors.WouldHurt,
        match="'gone' cannot be created: it holds the state of snapshot 's1' of domain 'rose'",
    ):
        gate.check(plan(make("gone")), found)
    with pytest.raises(
        errors.WouldHurt, match=r"'golden' cannot be written to: .* \(and 1 more\); use a new overlay"
    ):
        gate.check(plan(steps.Step("take", steps.TakeOverlay("golden", "1"))), found)


def test_removal() -> None:
    """The operation itself does not count among those who need its overlay; what is not known does, where it is asked."""
    own = images.Need("operation", "clone", "daisy", "42")
    found = attrs.evolve(graph(own, clone="golden", golden=""), unknown=("x cannot be read",))

    gate.check_removal("clone", found, but={"42"})
    with pytest.raises(errors.WouldHurt, match="the operation 42 of domain 'daisy' uses it"):
        gate.check_removal("clone", found)
    with pytest.raises(errors.WouldHurt, match="who needs it is not known: x cannot be read"):
        gate.check_known("clone", found)
    assert gate.abandons(plan(make("new"))) == ["new"]
    assert gate.mentions(plan(make("new"))) == {"new", "b"}
