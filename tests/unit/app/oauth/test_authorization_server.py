"""What stock Authlib does that a strict token server must not, and that ours does not.

Each test pins both. One that fails on the stock side tells that upstream has mended the behaviour: look then whether
ours is still needed. The numbers are those of the list of facts about the foundation.
"""

import base64
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import joserfc.jwk
import jwt
import pytest
from authlib.integrations.flask_oauth2 import AuthorizationServer, client_authenticated, token_revoked
from authlib.oauth2.rfc6749 import ClientMixin, InvalidRequestError, grants
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from support.keys import add_key
from unit.harness import Harness, statements
from werkzeug.test import TestResponse

from app.audit.events import Event, RequestRefused, TokenIssued, TokenRefused
from app.audit.log import AuditLog
from app.errors import InvalidRequest, InvalidScope
from app.http.forms import parse_form
from app.oauth.authorization_server import DELAY_MARGIN_SECONDS, EXPIRY_HEADER, MOST_DELAYED, Document
from app.oauth.client_auth import METHODS
from app.oauth.endpoints.token import PATH
from app.oauth.grants import GRANTS
from app.types import Client
from buffered_worker.stream import NonBlockingStream

SECRET = "a-secret-of-both-servers-123"
GRANT = {"grant_type": "client_credentials"}
REFUSED = {"error": "invalid_client", "error_description": "Client authentication failed."}


@dataclass
class StockClient(ClientMixin):  # type: ignore[misc]
    """A client as Authlib's documentation shows it."""

    client_id: str
    secret: str = SECRET
    scope: str = "read write"
    asked_methods: list[str] = field(default_factory=list)

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return ""

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == self.secret

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        self.asked_methods.append(method)
        return True

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(token for token in (scope or "").split() if token in self.scope.split())


class StockGrant(grants.ClientCredentialsGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post")


@pytest.fixture
def stock_app() -> Flask:
    app = Flask("stock")
    clients = {name: StockClient(name) for name in ("known", "a b")}
    server = AuthorizationServer(app, query_client=clients.get, save_token=lambda _token, _request: None)
    server.register_grant(StockGrant)
    app.add_url_rule("/oauth/token", "token", server.create_token_response, methods=["POST"])
    return app


@pytest.fixture
def stock(stock_app: Flask) -> FlaskClient:
    return stock_app.test_client()


@pytest.fixture
def ours(harness: Harness) -> FlaskClient:
    harness.register("known", secret=SECRET, scope=("read", "write"))
    harness.register("a b", secret=SECRET, scope=("read", "write"))
    return harness.app.test_client()


def basic(text: str | bytes) -> dict[str, str]:
    raw = text if isinstance(text, bytes) else text.encode()
    return {"Authorization": f"Basic {base64.b64encode(raw).decode()}"}


KNOWN = basic(f"known:{SECRET}")


def post(
    caller: FlaskClient, data: Any = None, headers: Any = None, url: str = "https://localhost/oauth/token"
) -> TestResponse:
    return caller.post(url, data=GRANT if data is None else data, headers=KNOWN if headers is None else headers)


def granted(answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.get_json()
    assert body["access_token"]
    return body


def refused(answer: TestResponse, status: int = 400) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    body = answer.get_json()
    assert list(body) == ["error", "error_description"]
    return body["error"], body["error_description"]


def test_both_serve_a_client_that_is_well_behaved(stock: FlaskClient, ours: FlaskClient) -> None:
    assert granted(post(stock))["token_type"] == granted(post(ours))["token_type"] == "Bearer"
    in_the_body = {**GRANT, "client_id": "known", "client_secret": SECRET}
    granted(post(stock, in_the_body, {}))
    granted(post(ours, in_the_body, {}))


def test_1_stock_tells_an_unknown_client_from_a_wrong_secret(stock: FlaskClient, ours: FlaskClient) -> None:
    unknown, wrong = (
        {**GRANT, "client_id": name, "client_secret": "wrong-secret-123456"} for name in ("nobody", "known")
    )
    assert post(stock, unknown, {}).data != post(stock, wrong, {}).data
    answers = [post(ours, body, {}) for body in (unknown, wrong)]
    answers += [post(ours, headers=basic(text)) for text in ("nobody:wrong", "known:wrong", "", "nobody")]
    assert {(answer.status_code, answer.data, answer.headers["WWW-Authenticate"]) for answer in answers} == {
        (
            401,
            json.dumps(REFUSED, separators=(",", ":")).encode(),
            'Basic realm="tokenhouse", error="invalid_client", error_description="Client authentication failed."',
        )
    }


def test_2_stock_fails_on_basic_that_is_not_utf_8(stock: FlaskClient, ours: FlaskClient) -> None:
    assert post(stock, headers=basic(b"\xff\xfe:secret")).status_code == 500
    assert post(ours, headers=basic(b"\xff\xfe:secret")).get_json() == REFUSED


def test_3_stock_does_not_decode_a_plus_in_basic(stock: FlaskClient, ours: FlaskClient) -> None:
    assert post(stock, headers=basic(f"a+b:{SECRET}")).status_code == 401
    granted(post(ours, headers=basic(f"a+b:{SECRET}")))
    granted(post(ours, headers=basic(f"a%20b:{SECRET}")))
    granted(post(ours, headers=basic(f"a b:{SECRET}")))


def test_4_stock_takes_parameters_from_the_query(stock: FlaskClient, ours: FlaskClient) -> None:
    url = "https://localhost/oauth/token?grant_type=client_credentials&scope=read"
    assert granted(post(stock, {"x": "y"}, url=url))["scope"] == "read"
    for query, name in [("grant_type=x", "grant_type"), ("scope=read", "scope"), ("client_secret=x", "client_secret")]:
        told = refused(post(ours, url=f"https://localhost/oauth/token?{query}"))
        assert told == ("invalid_request", f"The parameter {name} must be in the body, not in the URL.")
    granted(post(ours, url="https://localhost/oauth/token?tenant=x&trace=1"))


def test_5_stock_takes_the_first_of_repeated_parameters(stock: FlaskClient, ours: FlaskClient) -> None:
    body = "grant_type=client_credentials&scope=read&scope=write"
    form = {**KNOWN, "Content-Type": "application/x-www-form-urlencoded"}
    assert granted(post(stock, body, form))["scope"] == "read"
    assert refused(post(ours, body, form)) == ("invalid_request", "The parameter scope is repeated.")
    unknown = "grant_type=client_credentials&colour=red&colour=blue"
    assert refused(post(ours, unknown, form)) == ("invalid_request", "A parameter is repeated.")


def test_6_stock_takes_two_authentications_at_once(stock: FlaskClient, ours: FlaskClient) -> None:
    body = {**GRANT, "client_id": "known", "client_secret": "wrong-secret-123456"}
    granted(post(stock, body))
    told = ("invalid_request", "The request must authenticate the client exactly once.")
    assert refused(post(ours, body)) == told
    assert refused(post(ours, {**body, "client_secret": SECRET})) == told


def test_7_stock_drops_a_scope_silently(stock: FlaskClient, ours: FlaskClient) -> None:
    body = {**GRANT, "scope": "read admin"}
    assert granted(post(stock, body))["scope"] == "read"
    assert refused(post(ours, body)) == ("invalid_scope", "The client was not granted: admin")


def test_8_stock_calls_a_missing_grant_type_unsupported(stock: FlaskClient, ours: FlaskClient) -> None:
    assert post(stock, {"x": "y"}).get_json()["error"] == "unsupported_grant_type"
    told = ("invalid_request", "The parameter grant_type is missing.")
    assert refused(post(ours, {"x": "y"})) == told
    assert refused(post(ours, {"grant_type": ""})) == told
    assert refused(post(ours, {"grant_type": "password"})) == (
        "unsupported_grant_type",
        "The grant type is not supported by this server.",
    )


def test_9_stock_gives_ten_days(stock: FlaskClient, ours: FlaskClient) -> None:
    assert granted(post(stock))["expires_in"] == 864_000
    assert granted(post(ours))["expires_in"] == 3600


def test_10_stock_logs_the_token(stock: FlaskClient, ours: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "authlib"):
        token = granted(post(stock))["access_token"]
        assert token in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        for name in ("authlib", "joserfc"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        token = granted(post(ours))["access_token"]
        post(ours, headers=basic("known:hidden-secret-12345"))
        post(ours, {**GRANT, "client_id": "hidden-id", "client_secret": "hidden-secret-12345"}, {})
        for hidden in (token, token.rpartition(".")[2], SECRET, "hidden-secret-12345", "hidden-id"):
            assert hidden not in caplog.text


def test_11_stock_fails_on_plain_http(stock: FlaskClient, ours: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTHLIB_INSECURE_TRANSPORT", raising=False)
    assert post(stock, url="http://tokens.example.com/oauth/token").status_code == 500
    granted(post(ours, url="http://tokens.example.com/oauth/token"))
    granted(post(ours, url="http://anything.example/oauth/token"))


def test_12_stock_fails_on_input_that_is_reflected(ours: FlaskClient) -> None:
    with pytest.raises(ValueError, match="forbidden characters"):
        InvalidRequestError(description='a "quoted" name')
    with pytest.raises(ValueError, match="forbidden characters"):
        InvalidRequest("a_reason", 'a "quoted" name')
    for odd in ('"', "\\", "é", "\n", "\x00", "<script>"):
        body = {**GRANT, odd: odd, "scope": odd, "resource": odd}
        answer = post(ours, body)
        assert refused(answer)[0] in {"invalid_scope", "invalid_target"}
        assert answer.status_code == 400


def test_13_joserfc_signs_with_a_random_key_of_a_set(harness: Harness, ours: FlaskClient) -> None:
    keys = [joserfc.jwk.OctKey.generate_key(256, {"kid": f"k{number}"}) for number in range(8)]
    key_set = joserfc.jwk.KeySet(keys)
    tokens = [jws.serialize_compact({"alg": "HS256"}, b"x", key_set) for _ in range(60)]
    assert len({jwt.get_unverified_header(token)["kid"] for token in tokens}) > 1
    add_key(
        harness.services.keys.manager.backend,
        published_at=harness.clock(),
        signs_from=harness.clock().replace(year=2027),
    )
    kids = {jwt.get_unverified_header(granted(post(ours))["access_token"])["kid"] for _ in range(20)}
    assert kids == {harness.services.keys.active().signing_key(harness.clock()).kid}


def test_14_stocks_generator_of_rfc_9068_reads_its_key_for_each_token_and_aims_at_the_client() -> None:
    rfc9068 = importlib.import_module("authlib.oauth2.rfc9068")
    key = joserfc.jwk.RSAKey.generate_key(2048)
    reads: list[int] = []

    class Generator(rfc9068.JWTBearerTokenGenerator):  # type: ignore[misc, name-defined]
        def get_jwks(self) -> Any:
            reads.append(1)
            return key.as_dict(private=True)

        def get_extra_claims(self, *_arguments: Any) -> dict[str, Any]:
            return {}

    generator = Generator(issuer="https://t.example", alg="RS256")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = [
            generator(
                grant_type="client_credentials", client=StockClient("known"), scope="read", include_refresh_token=False
            )
            for _ in range(3)
        ]
    assert len(reads) == 3
    encoded = tokens[0]["access_token"]
    assert "kid" not in jwt.get_unverified_header(encoded)
    assert "known" in jwt.decode(encoded, options={"verify_signature": False})["aud"]


def test_14_ours_names_its_key_and_aims_at_the_default_audience(harness: Harness, ours: FlaskClient) -> None:
    encoded = granted(post(ours))["access_token"]
    assert jwt.get_unverified_header(encoded)["kid"] == harness.services.keys.active().signing_key(harness.clock()).kid
    assert jwt.decode(encoded, options={"verify_signature": False})["aud"] == harness.settings.issuer


def test_15_stocks_client_keeps_its_secret_in_clear() -> None:
    mixin = importlib.import_module("authlib.integrations.sqla_oauth2").OAuth2ClientMixin
    made = type("Client", (mixin,), {"client_secret": SECRET})()
    assert made.client_secret == SECRET
    assert made.check_client_secret(SECRET) is True


def test_18_stock_ignores_a_resource(stock: FlaskClient, harness: Harness, ours: FlaskClient) -> None:
    granted(post(stock, {**GRANT, "resource": "urn:api"}))
    assert refused(post(ours, {**GRANT, "resource": "urn:api"}))[0] == "invalid_target"
    harness.register("two", secret=SECRET, audiences=("urn:a", "urn:b"))
    form = {**basic(f"two:{SECRET}"), "Content-Type": "application/x-www-form-urlencoded"}
    encoded = granted(post(ours, "grant_type=client_credentials&resource=urn:b&resource=urn:a", form))["access_token"]
    assert jwt.decode(encoded, options={"verify_signature": False})["aud"] == ["urn:b", "urn:a"]


# Ours alone


FORM = "application/x-www-form-urlencoded"


def send(ours: FlaskClient, body: bytes, **headers: str) -> TestResponse:
    given = {"Content-Type": FORM, **KNOWN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return ours.post("/oauth/token", data=body, headers={name: value for name, value in given.items() if value})


ENOUGH = b"grant_type=client_credentials"


@pytest.mark.parametrize(
    "content_type", [FORM, f"{FORM};charset=UTF-8", f"{FORM}; charset=utf-8", FORM.upper(), f"{FORM} ; x=y"]
)
def test_a_form_may_say_its_charset(ours: FlaskClient, content_type: str) -> None:
    granted(send(ours, ENOUGH, Content_Type=content_type))


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "text/plain", "multipart/form-data; boundary=x", f"x{FORM}", ";", f"{FORM},{FORM}"],
)
def test_another_content_type_is_refused(ours: FlaskClient, content_type: str) -> None:
    told = refused(send(ours, ENOUGH, Content_Type=content_type))
    assert told == ("invalid_request", "The content type must be application/x-www-form-urlencoded.")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x", "gzip, identity"])
def test_an_encoded_body_is_refused(ours: FlaskClient, encoding: str) -> None:
    assert refused(send(ours, ENOUGH, Content_Encoding=encoding))[0] == "invalid_request"


def test_an_identity_encoding_is_none(ours: FlaskClient) -> None:
    granted(send(ours, ENOUGH, Content_Encoding="Identity"))


@pytest.mark.parametrize(
    "body", [b"\xff", b"scope=%FF&" + ENOUGH, b"%C3=x&" + ENOUGH, b"&".join([b"a=b"] * 101), b"a\xe9=b"]
)
def test_a_body_that_is_no_form_in_utf_8_is_refused(ours: FlaskClient, body: bytes) -> None:
    assert refused(send(ours, body)) == ("invalid_request", "The body must be a form in UTF-8.")


FIELDS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=8)


@given(FIELDS)
def test_a_form_that_is_encoded_is_read_as_it_was_without_its_empty_values(fields: list[tuple[str, str]]) -> None:
    assert parse_form(urlencode(fields).encode()) == [(name, value) for name, value in fields if value]


@given(fields=FIELDS, wrong=st.sampled_from([b"%C3", b"%ff=a", b"a=%80", b"\xff"]), comes_first=st.booleans())
def test_a_form_with_anything_that_is_not_utf_8_is_refused_whole(
    fields: list[tuple[str, str]], wrong: bytes, *, comes_first: bool
) -> None:
    parts = [urlencode(fields).encode(), wrong]
    with pytest.raises(InvalidRequest, match="must be a form"):
        parse_form(b"&".join(reversed(parts) if comes_first else parts))


@pytest.mark.parametrize(("count", "is_taken"), [(100, True), (101, False)])
def test_a_form_has_at_most_a_hundred_parameters(count: int, *, is_taken: bool) -> None:
    body = b"&".join(b"p%d=1" % number for number in range(count))
    if is_taken:
        assert len(parse_form(body)) == count
    else:
        with pytest.raises(InvalidRequest, match="must be a form"):
            parse_form(body)


@pytest.mark.parametrize(
    "body",
    [
        ENOUGH + b"&scope=",
        b"&&" + ENOUGH + b"&",
        ENOUGH + b"&client_id=&client_secret=&resource=",
        ENOUGH + b"&scope=&scope=",
        ENOUGH + b"&audience=&colour=red&\xc3\xa9=x",
        b"gr%61nt_type=client%5Fcredentials",
        ENOUGH + b"&scope=read write",
        ENOUGH + b"&flag",
    ],
)
def test_empty_parameters_are_absent_and_unknown_ones_ignored(ours: FlaskClient, body: bytes) -> None:
    granted(send(ours, body))


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(ours: FlaskClient) -> None:
    padding = b"&x=" + b"x" * (16384 - len(ENOUGH) - 3)
    granted(send(ours, ENOUGH + padding))
    told = refused(send(ours, ENOUGH + padding + b"x"), 413)
    assert told == ("invalid_request", "The request body is longer than 16384 bytes.")


def test_a_body_that_is_shorter_than_declared_is_not_parsed(ours: FlaskClient) -> None:
    environ = {
        "wsgi.input": io.BytesIO(ENOUGH + b"&scope=re"),
        "CONTENT_LENGTH": str(len(ENOUGH) + 20),
        "CONTENT_TYPE": FORM,
    }
    answer = ours.post("/oauth/token", headers=KNOWN, environ_overrides=environ)
    assert refused(answer) == ("invalid_request", "The request body is incomplete.")


class Cut(io.RawIOBase):
    """A body whose connection breaks."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        raise OSError(104, "Connection reset by peer")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (lambda: io.BytesIO(ENOUGH), 200, ""),
        (lambda: io.BytesIO(ENOUGH + b"&x=" + b"x" * 16384), 413, "The request body is longer than 16384 bytes."),
        (Cut, 400, "The request body is incomplete."),
    ],
)
def test_a_body_without_a_declared_length_is_read_to_its_end(
    ours: FlaskClient, body: Callable[[], Any], status: int, told: str
) -> None:
    environ = {"wsgi.input": body(), "wsgi.input_terminated": True, "CONTENT_TYPE": FORM}
    answer = ours.post("/oauth/token", headers=KNOWN, environ_overrides=environ)
    if status == 200:
        granted(answer)
    else:
        assert refused(answer, status) == ("invalid_request", told)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer abc", 401), ("Basic", 401), ("", 200), ("   ", 200), ("Basic eDp5,Basic eDp5", 400), ("basic x, y", 400)],
)
def test_any_authorization_counts_as_one(ours: FlaskClient, authorization: str, status: int) -> None:
    body = ENOUGH if status != 200 else ENOUGH + f"&client_id=known&client_secret={SECRET}".encode()
    headers = {"Content-Type": FORM, "Authorization": authorization}
    assert ours.post("/oauth/token", data=body, headers=headers).status_code == status


def test_no_authentication_is_refused(ours: FlaskClient) -> None:
    for body in (GRANT, {**GRANT, "client_id": "known"}):
        assert post(ours, body, {}).get_json() == REFUSED


def test_a_client_without_the_grant_is_unauthorized(harness: Harness, ours: FlaskClient) -> None:
    harness.register("reader", secret=SECRET, grant_types=())
    told = refused(post(ours, headers=basic(f"reader:{SECRET}")))
    assert told == ("unauthorized_client", "The client is not authorized to use this grant type.")


def test_the_answer_is_exactly_that_of_the_contract(ours: FlaskClient) -> None:
    answer = post(ours, {**GRANT, "scope": "write read write"})
    assert list(granted(answer).items())[1:] == [
        ("token_type", "Bearer"),
        ("expires_in", 3600),
        ("scope", "write read"),
    ]
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    assert answer.headers["Content-Type"] == "application/json"


def test_a_client_without_scopes_gets_no_scope(harness: Harness, ours: FlaskClient) -> None:
    harness.register("bare", secret=SECRET)
    answer = granted(post(ours, headers=basic(f"bare:{SECRET}")))
    assert list(answer) == ["access_token", "token_type", "expires_in"]


def test_a_fault_of_ours_is_told_without_its_cause(
    harness: Harness, ours: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("hidden cause")

    monkeypatch.setattr(harness.services.oauth.server, "generate_token", broken)
    answer = post(ours)
    assert refused(answer, 500) == ("server_error", "The server failed to handle the request.")
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_database_that_is_away_is_worth_a_retry(harness: Harness, ours: FlaskClient) -> None:
    for path in harness.folder.glob("tokenhouse.db*"):
        path.unlink()
    with harness.app.app_context():
        importlib.import_module("app.database.models").db.engine.dispose()
    answer = post(ours)
    assert refused(answer, 503) == ("server_error", "The server cannot handle the request right now.")
    assert answer.headers["Retry-After"] == "1"


def test_every_answer_is_one_event(harness: Harness, ours: FlaskClient) -> None:
    told = io.StringIO()
    harness.services.oauth.server._events.subscribe(AuditLog("json", harness.clock, NonBlockingStream(lambda: told)))  # noqa: SLF001 - As create_app does.
    exchanges: list[tuple[dict[str, Any], str, str | None]] = [
        ({}, "issued", "known"),
        ({"headers": basic("nobody:x")}, "unknown_client", None),
        ({"headers": basic("known:x")}, "wrong_secret", "known"),
        ({"headers": {}}, "no_authentication", None),
        ({"headers": {"Authorization": "Bearer x"}}, "unsupported_scheme", None),
        ({"data": {"grant_type": "x"}}, "unknown_grant_type", None),
        ({"data": {"x": "y"}}, "missing_parameter", None),
        ({"data": {**GRANT, "scope": "admin"}}, "scope_not_granted", "known"),
        ({"data": {**GRANT, "scope": "a  b"}}, "malformed_scope", "known"),
        ({"data": {**GRANT, "resource": "urn:x"}}, "resource_not_granted", "known"),
        ({"data": {**GRANT, "client_id": "other"}}, "other_client_id", None),
        ({"url": "/oauth/token?scope=x"}, "query_parameter", None),
    ]
    for options, _, _ in exchanges:
        post(ours, **options)
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    assert [(line.get("reason", line["outcome"]), line.get("client_id")) for line in lines] == [
        (reason, client_id) for _, reason, client_id in exchanges
    ]
    assert lines[7]["detail"] == "The client was not granted: admin"
    assert list(lines[0]) == [
        "time",
        "event",
        "request_id",
        "source_address",
        "duration_ms",
        "client_id",
        "auth_method",
        "secret_id",
        "grant_type",
        "scope",
        "audience",
        "jti",
        "kid",
        "expires_in",
        "outcome",
    ]


def test_the_endpoint_knows_the_parameters_of_its_registries(ours: FlaskClient) -> None:
    known = set().union(*(feature.PARAMETERS for feature in GRANTS), *(method.parameters for method in METHODS))
    by_method = {"client_id", "client_secret", "client_assertion", "client_assertion_type"}
    assert known == {"grant_type", "scope", "resource", "audience"} | by_method
    for name in known:
        assert refused(post(ours, url=f"{PATH}?{name}=x"))[0] == "invalid_request"


def test_the_hooks_of_authlib_are_those_that_a_request_takes(
    harness: Harness, ours: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension that is written for Authlib overrides or calls these."""
    server, called = harness.services.oauth.server, []
    for name in ("authenticate_client", "generate_token", "save_token", "send_signal", "handle_response"):
        hook = getattr(server, name)
        monkeypatch.setattr(
            server,
            name,
            lambda *a, _name=name, _hook=hook, **n: called.append(_name) or _hook(*a, **n),  # type: ignore[func-returns-value]
        )
    granted(post(ours))
    assert called == ["authenticate_client", "send_signal", "generate_token", "save_token", "handle_response"]


@pytest.mark.usefixtures("ours")
def test_a_client_is_found_by_the_hook_of_authlib(harness: Harness) -> None:
    server = harness.services.oauth.server
    found = server.query_client("known")
    assert isinstance(found, ClientMixin)
    assert (found.get_client_id(), found.get_allowed_scope("read admin")) == ("known", "read")
    assert server.query_client("nobody") is None
    with harness.app.app_context():
        harness.store.disable("known")
    assert server.query_client("known") is None


def test_a_scope_breaks_the_grammar_for_authlibs_hook_too(harness: Harness) -> None:
    server = harness.services.oauth.server
    server.validate_requested_scope(None)
    server.validate_requested_scope("read write")
    with pytest.raises(InvalidScope):
        server.validate_requested_scope("read  write")


def test_the_signals_of_authlibs_flask_integration_are_sent(ours: FlaskClient) -> None:
    received: list[tuple[str, str]] = []

    def authenticated(_server: Any, *, client: Client, grant: Any) -> None:
        received.append((client.client_id, grant.GRANT_TYPE))

    def revoked(_server: Any, *, token: Any, client: Client) -> None:
        received.append((client.client_id, token.jti))

    with client_authenticated.connected_to(authenticated), token_revoked.connected_to(revoked):
        token = granted(post(ours))["access_token"]
        assert post(ours, {"token": token}, url="https://localhost/oauth/revoke").status_code == 200
    jti = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})["jti"]
    assert received == [("known", "client_credentials"), ("known", jti)]


@pytest.fixture
def pauses(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the server has waited; meanwhile the clock moves on."""
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        harness.clock.advance(seconds=seconds)

    monkeypatch.setattr(harness.services.oauth.server, "_pause", pause)
    return waited


def test_a_token_waits_out_the_second_in_which_its_clients_were_taken_back(
    harness: Harness, ours: FlaskClient, pauses: list[float]
) -> None:
    harness.clock.advance(milliseconds=250)
    with harness.app.app_context():
        until = harness.store.revoke_tokens("known").tokens_not_before
    assert until is not None
    token = post(ours).json["access_token"]  # type: ignore[index]
    assert pauses == [pytest.approx(0.75 + DELAY_MARGIN_SECONDS)]
    assert (
        jwt.decode(token, options={"verify_signature": False, "verify_exp": False})["iat"] == int(until.timestamp()) + 1
    )
    assert harness.services.tokens.revocations.reason_against("known", "j", harness.clock()) is None
    post(ours)
    assert len(pauses) == 1


def test_few_wait_at_once_and_others_come_again(
    harness: Harness, ours: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with harness.app.app_context():
        harness.store.revoke_tokens("known")
    statuses: list[int] = []

    def pause(_seconds: float) -> None:
        # Another request of the same client comes meanwhile, and so on.
        if len(statuses) < MOST_DELAYED + 1:
            statuses.append(0)
            statuses[0] = post(harness.app.test_client()).status_code
        harness.clock.advance(seconds=1)

    monkeypatch.setattr(harness.services.oauth.server, "_pause", pause)
    assert post(ours).status_code == 200
    assert len(statuses) == MOST_DELAYED
    assert post(ours).status_code == 200


def test_a_second_that_never_ends_is_worth_a_retry(
    harness: Harness, ours: FlaskClient, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with harness.app.app_context():
        harness.store.revoke_tokens("known")
    harness.clock.advance(seconds=-60)
    answer = post(ours)
    assert (answer.status_code, answer.headers["Retry-After"], pauses) == (503, "1", [])
    harness.clock.advance(seconds=60)
    monkeypatch.setattr(harness.services.oauth.server, "_pause", lambda _seconds: None)
    assert post(ours).status_code == 503


def test_the_token_path_asks_one_question_whatever_was_taken_back(harness: Harness, ours: FlaskClient) -> None:
    post(ours)
    with statements(harness) as seen:
        assert post(ours).status_code == 200
    assert len(seen) == 1


@pytest.fixture
def emitted(harness: Harness) -> list[Event]:
    """The events of all requests."""
    seen: list[Event] = []
    harness.services.audit.events.subscribe(seen.append)
    return seen


def test_an_issued_token_is_in_the_log_with_all_that_it_is(
    harness: Harness, ours: FlaskClient, emitted: list[Event]
) -> None:
    harness.register("bare", secret=SECRET)
    token = granted(post(ours))
    bare = granted(post(ours, headers=basic(f"bare:{SECRET}")))
    assert "scope" not in bare
    first, second = (event for event in emitted if isinstance(event, TokenIssued))
    jti = jwt.decode(token["access_token"], options={"verify_signature": False, "verify_exp": False})["jti"]
    assert (first.client_id, first.scope, first.jti, first.expires_in) == ("known", "read write", jti, 3600)
    assert (first.auth_method, first.grant_type) == ("client_secret_basic", "client_credentials")
    assert first.audience == (harness.settings.default_audience,)
    assert (second.client_id, second.scope) == ("bare", "")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"grant_type": "password"}, ("unsupported_grant_type", "unknown_grant_type", None)),
        ({**GRANT, "scope": "admin"}, ("invalid_scope", "scope_not_granted", "client_credentials")),
        ({"scope": "read"}, ("invalid_request", "missing_parameter", None)),
    ],
)
def test_a_refused_token_is_in_the_log_with_what_was_asked_for(
    ours: FlaskClient, emitted: list[Event], form: dict[str, str], told: tuple[str, str, str | None]
) -> None:
    post(ours, form)
    (event,) = emitted
    assert isinstance(event, TokenRefused)
    assert (event.error, event.reason, event.grant_type) == told
    is_known = told[0] == "invalid_scope"
    assert event.client_id == ("known" if is_known else None)
    assert event.auth_method == ("client_secret_basic" if is_known else None)


def test_a_request_that_cannot_be_parsed_is_in_the_log_without_what_it_asked_for(
    ours: FlaskClient, emitted: list[Event]
) -> None:
    ours.post("/oauth/token", data=b"x", headers={**KNOWN, "Content-Type": "text/plain"})
    post(ours, headers=basic(f"known:{SECRET}x"))
    unparsed, wrong = emitted
    assert isinstance(unparsed, TokenRefused)
    assert isinstance(wrong, TokenRefused)
    assert (unparsed.reason, unparsed.auth_method, unparsed.grant_type) == ("not_a_form", None, None)
    assert unparsed.detail == "The content type must be application/x-www-form-urlencoded."
    # The sentence that every caller reads is no detail.
    assert (wrong.reason, wrong.detail, wrong.client_id, wrong.status) == ("wrong_secret", None, "known", 401)
    assert (wrong.auth_method, wrong.grant_type) == ("client_secret_basic", "client_credentials")


def test_a_request_refused_elsewhere_names_its_endpoint(ours: FlaskClient, emitted: list[Event]) -> None:
    post(ours, {"x": "y"}, url="https://localhost/oauth/introspect")
    post(ours, {"token": "x"}, url="https://localhost/oauth/introspect")
    refused_one, answered = emitted
    assert isinstance(refused_one, RequestRefused)
    assert (refused_one.endpoint, refused_one.reason) == ("introspection", "missing_parameter")
    assert type(answered).__name__ == "TokenIntrospected"


def test_a_refusal_too_announces_that_the_secret_expires(harness: Harness) -> None:
    caller = harness.app.test_client()
    for name, days in (("soon", 30), ("later", 31)):
        harness.register(name, secret=SECRET, scope=("read",), expires_after=timedelta(days=days))
    announced = {
        (name, scope): EXPIRY_HEADER in post(caller, {**GRANT, "scope": scope}, basic(f"{name}:{SECRET}")).headers
        for name in ("soon", "later")
        for scope in ("read", "admin")
    }
    assert announced == {
        ("soon", "read"): True,
        ("soon", "admin"): True,
        ("later", "read"): False,
        ("later", "admin"): False,
    }


def test_a_generator_gets_what_authlib_gives_it_and_may_be_of_one_grant(harness: Harness) -> None:
    server, seen = harness.services.oauth.server, []

    def generate(**facts: Any) -> Any:
        seen.append(facts)
        return "a token"

    server.register_token_generator("another", generate)
    assert server.generate_token("another", 1, user=2, scope="s", expires_in=3, audiences=("a",)) == "a token"
    server.generate_token("another", 1, include_refresh_token=True)
    common = {"grant_type": "another", "client": 1}
    assert seen == [
        {**common, "user": 2, "scope": "s", "expires_in": 3, "include_refresh_token": False, "audiences": ("a",)},
        {**common, "user": None, "scope": None, "expires_in": None, "include_refresh_token": True},
    ]


@pytest.mark.parametrize(
    ("passed_seconds", "waited"),
    [(-1.5, []), (-1, [2.0]), (0, [1.0]), (0.5, [0.5]), (1, []), (1.5, [])],
)
def test_a_token_waits_for_two_seconds_at_most_and_only_when_it_must(
    harness: Harness, ours: FlaskClient, pauses: list[float], passed_seconds: float, waited: list[float]
) -> None:
    with harness.app.app_context():
        harness.store.revoke_tokens("known")
    harness.clock.advance(seconds=passed_seconds)
    assert post(ours).status_code == (503 if passed_seconds < -1 else 200)
    assert pauses == [pytest.approx(one + DELAY_MARGIN_SECONDS) for one in waited]


@pytest.mark.parametrize("signal", ["after_authenticate_client", "after_revoke_token"])
def test_a_signal_passes_on_what_it_is_given(harness: Harness, signal: str) -> None:
    server, received = harness.services.oauth.server, []

    def receive(sender: Any, **facts: Any) -> None:
        received.append((sender, facts))

    known = {"after_authenticate_client": client_authenticated, "after_revoke_token": token_revoked}
    with known[signal].connected_to(receive):
        server.send_signal(signal, client=1, grant=2)
        server.send_signal("unknown", client=1)
    assert received == [(server, {"client": 1, "grant": 2})]


@pytest.mark.parametrize("hook", ["create_oauth2_request", "generate_token"])
def test_a_fault_of_ours_is_a_500_with_its_traceback_in_the_log(
    ours: FlaskClient,
    emitted: list[Event],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hook: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("this must not be read by a caller")

    monkeypatch.setattr(ours.application.extensions["tokenhouse"].oauth.server, hook, fail)
    answer = post(ours)
    assert refused(answer, 500)[0] == "server_error"
    assert "caller" not in answer.text
    (event,) = emitted
    assert isinstance(event, TokenRefused)
    is_parsed = hook == "generate_token"
    assert (event.reason, event.grant_type) == (
        "unexpected_LookupError",
        "client_credentials" if is_parsed else None,
    )
    (record,) = [record for record in caplog.records if record.exc_info]
    request_id = answer.headers["X-Request-ID"]
    assert record.getMessage() == f"a request failed, request_id={request_id} endpoint=token"
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


def test_a_fault_at_another_endpoint_names_it(
    harness: Harness, ours: FlaskClient, emitted: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.services.oauth.server, "create_oauth2_request", lambda *_: 1 / 0)
    assert refused(post(ours, url="https://localhost/oauth/revoke"), 500)[0] == "server_error"
    (event,) = emitted
    assert isinstance(event, RequestRefused)
    assert (event.endpoint, event.reason, event.status) == ("revocation", "unexpected_ZeroDivisionError", 500)


def test_a_parameter_that_an_endpoint_reads_may_not_be_in_its_url(ours: FlaskClient) -> None:
    """Each endpoint has its own."""
    for endpoint, name, status in (("token", "token", 200), ("introspect", "token", 400), ("revoke", "scope", 200)):
        data = GRANT if endpoint == "token" else {"token": "x"}
        assert post(ours, data, url=f"https://localhost/oauth/{endpoint}?{name}=x").status_code == status, endpoint


def test_a_document_is_sent_as_it_is_and_says_itself_whether_it_may_be_kept(harness: Harness) -> None:
    server = harness.services.oauth.server
    sent = server.handle_response(201, Document(b"a document", "application/x"), [("Cache-Control", "max-age=5")])
    assert (sent.status_code, sent.data, sent.content_type) == (201, b"a document", "application/x")
    assert sent.headers.getlist("Cache-Control") == ["max-age=5"]
    answer = server.handle_response(200, {"a": 1}, [("X", "y")])
    assert (answer.data, answer.headers["X"], answer.headers["Cache-Control"]) == (b'{"a":1}', "y", "no-store")


def test_when_a_secret_expires_is_an_http_date(harness: Harness) -> None:
    harness.register("soon", secret=SECRET, expires_after=timedelta(days=2))
    answer = post(harness.app.test_client(), headers=basic(f"soon:{SECRET}"))
    assert answer.headers[EXPIRY_HEADER] == "Mon, 02 Feb 2026 12:00:00 GMT"
