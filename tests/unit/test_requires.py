"""What the host lacks: a skip with its reason, or a failure where the run requires it."""

import pytest

from tests import requires


@pytest.fixture(autouse=True)
def _lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMPSNAP_REQUIRE", raising=False)
    monkeypatch.setitem(requires.NEEDS, "guest", lambda: "no guest here")
    monkeypatch.setitem(requires.NEEDS, "systemd", lambda: None)


def test_lacking_is_skipped_with_its_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="no guest here"):
        requires.need("guest")


def test_lacking_and_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPSNAP_REQUIRE", "qemu, guest")
    with pytest.raises(pytest.fail.Exception, match="no guest here"):
        requires.need("guest")


def test_present_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    requires.need("systemd")
    monkeypatch.setenv("QMPSNAP_REQUIRE", "systemd")
    requires.need("systemd")


def test_unknown_need_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in CI must not turn everything into skips."""
    monkeypatch.setenv("QMPSNAP_REQUIRE", "qmeu")
    with pytest.raises(pytest.UsageError, match="qmeu"):
        requires.required()
