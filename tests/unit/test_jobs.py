"""The life of a block job: every way from status to status, and none that is not in the table."""

from __future__ import annotations

import pytest

from qmpsnap.model import jobs

STATUSES = [*jobs.TABLE]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("event", STATUSES)
def test_every_way(status: str, event: str) -> None:
    """A status leads where the table says, stays when it is seen again, and anything else is an error with both names."""
    job = jobs.Tracked("j", status)
    if event == status or event in jobs.TABLE[status]:
        assert job.after(event).status == event
    else:
        with pytest.raises(jobs.Impossible, match=f"job j: {status} cannot become {event}"):
            job.after(event)


def test_a_whole_stream_as_seen_on_qemu() -> None:
    """The events of a held-back stream with a pause in it lead to its end."""
    job = jobs.Tracked("j")
    for status in ["created", "running", "paused", "running", "waiting", "pending"]:
        job = job.after(status)
        assert not job.ended
    for status in ["concluded", "null"]:
        job = job.after(status)
        assert job.ended


def test_the_first_reason_stays() -> None:
    """What went wrong first is what is reported."""
    assert jobs.Tracked("j").failed("").failed("No space left on device").failed(
        "Operation canceled"
    ).error == ("No space left on device")


def test_ends_lead_nowhere_but_to_ends() -> None:
    """Once ended, a job does not run again."""
    for status in jobs.ENDED:
        assert jobs.TABLE[status] <= jobs.ENDED
