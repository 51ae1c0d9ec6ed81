"""Orphans: images of the known directories that nobody needs, each with its proof; and which of them may be moved to the trash.

Who needs what is in the image graph; whether somebody has an image open is asked of the kernel for each candidate. A plain image
that nobody needs is none: it may be anybody's disk. Of an overlay that was never ours nobody can say whose it is (a linked clone
of a machine that we do not know), so it is shown, and moved only when it is named.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from qmpsnap import errors
from qmpsnap.model import domain_xml, images
from qmpsnap.plan import gate, names

#: Images by what is directly above or below them.
Edges = Mapping[images.Identity, Collection[images.Identity]]


@attrs.frozen
class Seen:
    """What the file system says of a name: ``file`` is it with the links of its directory resolved, "" when the name itself is a
    link. ``opened``: a process has the image open. ``problem``: why neither can be said."""

    file: str
    identity: images.Identity | None = None
    opened: bool = False
    problem: str = ""


@attrs.frozen
class Orphan:
    """An image that nobody needs. ``known``: it was ours, and so was all above it. ``above``: orphans that it is the backing file
    of, by all their names. ``proof``: why it is an orphan, each reason a sentence's part."""

    file: str
    identity: images.Identity
    known: bool
    domain: str
    size: int
    allocation: int
    stamp: str
    backing: str
    above: tuple[str, ...]
    proof: tuple[str, ...]


@attrs.frozen
class Facts:
    """All that decides: the graph, the directories that it covers beside those of needed images, the recorded domains, what was
    seen of the candidates, the operations that are open."""

    graph: images.Graph
    folders: Collection[str] = ()
    recorded: Sequence[domain_xml.RecordedDomain] = ()
    seen: Mapping[str, Seen] = attrs.field(factory=dict)
    operations: Collection[str] = ()


def former_folders(recorded: Iterable[domain_xml.RecordedDomain]) -> set[str]:
    """Directories in which former layers may lie, though no needed image does any more."""
    return {posixpath.dirname(name) for domain in recorded for disk in domain.disks for name in disk.was}


def places(graph: images.Graph, folders: Iterable[str] = ()) -> set[str]:
    """The directories of which every image is in the graph."""
    needed = {posixpath.dirname(layer.file) for need in graph.needs for layer in graph.chain(need.file)}
    return needed | set(folders)


def candidates(facts: Facts) -> list[str]:
    """Names of images that may be orphans: each is to be looked at."""
    graph, needed, known = facts.graph, facts.graph.needed(), places(facts.graph, facts.folders)
    former = _former(facts)
    return sorted(
        name
        for name, one in graph.found.items()
        if one.identity is not None
        and one.identity.kind == "file"
        and one.identity not in needed
        and posixpath.dirname(name) in known
        and names.maker(name) not in facts.operations
        and (one.backing or one.strange or names.maker(name) or one.identity in former)
    )


def find(facts: Facts) -> list[Orphan]:
    """The orphans, those that were ours first, and of a chain the top first: in this order they may go."""
    by: dict[images.Identity, dict[str, images.Found]] = {}
    busy: set[images.Identity] = set()
    for name in candidates(facts):
        found, seen = facts.graph.found[name], facts.seen.get(name, Seen(""))
        assert found.identity is not None
        if seen.opened or seen.problem:
            busy.add(found.identity)
        elif seen.file:
            by.setdefault(found.identity, {}).setdefault(seen.file, found)
    above, below = _edges(facts.graph)
    alone = by.keys() - busy
    alone -= _down({one for one in alone if above.get(one, set()) - alone}, below)
    former = _former(facts)
    ours = {one for one in alone if one in former or any(names.maker(name) for name in by[one])}
    ours -= _down(alone - ours, below)
    ordered = _top_first(sorted(alone, key=lambda one: min(by[one])), above, below)
    ordered.sort(key=lambda one: one not in ours)
    found_orphans = []
    for one in ordered:
        over = tuple(sorted(name for up in above.get(one, ()) for name in by[up]))
        found_orphans += [
            _orphan(file, found, one in ours, over, former) for file, found in sorted(by[one].items())
        ]
    return found_orphans


def _orphan(
    file: str,
    found: images.Found,
    known: bool,
    over: tuple[str, ...],
    former: Mapping[images.Identity, tuple[str, str]],
) -> Orphan:
    assert found.identity is not None
    domain, disk = former.get(found.identity, ("", ""))
    if domain:
        why = f"it was a layer of disk {disk} of domain '{domain}'"
    elif names.maker(file):
        why = f"it is a temporary file of operation {names.maker(file)}, which has ended"
    else:
        below = found.backing or found.strange
        why = f"it is an overlay of '{below}', perhaps of a machine that is not known here"
    more = f" (and {len(over) - 1} more)" if len(over) > 1 else ""
    naming = f"only the orphan '{over[0]}'{more} has" if over else "no image has"
    proof = (
        why,
        "nothing that is known here needs it",
        f"{naming} it as its backing file",
        "no QEMU has it open",
    )
    return Orphan(
        file,
        found.identity,
        known,
        domain,
        found.length,
        found.allocated,
        found.stamp,
        found.backing or found.strange,
        over,
        proof,
    )


def choose(facts: Facts, files: Sequence[str]) -> list[Orphan]:
    """What goes when ``files`` are named; without names, all that was ours. Refused with the name of whoever needs one of them, and
    while it is not known who does."""
    found = find(facts)
    if files:
        wanted = set(files)
        for file in files:
            if all(one.file != file for one in found):
                _refuse(file, facts)
        chosen = [one for one in found if one.file in wanted]
    else:
        chosen = [one for one in found if one.known]
    going = {one.file for one in chosen}
    for one in chosen:
        gate.check_known(one.file, facts.graph)
        for name in one.above:
            if name not in going:
                reason = f"the image '{name}' has it as its backing file"
                raise errors.WouldHurt(
                    file=one.file, act="removed", reason=reason, way="remove that one first"
                )
    return chosen


def _refuse(file: str, facts: Facts) -> None:
    """Why the file is no orphan."""
    seen = facts.seen.get(file, Seen("", problem="No such file or directory"))
    graph = facts.graph
    image = {seen.identity, graph.identity(file)} - {None}
    names_of_it = [name for name, one in graph.found.items() if one.identity in image]
    if image & graph.needed():
        gate.check_removal(names_of_it[0], graph)
    check_closed(file, seen)
    if seen.problem:
        raise errors.NotOrphan(file=file, reason=seen.problem)
    if not seen.file:
        raise errors.NotOrphan(file=file, reason="it is a link: name the file that it leads to")
    if names.maker(file) in facts.operations:
        raise errors.NotOrphan(file=file, reason=f"operation {names.maker(file)} is not finished yet")
    for name in names_of_it:
        gate.check_removal(name, graph)
    if posixpath.dirname(file) not in places(facts.graph, facts.folders):
        reason = "nobody looks for images in its directory; the setting image_dirs adds one"
        raise errors.NotOrphan(file=file, reason=reason)
    raise errors.NotOrphan(
        file=file, reason="it has no backing file, and was never a layer of a domain known here"
    )


def check_closed(file: str, seen: Seen) -> None:
    """``WouldHurt`` while a process has the image open."""
    if seen.opened:
        raise errors.WouldHurt(file=file, act="removed", reason="a process has it open", way="keep it")


def _former(facts: Facts) -> dict[images.Identity, tuple[str, str]]:
    """Domain and disk by image, of former layers that are still there."""
    found: dict[images.Identity, tuple[str, str]] = {}
    for domain in facts.recorded:
        for disk in domain.disks:
            for name in disk.was:
                if (identity := facts.graph.identity(name)) is not None:
                    found.setdefault(identity, (domain.name, disk.target))
    return found


def _edges(
    graph: images.Graph,
) -> tuple[dict[images.Identity, set[images.Identity]], dict[images.Identity, set[images.Identity]]]:
    """What is directly above each image, and what directly below."""
    above: dict[images.Identity, set[images.Identity]] = {}
    below: dict[images.Identity, set[images.Identity]] = {}
    for one in graph.found.values():
        under = graph.identity(one.backing)
        if one.identity is not None and under is not None and under != one.identity:
            above.setdefault(under, set()).add(one.identity)
            below.setdefault(one.identity, set()).add(under)
    return above, below


def _down(start: Iterable[images.Identity], below: Edges) -> set[images.Identity]:
    """The images and all below them."""
    found = set(start)
    todo = list(found)
    while todo:
        more = set(below.get(todo.pop(), ())) - found
        found |= more
        todo.extend(more)
    return found


def _top_first(some: Sequence[images.Identity], above: Edges, below: Edges) -> list[images.Identity]:
    """The images, each after those of them that are above it; those that name each other in a circle last, as they come."""
    rank = {one: n for n, one in enumerate(some)}
    waits = {one: len(rank.keys() & set(above.get(one, ()))) for one in some}
    level = [one for one in some if not waits[one]]
    found: dict[images.Identity, None] = {}
    while level:
        found.update(dict.fromkeys(level))
        freed = []
        for one in level:
            for under in below.get(one, ()):
                if under in waits:
                    waits[under] -= 1
                    if not waits[under]:
                        freed.append(under)
        level = sorted(freed, key=rank.__getitem__)
    return [*found, *(one for one in some if one not in found)]
