"""``/livez`` and ``/readyz``: names and states, no more."""

from pathlib import Path

import pytest
from conftest import SettableClock
from unit.harness import Harness, open_harness

from app.database.models import db


def test_alive_is_alive(harness: Harness) -> None:
    answer = harness.app.test_client().get("/livez")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ok"})


def test_ready_is_ready(any_harness: Harness) -> None:
    answer = any_harness.app.test_client().get("/readyz")
    assert (answer.status_code, answer.get_json()) == (
        200,
        {"status": "ok", "checks": {"database": "ok", "keyring": "ok", "settings": "ok", "audit_log": "ok"}},
    )


def test_without_tables_it_is_alive_and_not_ready(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        db.drop_all()
    caller = any_harness.app.test_client()
    answer = caller.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (
        503,
        {"status": "failed", "checks": {"database": "failed", "keyring": "ok", "settings": "ok", "audit_log": "ok"}},
    )
    assert caller.get("/livez").status_code == 200


@pytest.mark.parametrize("with_key", [True, False])
def test_without_a_key_that_may_sign_it_is_not_ready(tmp_path: Path, clock: SettableClock, *, with_key: bool) -> None:
    with open_harness(tmp_path, clock, with_key=with_key) as harness:
        harness.clock.now = harness.clock().replace(year=2025)
        answer = harness.app.test_client().get("/readyz")
        assert (answer.status_code, answer.get_json()) == (
            503,
            {
                "status": "failed",
                "checks": {"database": "ok", "keyring": "failed", "settings": "ok", "audit_log": "ok"},
            },
        )


def test_a_failure_is_logged_without_the_databases_address(
    tmp_path: Path, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    url = "postgresql+psycopg://user:hidden-password@127.0.0.1:1/hidden-name"
    with open_harness(tmp_path, clock, migrated=False, database_url=url) as harness:
        answer = harness.app.test_client().get("/readyz")
        assert answer.get_json()["checks"]["database"] == "failed"
        assert "hidden" not in answer.text + caplog.text
