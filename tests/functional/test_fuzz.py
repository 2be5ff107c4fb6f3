"""Hypothesis throws what a caller can send at the real server: never a 5xx, always our JSON or a token."""

import base64
import json
import re
import string
from typing import Any
from urllib.parse import quote_from_bytes, quote_plus, unquote

import pytest
import requests
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from support.server import Answer, NewClient, RunningServer

DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")
ERROR_CODES = {
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "method_not_allowed",
    "not_found",
}
AUTHENTICATION = ["client_id", "client_secret", "client_assertion", "client_assertion_type"]
PARAMETERS = ["grant_type", "scope", "resource", *AUTHENTICATION]
CONSTANT_DESCRIPTIONS = {
    "The body must be a form in UTF-8.",
    "A parameter is repeated.",
    *(f"The parameter {name} is repeated." for name in (*PARAMETERS[:2], *AUTHENTICATION)),
    *(f"The parameter {name} is missing." for name in ("grant_type", *AUTHENTICATION)),
    "The grant type is not supported by this server.",
    "Client authentication failed.",
    "The request must authenticate the client exactly once.",
}
PUBLIC = {
    "/livez",
    "/readyz",
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
}

on_the_wire = settings(
    max_examples=300,
    # The time of an exchange with a real server says nothing about the example.
    deadline=None,
    # The fixtures are a server and a client, which no example changes.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # A checkout stays clean; a failure prints its example.
    database=None,
)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(scope=("read", "write"), audiences=("https://a.example",))


def assert_sound(answer: Answer, method: str = "POST") -> None:
    """Ours in every respect: a token, or one of our errors, with the headers that every answer has."""
    event(str(answer.status_code))
    # RFC 9112 section 6.1: 501 is for a transfer coding that is not known. No other 5xx is a caller's doing.
    assert answer.status_code < 500 or answer.status_code in {501, 505}, answer
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "tokenhouse"
    if method == "HEAD":
        assert answer.content == b""
    elif answer.status_code == 200:
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json()
    else:
        assert answer.headers["Content-Type"] == "application/json"
        assert_sound_error(answer.status_code, answer.json())


def assert_sound_error(status: int, body: dict[str, Any]) -> None:
    assert list(body) == ["error", "error_description"]
    assert body["error"] in ERROR_CODES
    assert DESCRIPTION.fullmatch(body["error_description"])
    assert (status == 401) == (body["error"] == "invalid_client")


def assert_token(answer: Answer) -> None:
    assert list(answer.json()) == ["access_token", "token_type", "expires_in", "scope"]


def answer_to(server: RunningServer, body: bytes, *lines: bytes) -> Answer:
    answer = server.send_form(body, *lines)
    assert_sound(answer)
    if answer.status_code == 200:
        assert_token(answer)
    return answer


def header(name: bytes, value: bytes) -> bytes:
    return name + b": " + value


# What may stand in a header line: all but what ends the line. NUL is among it.
line_bytes = st.binary(max_size=200).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
visible_ascii = st.text(string.printable.strip(), max_size=60)


@on_the_wire
@given(body=st.binary(max_size=600), authenticated=st.booleans())
@example(body=b"grant_type=client_credentials", authenticated=True)
@example(body=b"grant_type=client_credentials&scope=%00", authenticated=True)
def test_arbitrary_bytes_as_body(server: RunningServer, client: NewClient, body: bytes, *, authenticated: bool) -> None:
    lines = [header(b"Authorization", client.basic.encode())] if authenticated else []
    answer_to(server, body, *lines)


pieces = st.one_of(
    st.sampled_from(
        [b"grant_type=client_credentials", b"scope=", b"read", b"&", b"=", b"%", b"+", b" ", b"%00", b"%ff"]
    ),
    st.sampled_from([b"client_id=", b"client_secret=", b"resource=https://a.example", b";", b"\0", b"\xff", b"\r\n"]),
    st.binary(max_size=8),
)


@on_the_wire
@given(body=st.lists(pieces, max_size=16).map(lambda parts: b"grant_type=client_credentials&" + b"".join(parts)))
def test_pieces_of_forms_as_body(server: RunningServer, client: NewClient, body: bytes) -> None:
    answer_to(server, body, header(b"Authorization", client.basic.encode()))


names = st.one_of(st.sampled_from(PARAMETERS), st.text(max_size=10))
values = st.one_of(
    st.sampled_from(["client_credentials", "read", "write", "read write", "https://a.example", ""]),
    st.text(max_size=40),
    visible_ascii,
)


@on_the_wire
@given(parameters=st.lists(st.tuples(names, values), max_size=8), authenticated=st.booleans(), with_grant=st.booleans())
def test_arbitrary_form_parameters(
    server: RunningServer,
    client: NewClient,
    parameters: list[tuple[str, str]],
    *,
    authenticated: bool,
    with_grant: bool,
) -> None:
    pairs = [*([("grant_type", "client_credentials")] if with_grant else []), *parameters]
    encoded = (
        (quote_plus(name, errors="surrogatepass"), quote_plus(value, errors="surrogatepass")) for name, value in pairs
    )
    body = "&".join(f"{name}={value}" for name, value in encoded).encode()
    lines = [header(b"Authorization", client.basic.encode())] if authenticated else []
    answer = answer_to(server, body, *lines)
    if not authenticated and answer.status_code != 200:
        assert answer.json()["error_description"] in CONSTANT_DESCRIPTIONS


@on_the_wire
@given(
    scope=st.one_of(
        st.text(max_size=60),
        visible_ascii,
        st.lists(st.sampled_from(["read", "write", " ", "Read", "x"]), max_size=8).map("".join),
        st.lists(st.sampled_from(["read", "write"]), max_size=4).map(" ".join),
    )
)
def test_an_arbitrary_scope_is_granted_whole_or_refused(server: RunningServer, client: NewClient, scope: str) -> None:
    body = f"grant_type=client_credentials&scope={quote_plus(scope, errors='surrogatepass')}".encode()
    answer = answer_to(server, body, header(b"Authorization", client.basic.encode()))
    if answer.status_code == 200:
        asked = list(dict.fromkeys(scope.split())) or ["read", "write"]
        assert answer.json()["scope"].split(" ") == asked
    elif not any("\ud800" <= character <= "\udfff" for character in scope):
        assert answer.json()["error"] == "invalid_scope"


@on_the_wire
@given(
    payload=st.one_of(
        st.binary(max_size=120),
        st.tuples(st.binary(max_size=40), st.binary(max_size=40)).map(b":".join),
        st.tuples(st.text(max_size=20), st.text(max_size=20)).map(
            lambda two: ":".join(two).encode(errors="surrogatepass")
        ),
        st.tuples(st.binary(max_size=20), st.binary(max_size=20)).map(
            lambda two: b":".join(quote_from_bytes(part).encode() for part in two)
        ),
    ),
    scheme=st.sampled_from([b"Basic ", b"basic ", b"BASIC  ", b"Basic", b"Bearer ", b""]),
    encode=st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.b32encode, base64.b85encode]),
)
def test_arbitrary_basic_payloads(server: RunningServer, payload: bytes, scheme: bytes, encode: Any) -> None:
    answer = answer_to(server, b"grant_type=client_credentials", header(b"Authorization", scheme + encode(payload)))
    assert answer.status_code in {400, 401}


@on_the_wire
@given(value=line_bytes)
def test_arbitrary_authorization_values(server: RunningServer, value: bytes) -> None:
    answer = answer_to(server, b"grant_type=client_credentials", header(b"Authorization", value))
    assert answer.status_code in {400, 401}


HEADERS = [
    *(b"Accept", b"Accept-Charset", b"Accept-Encoding", b"Accept-Language", b"Cache-Control", b"Connection", b"Cookie"),
    *(
        b"Content-Encoding",
        b"Content-Type",
        b"Date",
        b"Expect",
        b"Forwarded",
        b"From",
        b"Host",
        b"If-Match",
        b"If-Range",
    ),
    *(
        b"If-None-Match",
        b"If-Modified-Since",
        b"Origin",
        b"Pragma",
        b"Range",
        b"Referer",
        b"TE",
        b"Trailer",
        b"Upgrade",
    ),
    *(b"User-Agent", b"Via", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Forwarded-Prefix"),
    *(
        b"X-HTTP-Method-Override",
        b"X-Request-ID",
        b"Traceparent",
        b"DPoP",
        b"Client-Cert",
        b"Script-Name",
        b"Path-Info",
    ),
]


@on_the_wire
@given(fields=st.lists(st.tuples(st.sampled_from(HEADERS), line_bytes), min_size=1, max_size=5))
def test_arbitrary_header_values(server: RunningServer, client: NewClient, fields: list[tuple[bytes, bytes]]) -> None:
    lines = [header(name, value) for name, value in fields]
    answer_to(server, b"grant_type=client_credentials", header(b"Authorization", client.basic.encode()), *lines)


@on_the_wire
@given(
    fields=st.lists(
        st.tuples(
            st.sampled_from([b"Content-Length", b"Transfer-Encoding", b"Expect", b"Content-Type", b"Connection"]),
            line_bytes,
        )
        | st.tuples(line_bytes, line_bytes),
        max_size=4,
    ),
    body=st.binary(max_size=60),
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b""]),
)
def test_arbitrary_framing(
    server: RunningServer, fields: list[tuple[bytes, bytes]], body: bytes, version: bytes
) -> None:
    head = b"".join(header(name, value) + b"\r\n" for name, value in fields)
    answers = server.send(b"POST /oauth/token " + version + b"\r\nHost: x\r\n" + head + b"\r\n" + body)
    assert answers
    for answer in answers:
        assert_sound(answer)


@on_the_wire
@given(raw=st.binary(min_size=1, max_size=300), end=st.sampled_from([b"", b"\r\n\r\n", b"\n\n"]))
@example(raw=b"HEAD ", end=b"")
@example(raw=b"HEAD ", end=b"\r\n\r\n")
@example(raw=b"\r\nHEAD /", end=b"\n\n")
@example(raw=b"HEAD", end=b"")
def test_arbitrary_bytes_instead_of_a_request(server: RunningServer, raw: bytes, end: bytes) -> None:
    sent = raw + end
    # One line break before a request is skipped.
    method = "HEAD" if sent.removeprefix(b"\r\n").startswith(b"HEAD ") else "POST"
    for answer in server.send(sent, method):
        assert_sound(answer, method)


methods = st.one_of(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PRI"]),
    st.text(string.ascii_uppercase + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=20),
    st.text(string.ascii_letters, min_size=1, max_size=10),
)
segments = st.one_of(
    st.sampled_from(
        ["oauth", "token", "livez", "readyz", ".well-known", "jwks.json", "openid-configuration", "..", ".", ""]
    ),
    st.binary(max_size=12).map(quote_from_bytes),
    st.text(string.printable.strip(), max_size=12),
)
targets = st.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts))
queries = st.one_of(st.just(""), st.binary(max_size=30).map(lambda raw: f"?{quote_from_bytes(raw)}"))


@on_the_wire
@given(method=methods, target=targets, query=queries)
def test_arbitrary_methods_and_paths(server: RunningServer, method: str, target: str, query: str) -> None:
    line = f"{method} {target}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    (answer,) = server.send(line.encode(), method)
    assert_sound(answer, method)
    if answer.status_code == 200:
        assert method in {"GET", "HEAD"}
        assert "/" + unquote(target).lstrip("/") in PUBLIC


@on_the_wire
@given(target=line_bytes.map(lambda raw: raw.replace(b" ", b"")))
def test_arbitrary_bytes_as_target(server: RunningServer, target: bytes) -> None:
    answers = server.send(
        b"POST /oauth" + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    assert len(answers) == 1
    assert_sound(answers[0])


def test_all_of_that_has_left_no_traceback(server: RunningServer) -> None:
    """Runs last in this module: whatever was sent above was a caller's fault and none of ours."""
    assert "Traceback" not in server.stderr_path.read_text()
    assert not [line for line in server.events() if line["event"] == "TokenRefused" and line["status"] >= 500]


about_tokens = st.one_of(
    st.sampled_from(
        [b"token=", b"token_type_hint=", b"client_id=", b"&", b"=", b".", b"eyJ", b"e30", b"%", b"+", b"%00"]
    ),
    st.binary(max_size=8),
)


@on_the_wire
@given(
    path=st.sampled_from([b"/oauth/introspect", b"/oauth/revoke"]),
    body=st.lists(about_tokens, max_size=16).map(b"".join),
    accept=st.sampled_from([b"", b"*/*", b"application/token-introspection+jwt;q=0.1"]) | line_bytes,
)
def test_pieces_of_forms_about_tokens(
    server: RunningServer, client: NewClient, path: bytes, body: bytes, accept: bytes
) -> None:
    lines = [header(b"Authorization", client.basic.encode()), header(b"Accept", accept)]
    answer = server.send_form(body, *lines, target=path)
    if answer.headers["Content-Type"] == "application/token-introspection+jwt":
        assert answer.content.count(b".") == 2
    elif answer.status_code == 200:
        assert answer.json() == ({"active": False} if path == b"/oauth/introspect" else {})
    else:
        assert answer.status_code == 400
        assert_sound_error(answer.status_code, answer.json())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
claims_of_any_kind = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope", "cnf"), json_values)
)
headers_of_any_kind = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("typ", "alg", "kid", "crit", "jwk"), json_values)
)


@on_the_wire
@given(shape=st.tuples(headers_of_any_kind, claims_of_any_kind, st.binary(max_size=300)), is_ours=st.booleans())
def test_tokens_of_any_shape_are_none(server: RunningServer, client: NewClient, shape: Any, *, is_ours: bool) -> None:
    head, claims, signature = shape
    if is_ours:
        head = {"typ": "at+jwt", "alg": "RS256", "kid": server.jwks()["keys"][0]["kid"]} | head
    parts = (json.dumps(head).encode(), json.dumps(claims).encode(), signature)
    token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    answer = requests.post(
        f"{server.url}/oauth/introspect", {"token": token}, headers={"Authorization": client.basic}, timeout=10
    )
    assert (answer.status_code, answer.json()) == (200, {"active": False})
