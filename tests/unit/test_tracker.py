"""Events and queries cross on their way: what was seen earlier never undoes what is known later."""

from __future__ import annotations

import pytest

from qmpsnap.act import tracker
from qmpsnap.model import chain, jobs
from qmpsnap.talk import wire


def _event(status: str) -> wire.Event:
    return wire.Event("JOB_STATUS_CHANGE", {"id": "j", "status": status}, 0.0)


def _followed(*statuses: str) -> tracker.Tracker:
    found = tracker.Tracker(lambda job: None)
    found.track("j")
    for status in statuses:
        found.feed(_event(status))
    return found


async def test_a_look_that_is_older_than_an_event_changes_nothing() -> None:
    """QEMU had answered "running" before it said "pending"; the answer is read after the event."""
    followed = _followed("created", "running")
    before = followed.acknowledged
    followed.feed(_event("waiting"))
    followed.feed(_event("pending"))

    followed.fold([chain.Job("j", "stream", "running")], before)

    assert (await followed.wait("j", lambda job: True)).status == "pending"


async def test_a_job_that_began_after_the_look_has_not_ended() -> None:
    """The look was sent before the job was started, and cannot know it."""
    followed = _followed()
    before = followed.acknowledged
    followed.feed(_event("created"))
    followed.started("j")

    followed.fold([], before)

    assert (await followed.wait("j", lambda job: True)).status == "created"
    followed.feed(_event("running"))  # and its events are still possible


async def test_a_job_that_a_later_look_does_not_show_has_ended() -> None:
    """Its last events were missed: the absence tells."""
    followed = _followed("created", "running")

    followed.fold([], followed.acknowledged)

    assert (await followed.wait("j", lambda job: job.ended)).status == "vanished"


def test_an_event_that_cannot_be_is_an_error() -> None:
    """Events come in order; one that goes back means that we no longer know what QEMU does."""
    with pytest.raises(jobs.Impossible):
        _followed("created", "running", "pending", "running")
