"""Two operations that meet at an image: the second sees the first."""

from __future__ import annotations

import pytest

from qmpsnap import errors
from qmpsnap.own import claims


def test_who_comes_second_waits() -> None:
    """Whoever changes an image has it alone; those who only depend on it share it."""
    found = claims.Claims()
    found.take("1", "daisy", {"new"}, {"base"})
    found.take("2", "rose", {"other"}, {"base"})
    for alone, shared in (({"new"}, set()), ({"base"}, set()), (set(), {"new"})):
        with pytest.raises(errors.ImageBusy, match="is used by the operation 1 of domain 'daisy'"):
            found.take("3", "lily", alone, shared)
    found.drop("1")
    found.take("3", "lily", {"new"}, {"base"})


def test_what_had_begun_before_is_not_refused() -> None:
    """The journal says what is under way, whatever somebody wants now."""
    found = claims.Claims()
    found.take("1", "daisy", {"new"}, set())
    found.take("2", "rose", {"new"}, set(), begun=True)
    with pytest.raises(errors.ImageBusy):
        found.take("3", "lily", set(), {"new"})
    found.drop("4")


def test_what_fails_gives_its_images_back() -> None:
    found = claims.Claims()
    found.take("1", "daisy", {"new"}, set())
    with found.dropped_unless_done("1"):
        pass
    with pytest.raises(errors.ImageBusy):
        found.take("2", "rose", {"new"}, set())
    with pytest.raises(KeyError), found.dropped_unless_done("1"):
        raise KeyError
    found.take("2", "rose", {"new"}, set())
