"""The composition: what ``create_app`` touches, and what a server is refused to start without."""

from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from support.keys import add_key
from unit.harness import open_harness

from app import utc_now
from app.errors import StartError
from app.operations.gunicorn_hooks import check_start


def test_an_application_is_made_without_touching_database_or_keys(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path / "nowhere", clock, migrated=False, with_key=False):
        assert not (tmp_path / "nowhere").exists()


def test_a_server_needs_a_key_that_may_sign(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
        with pytest.raises(StartError, match=r"^there is no key ring at "):
            check_start(harness.app)
        harness.run("keys", "generate")
        check_start(harness.app)
        # The ring's own time tells that the clock is wrong.
        clock.now = clock().replace(year=2025)
        check_start(harness.app)


def test_a_server_needs_a_key_whose_time_has_come(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, with_key=False) as harness:
        later = clock() + timedelta(days=1)
        add_key(harness.services.keys.manager.backend, published_at=clock(), signs_from=later)
        with pytest.raises(StartError, match=r"^the key ring has no key that may sign now: the first may sign from "):
            check_start(harness.app)


def test_the_clock_of_a_real_application_is_aware_and_in_utc() -> None:
    assert utc_now().utcoffset() is not None
    assert str(utc_now().tzinfo) == "UTC"


def test_there_is_nothing_but_what_is_documented(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock) as harness:
        rules = {(rule.rule, *sorted(rule.methods or ())) for rule in harness.app.url_map.iter_rules()}
        assert rules == {
            ("/oauth/token", "POST"),
            ("/oauth/introspect", "POST"),
            ("/oauth/revoke", "POST"),
            ("/oauth/revocations", "GET", "HEAD", "POST"),
            *(
                (path, "GET", "HEAD", "OPTIONS")
                for path in (
                    "/.well-known/jwks.json",
                    "/.well-known/oauth-authorization-server",
                    "/.well-known/openid-configuration",
                    "/.well-known/oauth-protected-resource/oauth/introspect",
                    "/.well-known/oauth-protected-resource/oauth/revocations",
                    "/.well-known/oauth-protected-resource/<name>",
                    "/livez",
                    "/readyz",
                )
            ),
        }
