"""Images that open operations have to themselves: between a look at who needs an image and the act, nobody begins to need it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import attrs

from qmpsnap import errors


@attrs.frozen
class _Claim:
    domain: str
    alone: frozenset[str]
    shared: frozenset[str]


class Claims:
    """One for all domains. Claimed before the look, so that of two operations that meet the second sees the first."""

    def __init__(self) -> None:
        self._open: dict[str, _Claim] = {}

    def take(
        self,
        operation: str,
        domain: str,
        alone: Collection[str],
        shared: Collection[str],
        *,
        begun: bool = False,
    ) -> None:
        """The operation makes, writes or removes the images ``alone`` and depends on those ``shared``; ``ImageBusy`` while
        another does so. One that has ``begun``, before an earlier daemon died, has its images whatever others want."""
        wanted = _Claim(domain, frozenset(alone), frozenset(shared))
        for other, claim in self._open.items():
            both = (wanted.alone & (claim.alone | claim.shared)) | (wanted.shared & claim.alone)
            if both and not begun:
                owner = f"domain '{claim.domain}'" if claim.domain else "the trash"
                raise errors.ImageBusy(file=min(both), operation=other, owner=owner, domain=claim.domain)
        self._open[operation] = wanted

    @contextlib.contextmanager
    def dropped_unless_done(self, operation: str) -> Iterator[None]:
        """The claim goes when what is inside does not come to its end."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self.drop(operation)

    def drop(self, operation: str) -> None:
        """The operation has ended, or was refused."""
        self._open.pop(operation, None)
