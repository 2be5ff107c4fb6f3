"""The documents of APIs while the database is away, and without scopes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from unit.harness import Harness, open_harness

from app.apis.fields import ApiFields
from app.errors import ServiceUnavailable
from app.reasons import RefusalReason

PATH = "/.well-known/oauth-protected-resource"


def create(harness: Harness, name: str) -> None:
    fields = ApiFields(name, f"https://{name}.example.com", ("read",), publishes_document=True)
    with harness.app.app_context():
        harness.services.apis.repository.create(fields)


@pytest.fixture
def away(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """An application whose queries fail from now on."""

    def fail(*_: Any) -> Sequence[Any]:
        raise ServiceUnavailable(RefusalReason.DATABASE.caused_by("OperationalError"))

    create(harness, "orders")
    monkeypatch.setattr(harness.services.apis.documents, "_by_name", type("Broken", (), {"execute_through": fail})())
    monkeypatch.setattr(harness.app.extensions["scheduler"], "start", lambda: None)
    return harness


def test_known_documents_are_served_while_the_database_is_away(away: Harness) -> None:
    away.services.apis.documents.poll()
    caller = away.app.test_client()
    assert caller.get(f"{PATH}/orders").json["resource"] == "https://orders.example.com"
    assert caller.get(f"{PATH}/other").status_code == 404


def test_without_any_poll_the_answer_is_503(away: Harness) -> None:
    answer = away.app.test_client().get(f"{PATH}/orders")
    assert (answer.status_code, answer.json["error"], answer.headers["Retry-After"]) == (503, "server_error", "1")


def test_a_setting_keeps_scopes_to_ourselves(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, publish_scopes="false") as harness:
        create(harness, "orders")
        assert "scopes_supported" not in harness.app.test_client().get(f"{PATH}/orders").json
