"""What every answer has in common, and that no fault is answered in another form."""

import json
import re
from typing import Any

import flask
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from unit.house import House
from werkzeug.exceptions import HTTPException, RequestedRangeNotSatisfiable, ServiceUnavailable, TooManyRequests
from werkzeug.test import TestResponse

from app import web
from app.errors import below_oauth


def fail(error: HTTPException) -> None:
    raise error


@pytest.fixture
def app() -> Flask:
    """An application that fails in every way."""
    made = web.Application("faulty")
    handlers: dict[str, Any] = {
        "broken": lambda: 1 / 0,
        "away": lambda: fail(ServiceUnavailable(retry_after=7)),
        "limited": lambda: fail(TooManyRequests(retry_after=9)),
        "range": lambda: fail(RequestedRangeNotSatisfiable()),
        "cached": lambda: web.json_response(200, {}),
        "id": lambda: flask.request.request_id,
    }
    for name, handler in handlers.items():
        made.add_url_rule(f"/{name}", name, handler)
    return made


def assert_common(answer: TestResponse) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in answer.headers


def test_every_answer_has_a_request_id_of_its_own_and_may_not_be_sniffed_or_stored(app: Flask) -> None:
    answers = [app.test_client().get(f"/{path}") for path in ("cached", "broken", "nowhere", "away")]
    for answer in answers:
        assert_common(answer)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"] == "application/json"
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 4


def test_a_callers_own_request_id_is_not_taken_over(app: Flask) -> None:
    answer = app.test_client().get("/id", headers={"X-Request-ID": "0" * 32})
    assert answer.text == answer.headers["X-Request-ID"] != "0" * 32


@pytest.mark.parametrize(
    ("method", "path", "status", "more"),
    [
        ("GET", "/nowhere", 404, set()),
        ("GET", "//cached", 404, set()),
        ("GET", "/cached/", 404, set()),
        ("POST", "/cached", 405, {"Allow"}),
        ("TRACE", "/cached", 405, {"Allow"}),
        ("GET", "/away", 503, {"Retry-After"}),
        ("GET", "/limited", 429, {"Retry-After"}),
        ("GET", "/range", 416, set()),
        ("GET", "/broken", 500, set()),
    ],
)
def test_every_fault_is_json_of_the_same_form(app: Flask, method: str, path: str, status: int, more: set[str]) -> None:
    answer = app.test_client().open(path, method=method)
    assert (answer.status_code, answer.json) == (status, below_oauth(status))
    assert set(answer.headers.keys()) & {"Allow", "Retry-After", "Location"} == more


def test_the_allowed_methods_are_told(app: Flask) -> None:
    allowed = app.test_client().post("/cached").headers["Allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_an_unexpected_fault_is_logged_with_its_request_id_and_told_to_nobody(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    answer = app.test_client().get("/broken?secret=hidden")
    assert answer.json == {"error": "server_error", "error_description": "The server failed to handle the request."}
    (record,) = [record for record in caplog.records if record.name == "app.web"]
    assert record.getMessage() == f"a request failed, request_id={answer.headers['X-Request-ID']} endpoint=broken"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert "hidden" not in caplog.text


@given(st.text(min_size=1, max_size=40))
def test_no_path_is_reflected_or_answered_in_another_form(text: str) -> None:
    made = web.Application("empty")
    answer = made.test_client().get("/" + text.replace("/", "_"))
    assert_common(answer)
    assert (answer.status_code, answer.json) == (404, below_oauth(404))


def test_the_real_application_answers_so_too(house: House) -> None:
    caller = house.app.test_client()
    for method, path, status in [
        ("GET", "/", 404),
        ("GET", "/oauth/token", 405),
        ("OPTIONS", "/oauth/token", 405),
        ("PUT", "/oauth/token", 405),
        ("POST", "/oauth/token/", 404),
        ("POST", "//oauth/token", 404),
        ("POST", "/.well-known/jwks.json", 405),
    ]:
        answer = caller.open(path, method=method)
        assert_common(answer)
        assert (answer.status_code, json.loads(answer.data)) == (status, below_oauth(status))
    assert caller.get("/oauth/token").headers["Allow"] == "POST"


def test_no_answer_sets_a_cookie_and_no_session_can_be_kept(house: House) -> None:
    @house.app.get("/session-of-a-test")
    def keep_something() -> str:
        with pytest.raises(RuntimeError, match="session is unavailable"):
            flask.session["a"] = "b"
        return ""

    answer = house.app.test_client().get("/session-of-a-test")
    assert (answer.status_code, answer.headers.getlist("Set-Cookie")) == (200, [])


@pytest.mark.parametrize(
    "host", ["tokens.example.com", "another.example", "a.b:1", "[::1]:8080", "xn--bcher-kva.example"]
)
def test_routes_do_not_depend_on_the_host(house: House, host: str) -> None:
    client = house.app.test_client()
    assert client.get("/livez", headers={"Host": host}).status_code == 200
    assert client.get("/livez/", headers={"Host": host}).status_code == 404
    assert client.put("/livez", headers={"Host": host}).status_code == 405


def test_no_blueprint_asks_for_what_is_not_done(house: House) -> None:
    """Our Flask calls what the application and blueprints register after a request, and the former before one."""
    app = house.app
    assert set(app.before_request_funcs) <= {None}
    assert not any(app.url_value_preprocessors.values())
    assert not any(app.teardown_request_funcs.values())


def test_what_is_registered_after_requests_is_called_the_blueprints_first(house: House) -> None:
    called: list[str] = []

    def note(name: str) -> Any:
        return lambda answer: called.append(name) or answer

    house.app.after_request_funcs.setdefault("discovery", []).append(note("blueprint"))
    house.app.after_request_funcs.setdefault(None, []).append(note("application"))
    client = house.app.test_client()
    client.get("/.well-known/jwks.json")
    client.get("/livez")
    client.get("/nowhere")
    assert called == ["blueprint", "application", "application", "application"]
