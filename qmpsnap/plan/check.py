"""What is wrong with a domain: all that was seen, held against all that is recorded. Nothing is guessed, and nothing done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from qmpsnap.model import chain, domain_xml, images, snapshot

Severity = Literal["error", "warning", "notice"]


@attrs.frozen
class Finding:
    """``code`` is stable, for programs; ``where`` is a disk, a snapshot or a file; ``problem`` and ``advice`` are for people."""

    severity: Severity
    code: str
    where: str
    problem: str
    advice: str = ""


@attrs.frozen
class Seen:
    """One look at a domain and its images.

    ``view`` is None when QEMU does not answer. ``busy``: images that an open operation may be writing to. ``drifted``: targets of
    disks that run on another layer than the recorded one. ``damaged``: what of the domain's own files could not be read. ``open``:
    operations that have not ended, each with its error, if it has one. ``corrupt``: what `qemu-img check` says of images that
    nobody has open, ``leaks``: the clusters that are lost in them; ``launch``: why qemu-launch would not start the machine, ""
    when it would or was not asked.
    """

    recorded: domain_xml.RecordedDomain
    tree: snapshot.Tree
    graph: images.Graph
    view: chain.View | None = None
    busy: frozenset[str] = frozenset()
    drifted: frozenset[str] = frozenset()
    damaged: Sequence[str] = ()
    open: Mapping[str, str] = attrs.field(factory=dict)
    corrupt: Mapping[str, str] = attrs.field(factory=dict)
    leaks: Mapping[str, int] = attrs.field(factory=dict)
    launch: str = ""


def findings(seen: Seen) -> list[Finding]:
    """All of it, the worst first."""
    known = Fingerprints(seen.recorded, seen.tree, seen.graph)
    found = [
        *_files(seen),
        *(
            one
            for disk in seen.recorded.disks
            if disk.device == "disk" and disk.file
            for one in _disk(disk, seen, known)
        ),
        *(one for taken in seen.tree.ordered() for one in _snapshot(taken, seen, known)),
        *_headers(seen),
    ]
    order = ("error", "warning", "notice")
    return sorted(found, key=lambda one: order.index(one.severity))


def _files(seen: Seen) -> Iterator[Finding]:
    for text in seen.damaged:
        yield Finding("error", "damaged", "state", text, "look at it, and restore it or move it away")
    for ident, error in seen.open.items():
        if error:
            advice = "recovery tries again every few seconds"
            yield Finding("error", "unfinished", f"operation {ident}", error, advice)
        else:
            yield Finding("notice", "open", f"operation {ident}", "it is not finished yet")
    for file, text in seen.corrupt.items():
        yield Finding("error", "corrupt", file, text, "qemu-img check -r needs a copy of the image first")
    for file, count in seen.leaks.items():
        problem = f"{count} clusters are lost, as after a killed QEMU; nothing is damaged"
        yield Finding("notice", "leaks", file, problem)
    if seen.launch:
        yield Finding("error", "no-boot", "qemu-launch", f"the machine would not start: {seen.launch}")
    for text in seen.graph.unknown:
        yield Finding(
            "warning", "unknown", "images", text, "until then nobody can prove that an image is not needed"
        )


def _disk(disk: domain_xml.RecordedDisk, seen: Seen, known: Fingerprints) -> Iterator[Finding]:
    where = f"disk {disk.target}"
    yield from _chain(where, f"boots '{disk.file}'", disk.file, seen.graph)
    yield from _changed(where, "it reads", seen.graph.chain(disk.file)[1:], seen, known)
    if disk.target in seen.drifted:
        view = seen.view.disk(disk.target) if seen.view else None
        runs = view.active.file if view and view.chain else "another layer"
        yield Finding(
            "error",
            "drifted",
            where,
            f"runs on '{runs}', but its newest layer is '{disk.file}'",
            "shut it down and start it with qemu-launch; or take what runs for right: check --accept",
        )
    for harm in seen.graph.hurt(disk.file) if seen.graph.identity(disk.file) else ():
        need = harm.need
        ours = need.domain == seen.recorded.name
        if need.kind in {"overlay", "hold"} or (ours and need.kind in {"active", "open", "operation"}):
            continue
        problem = f"the guest writes to '{disk.file}': {harm}"
        yield Finding("error", "shared", where, problem, "what reads through it changes with every write")
    names = seen.graph.names(disk.file)
    if len(names) > 1:
        yield Finding("notice", "names", where, f"its image has several names: {', '.join(names)}")


def _snapshot(taken: snapshot.Snapshot, seen: Seen, known: Fingerprints) -> Iterator[Finding]:
    where = f"snapshot {taken.name}"
    if taken.parent and taken.parent not in seen.tree.snapshots:
        yield Finding("warning", "no-parent", where, f"its parent '{taken.parent}' is not there")
    for part in (part for part in taken.disks if part.image):
        place = f"{where}, {part.target}"
        yield from _chain(place, f"its state is in '{part.image}'", part.image, seen.graph)
        if part.overlay and seen.graph.identity(part.overlay) is None:
            problem = f"what came after it was in '{part.overlay}', which is missing"
            yield Finding("warning", "overlay-missing", place, problem)
        yield from _changed(
            place, "its state reads", seen.graph.chain(part.image), seen, known, taken.creation_time
        )


def _changed(
    where: str,
    what: str,
    layers: Iterable[images.Found],
    seen: Seen,
    taken: Fingerprints,
    at: int | None = None,
) -> Iterator[Finding]:
    """Layers that somebody has written to after they were frozen, as far as who reads them since ``at`` is concerned."""
    for layer in layers:
        if taken.changed(layer, at) and layer.file not in seen.busy:
            yield Finding(
                "error",
                "changed",
                where,
                f"{what} through '{layer.file}', which somebody has written to since",
                "what was read there may be another now; where the contents are known to be right: check --accept",
            )


class Fingerprints:
    """The fingerprints that were taken, by image, each with the time of its snapshot; what was there before any has time 0."""

    def __init__(self, recorded: domain_xml.RecordedDomain, tree: snapshot.Tree, graph: images.Graph) -> None:
        self._taken: dict[images.Identity, list[tuple[int, str]]] = {}
        found = [(0, one.file, one.stamp) for one in recorded.layers]
        found += [(s.creation_time, d.image, d.stamp) for s in tree.ordered() for d in s.disks if d.stamp]
        for when, file, stamp in sorted(found, key=lambda one: one[0]):
            if (identity := graph.identity(file)) is not None:
                self._taken.setdefault(identity, []).append((when, stamp))

    def changed(self, layer: images.Found, at: int | None) -> bool:
        """The image was written to since it was last frozen before ``at``: it may have been active again, and frozen again."""
        taken = self._taken.get(layer.identity, []) if layer.identity else []
        then = [stamp for when, stamp in taken if at is None or when <= at]
        return bool(then) and then[-1] != layer.stamp

    def wrong(self, layer: images.Found) -> bool:
        """Some fingerprint is not the one that the image has."""
        taken = self._taken.get(layer.identity, []) if layer.identity else []
        return any(stamp != layer.stamp for _when, stamp in taken)


def _chain(where: str, what: str, file: str, graph: images.Graph) -> Iterator[Finding]:
    """The image, and each below it, is there."""
    layers = graph.chain(file)
    if not layers:
        yield Finding("error", "missing", where, f"{what}, which is missing", "bring the file back")
        return
    last = layers[-1]
    if last.backing and graph.identity(last.backing) is not None:
        problem = f"{what}, and below that '{last.file}' names '{last.backing}': a circle"
        yield Finding(
            "error", "circle", where, problem, "see what each should be backed by, and qemu-img rebase -u"
        )
    elif last.strange:
        yield Finding(
            "notice",
            "elsewhere",
            where,
            f"'{last.file}' reads through '{last.strange}', which is no file of this host",
        )
    elif last.backing:
        problem = f"{what}, and below that '{last.file}' names '{last.backing}', which is missing"
        yield Finding("error", "missing", where, problem, "bring the file back")


def _headers(seen: Seen) -> Iterator[Finding]:
    """QEMU reads through the images that headers name: the next boot will, whatever QEMU has open now."""
    for disk in seen.view.disks if seen.view else ():
        for upper, lower in zip(disk.chain, (*disk.chain[1:], None), strict=True):
            found = seen.graph.found.get(upper.file)
            if found is None or upper.file in seen.busy or not upper.file:
                continue
            has = lower.file if lower else ""
            if (found.backing or has) and seen.graph.identity(found.backing) != seen.graph.identity(has):
                problem = f"QEMU reads '{has or 'nothing'}' below '{upper.file}', whose header names '{found.backing or 'nothing'}'"
                advice = "the next boot reads what the header names"
                yield Finding("error", "header", f"disk {disk.target}", problem, advice)
