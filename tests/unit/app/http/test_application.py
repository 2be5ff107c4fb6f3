"""What every answer has in common, and that no fault is answered in another form."""

import ipaddress
import json
import logging
import re
from typing import Any

import flask
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from unit.harness import Harness
from werkzeug.exceptions import HTTPException, RequestedRangeNotSatisfiable, ServiceUnavailable, TooManyRequests
from werkzeug.test import TestResponse, create_environ

from app import create_app
from app.errors import http_error_body
from app.http import application
from app.operations.background_jobs import Scheduler


def fail(error: HTTPException) -> None:
    raise error


@pytest.fixture
def app() -> application.Application:
    """An application that fails in every way."""
    made = application.Application("faulty")
    handlers: dict[str, Any] = {
        "broken": lambda: 1 / 0,
        "away": lambda: fail(ServiceUnavailable(retry_after=7)),
        "limited": lambda: fail(TooManyRequests(retry_after=9)),
        "range": lambda: fail(RequestedRangeNotSatisfiable()),
        "cached": lambda: application.json_response(200, {}),
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
    assert (answer.status_code, answer.json) == (status, http_error_body(status))
    assert set(answer.headers.keys()) & {"Allow", "Retry-After", "Location"} == more


def test_the_allowed_methods_are_told(app: Flask) -> None:
    allowed = app.test_client().post("/cached").headers["Allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_an_unexpected_fault_is_logged_with_its_request_id_and_told_to_nobody(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    answer = app.test_client().get("/broken?secret=hidden")
    assert answer.json == {"error": "server_error", "error_description": "The server failed to handle the request."}
    (record,) = [record for record in caplog.records if record.name == "app.http.application"]
    assert record.getMessage() == f"a request failed, request_id={answer.headers['X-Request-ID']} endpoint=broken"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert "hidden" not in caplog.text


@given(st.text(min_size=1, max_size=40))
def test_no_path_is_reflected_or_answered_in_another_form(text: str) -> None:
    made = application.Application("empty")
    answer = made.test_client().get("/" + text.replace("/", "_"))
    assert_common(answer)
    assert (answer.status_code, answer.json) == (404, http_error_body(404))


def test_the_real_application_answers_so_too(harness: Harness) -> None:
    caller = harness.app.test_client()
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
        assert (answer.status_code, json.loads(answer.data)) == (status, http_error_body(status))
    assert caller.get("/oauth/token").headers["Allow"] == "POST"


def test_no_answer_sets_a_cookie_and_no_session_can_be_kept(app: Flask) -> None:
    @app.get("/session-of-a-test")
    def keep_something() -> str:
        with pytest.raises(RuntimeError, match="session is unavailable"):
            flask.session["a"] = "b"
        return ""

    answer = app.test_client().get("/session-of-a-test")
    assert (answer.status_code, answer.headers.getlist("Set-Cookie")) == (200, [])


@pytest.mark.parametrize(
    "host", ["tokens.example.com", "another.example", "a.b:1", "[::1]:8080", "xn--bcher-kva.example"]
)
def test_routes_do_not_depend_on_the_host(harness: Harness, host: str) -> None:
    client = harness.app.test_client()
    assert client.get("/livez", headers={"Host": host}).status_code == 200
    assert client.get("/livez/", headers={"Host": host}).status_code == 404
    assert client.put("/livez", headers={"Host": host}).status_code == 405


def test_no_blueprint_asks_for_what_is_not_done(harness: Harness) -> None:
    """Our Flask calls what the application and blueprints register after a request, and the former before one."""
    app = harness.app
    assert set(app.before_request_funcs) <= {None}
    assert not any(app.url_value_preprocessors.values())
    assert not any(app.teardown_request_funcs.values())


def test_what_is_registered_after_requests_is_called_the_blueprints_first(harness: Harness) -> None:
    called: list[str] = []

    def note(name: str) -> Any:
        return lambda answer: called.append(name) or answer

    harness.app.after_request_funcs.setdefault("discovery", []).append(note("blueprint"))
    harness.app.after_request_funcs.setdefault(None, []).append(note("application"))
    harness.app.serve_directly()  # type: ignore[attr-defined]
    client = harness.app.test_client()
    client.get("/.well-known/jwks.json")
    client.get("/livez")
    client.get("/nowhere")
    assert called == ["blueprint", "application", "application", "application"]


@pytest.fixture
def quick(app: application.Application) -> application.Application:
    """One whose views need nothing of Flask's way."""
    blueprint = flask.Blueprint("quick", __name__)
    views: dict[str, Any] = {
        "who": lambda asked: application.json_response(
            200, [asked.source_address, asked.headers.get("X-Asked", "nothing")]
        ),
        "fails": lambda _asked: 1 / 0,
        "refuses": lambda _asked: fail(TooManyRequests(retry_after=9)),
    }
    for name, view in views.items():
        blueprint.add_url_rule(f"/quick/{name}", name, application.without_contexts(view), methods=["GET", "POST"])

    @blueprint.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-Marked"] = "yes"
        return response

    app.register_blueprint(blueprint)
    return app


@pytest.mark.parametrize("name", ["who", "fails", "refuses"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT"])
def test_the_short_way_answers_as_flasks_way_does(
    quick: application.Application, name: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caller = quick.test_client()
    answers = [caller.open(f"/quick/{name}", method=method, headers={"X-Asked": "this"})]
    quick.serve_directly()
    answers += [caller.open(f"/quick/{name}", method=method, headers={"X-Asked": "this"}) for _ in range(2)]
    told = [
        [(answer.status, answer.data, [one for one in answer.headers if one[0] != "X-Request-ID"])]
        for answer in answers
    ]
    assert told[0] == told[1] == told[2]
    for answer in answers:
        assert_common(answer)
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 3
    # A fault is told with the id of its answer in both ways.
    told_of = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    is_fault = name == "fails" and method not in {"OPTIONS", "PUT"}
    assert told_of == [
        f"a request failed, request_id={answer.headers['X-Request-ID']} endpoint=quick.fails"
        for answer in (answers if is_fault else [])
    ]


def test_no_request_of_a_direct_view_takes_flasks_way(
    quick: application.Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.serve_directly()
    caller = quick.test_client()
    gone: list[str] = []
    inner = Flask.wsgi_app
    monkeypatch.setattr(Flask, "wsgi_app", lambda *found: gone.append(found[1]["PATH_INFO"]) or inner(*found))
    for path in ("/quick/who", "/quick/who?x=1", "/cached"):
        assert caller.get(path).status_code == 200
    assert caller.get("/quick/who/").status_code == 404
    assert gone == ["/cached", "/quick/who/"]


def skipped(_sender: object = None, *_more: object) -> None:
    raise AssertionError("never called")


@pytest.mark.parametrize("kind", ["before_request", "teardown_request", "url_value_preprocessor"])
@pytest.mark.parametrize("where", ["application", "blueprint"])
def test_a_function_that_would_be_skipped_stops_the_start(app: application.Application, kind: str, where: str) -> None:
    blueprint = flask.Blueprint("quick", __name__)
    blueprint.add_url_rule(
        "/quick", "who", application.without_contexts(lambda _asked: application.json_response(200, {}))
    )
    getattr(app if where == "application" else blueprint, kind)(skipped)
    app.register_blueprint(blueprint)
    with pytest.raises(RuntimeError, match=rf"^skipped \({kind}\) would never run: quick\.who is served"):
        app.serve_directly()


def test_a_function_of_another_blueprint_is_not_skipped(app: application.Application) -> None:
    blueprint = flask.Blueprint("ordinary", __name__)
    blueprint.before_request(skipped)
    app.register_blueprint(blueprint)
    app.serve_directly()


@pytest.mark.parametrize("kind", ["before_request", "after_request", "teardown_request"])
def test_nothing_can_be_registered_later_where_it_would_be_skipped(quick: application.Application, kind: str) -> None:
    quick.serve_directly()
    with pytest.raises(AssertionError, match="can no longer be called"):
        getattr(quick, kind)(skipped)


def test_create_app_fails_where_a_function_would_be_skipped(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    install = Scheduler.install

    def install_both(scheduler: Scheduler, app: Flask) -> None:
        install(scheduler, app)
        app.before_request(skipped)

    monkeypatch.setattr(Scheduler, "install", install_both)
    with pytest.raises(RuntimeError, match=r"^skipped \(before_request\) would never run: "):
        create_app(harness.settings)


def test_what_is_asked_of_a_request_is_there(quick: application.Application) -> None:
    quick.add_url_rule(
        "/asked",
        "asked",
        application.without_contexts(
            lambda asked: application.json_response(
                200, [asked.args["a"], asked.remote_addr, asked.url, asked.headers["X-Asked"], asked.path, asked.method]
            )
        ),
    )
    for _ in range(2):
        # The second is served directly.
        answer = quick.test_client().get("/asked?a=1", headers={"X-Asked": "this"})
        assert answer.json == ["1", "127.0.0.1", "http://localhost/asked?a=1", "this", "/asked", "GET"]
        quick.serve_directly()
    with quick.test_request_context("/ä//b"):
        assert flask.request.path == "/ä//b"
        with pytest.raises(AttributeError, match=r"^nothing$"):
            flask.request.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        # A proxy that is trusted by its IPv4 address.
        ("::ffff:127.0.0.1", "198.51.100.7"),
        ("2001:db8::ffff:1", "2001:db8::ffff:1"),
    ],
)
def test_a_caller_of_ipv4_has_an_address_of_ipv4_on_every_socket(peer: str, source: str) -> None:
    environ = create_environ("/", headers={"X-Forwarded-For": "198.51.100.7"}, environ_overrides={"REMOTE_ADDR": peer})
    request = application.Request(environ)
    request.begin((ipaddress.ip_network("127.0.0.1/32"),))
    assert request.source_address == source
