"""Whatever a caller sends is one exact answer and one exact audit line: issue 2, lines 3 and 4, above HTTP framing."""

import base64
import gzip
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import pytest
from conformance.expected import (
    ANY_REPEATED,
    BODY_TOO_LONG,
    GRANT,
    INVALID_CLIENT,
    MALFORMED,
    MALFORMED_FORM,
    MALFORMED_SCOPE,
    NOT_A_FORM,
    OTHER_CLIENT_ID,
    SEVERAL_AUTHENTICATIONS,
    UNAUTHORIZED_CLIENT,
    UNSUPPORTED_GRANT,
    Granted,
    Refusal,
    assert_answer,
    assert_refused,
    in_query,
    missing,
    repeated,
    scope_not_granted,
    target_not_granted,
)
from support.server import NewClient, RunningServer, basic

BODY_LIMIT = 16 * 1024
GRANT_BYTES = GRANT.encode()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(scope=("read", "write"))


def authorization(client: NewClient) -> bytes:
    return b"Authorization: " + client.basic.encode()


@pytest.mark.parametrize(
    ("content_type", "answer"),
    [
        ("application/x-www-form-urlencoded", Granted()),
        ("application/x-www-form-urlencoded;charset=UTF-8", Granted()),
        ("application/x-www-form-urlencoded; charset=utf-8", Granted()),
        ("application/x-www-form-urlencoded ; Charset=Utf-8", Granted()),
        ('application/x-www-form-urlencoded;charset="UTF-8"', Granted()),
        ("application/x-www-form-urlencoded;", Granted()),
        ("Application/X-WWW-Form-URLEncoded", Granted()),
        ("application/json", NOT_A_FORM),
        ("multipart/form-data; boundary=x", NOT_A_FORM),
        ("text/plain", NOT_A_FORM),
        ("application/x-www-form-urlencoded-not", NOT_A_FORM),
        ("application/x-www-form-urlencoded, application/x-www-form-urlencoded", NOT_A_FORM),
        ("application/*", NOT_A_FORM),
        ("*/*", NOT_A_FORM),
        (";charset=utf-8", NOT_A_FORM),
        ("", NOT_A_FORM),
    ],
)
def test_only_a_form_is_read_with_or_without_a_charset(
    server: RunningServer, client: NewClient, content_type: str, answer: Granted | Refusal
) -> None:
    response = server.post_token(GRANT, headers={"Authorization": client.basic, "Content-Type": content_type})
    assert_answer(response, answer)
    if answer == NOT_A_FORM:
        assert server.event_of(response)["reason"] == "not_a_form"


def test_a_body_without_content_type_is_refused(server: RunningServer, client: NewClient) -> None:
    head = b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n\r\n"
    (answer,) = server.send(head % (len(GRANT_BYTES), authorization(client)) + GRANT_BYTES)
    assert_refused(answer, NOT_A_FORM)


def test_two_content_types_are_refused(server: RunningServer, client: NewClient) -> None:
    answer = server.send_form(
        GRANT_BYTES, authorization(client), b"Content-Type: application/x-www-form-urlencoded; charset=utf-8"
    )
    assert_refused(answer, MALFORMED)


def test_json_and_multipart_bodies_are_refused_whatever_they_say(server: RunningServer, client: NewClient) -> None:
    headers = {"Authorization": client.basic, "Content-Type": "application/json"}
    assert_refused(server.post_token('{"grant_type": "client_credentials"}', headers=headers), NOT_A_FORM)
    part = '--x\r\nContent-Disposition: form-data; name="grant_type"\r\n\r\nclient_credentials\r\n--x--\r\n'
    headers["Content-Type"] = "multipart/form-data; boundary=x"
    assert_refused(server.post_token(part, headers=headers), NOT_A_FORM)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x-gzip", "identity, gzip", "gzip, identity", "garbage"])
def test_an_encoded_body_is_refused(server: RunningServer, client: NewClient, coding: str) -> None:
    headers = {"Authorization": client.basic, "Content-Encoding": coding}
    for body in (gzip.compress(GRANT_BYTES), GRANT_BYTES):
        assert_refused(server.post_token(body, headers=headers), NOT_A_FORM)


def test_an_identity_coding_is_none(server: RunningServer, client: NewClient) -> None:
    headers = {"Authorization": client.basic, "Content-Encoding": "Identity"}
    assert_answer(server.post_token(GRANT, headers=headers), Granted())


class Form(NamedTuple):
    name: str
    body: bytes
    answer: Granted | Refusal


FORMS = [
    Form("a raw blank", GRANT_BYTES + b"&scope=read write", Granted()),
    Form("a lone &", b"&" + GRANT_BYTES, Granted()),
    Form("many &", b"&&" + GRANT_BYTES + b"&&&", Granted()),
    Form("a lone =", GRANT_BYTES + b"&=", Granted()),
    Form("a nameless value", GRANT_BYTES + b"&=x", Granted()),
    Form("only &", b"&", missing("grant_type")),
    Form("only =", b"=", missing("grant_type")),
    Form("a value with =", GRANT_BYTES + b"&x=a=b", Granted()),
    Form("a scope with =", GRANT_BYTES + b"&scope=a=b", scope_not_granted("a=b")),
    Form("a semicolon separates nothing", GRANT_BYTES + b";scope=read", UNSUPPORTED_GRANT),
    Form("a lone % in an ignored value", GRANT_BYTES + b"&x=%", Granted()),
    Form("%zz in an ignored value", GRANT_BYTES + b"&x=%zz&%zz=x", Granted()),
    Form("a lone % in the scope", GRANT_BYTES + b"&scope=%", scope_not_granted("%")),
    Form("%z in the scope", GRANT_BYTES + b"&scope=%z", scope_not_granted("%z")),
    Form("%00 in an ignored value", GRANT_BYTES + b"&x=%00", Granted()),
    Form("%00 in the scope", GRANT_BYTES + b"&scope=read%00", MALFORMED_SCOPE),
    Form("%00 in the grant type", GRANT_BYTES + b"%00", UNSUPPORTED_GRANT),
    Form("%00 in a name", b"grant_type%00=client_credentials", missing("grant_type")),
    Form("%00 in the client_id", GRANT_BYTES + b"&client_id=%00", OTHER_CLIENT_ID),
    Form("a raw NUL", GRANT_BYTES + b"&scope=\0", MALFORMED_SCOPE),
    Form("a raw NUL after the grant type", GRANT_BYTES + b"\0", UNSUPPORTED_GRANT),
    Form("a newline after the body", GRANT_BYTES + b"\n", UNSUPPORTED_GRANT),
    Form("CR LF after the body", GRANT_BYTES + b"\r\n", UNSUPPORTED_GRANT),
    Form("a blank before the name", b" " + GRANT_BYTES, missing("grant_type")),
    Form("a byte order mark", b"\xef\xbb\xbf" + GRANT_BYTES, missing("grant_type")),
    Form("a question mark before", b"?" + GRANT_BYTES, missing("grant_type")),
    Form("control characters in the scope", GRANT_BYTES + b"&scope=\x01\x1b", MALFORMED_SCOPE),
    Form("raw UTF-8", GRANT_BYTES + "&x=é€".encode(), Granted()),
    Form("raw bytes that are not UTF-8", GRANT_BYTES + b"&x=\xff", MALFORMED_FORM),
    Form("encoded bytes that are not UTF-8", GRANT_BYTES + b"&x=%ff", MALFORMED_FORM),
    Form("a name that is not UTF-8", GRANT_BYTES + b"&%ff=x", MALFORMED_FORM),
    Form("UTF-16", GRANT.encode("utf-16"), MALFORMED_FORM),
    Form("a cut UTF-8 sequence", GRANT_BYTES + b"&x=\xe2\x82", MALFORMED_FORM),
    Form("100 parameters", GRANT_BYTES + b"".join(b"&x%d=1" % n for n in range(99)), Granted()),
    Form("101 parameters", GRANT_BYTES + b"".join(b"&x%d=1" % n for n in range(100)), MALFORMED_FORM),
    Form("101 empty parameters", GRANT_BYTES + b"&" * 100, MALFORMED_FORM),
    Form("deep brackets", GRANT_BYTES + b"&x" + b"[a]" * 4000 + b"=1", Granted()),
    Form("deep JSON in a value", GRANT_BYTES + b"&x=" + b"[" * 15000, Granted()),
    Form("a scope of 16,000 characters", GRANT_BYTES + b"&scope=" + b"x" * 16000, scope_not_granted(f"{'x' * 100}...")),
    Form("a scope of 8,000 tokens", GRANT_BYTES + b"&scope=" + b"+".join([b"x"] * 8000), scope_not_granted("x")),
    Form("as long as allowed", GRANT_BYTES + b"&x=" + b"x" * (BODY_LIMIT - len(GRANT) - 3), Granted()),
    Form("one byte longer", GRANT_BYTES + b"&x=" + b"x" * (BODY_LIMIT - len(GRANT) - 2), BODY_TOO_LONG),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_read_in_one_way_or_refused(server: RunningServer, client: NewClient, form: Form) -> None:
    assert_answer(server.send_form(form.body, authorization(client)), form.answer)


@pytest.mark.parametrize(
    "value",
    [b"\0", b"Basic \0", b"Basic a\x01b", b"Basic a\x7fb", b"\x1b[31m"],
    ids=["NUL", "NUL in Basic", "control character", "DEL", "terminal escape"],
)
def test_control_characters_in_the_authorization_header_are_refused(server: RunningServer, value: bytes) -> None:
    answer = server.send_form(GRANT_BYTES, b"Authorization: " + value)
    assert_refused(answer, MALFORMED if answer.status_code == 400 else INVALID_CLIENT)


def test_bytes_that_are_not_utf_8_in_other_headers_are_ignored(server: RunningServer, client: NewClient) -> None:
    lines = [b"Accept: \xff\xfe", b"User-Agent: \xe9", b"Cookie: \xff=\xff", b"X-Anything: \x80\xff", b"Referer: \xc3("]
    assert_answer(server.send_form(GRANT_BYTES, authorization(client), *lines), Granted())


@pytest.mark.parametrize("query", [b"%FF", b"%ff=%fe", b"x=%zz", b"&&&==", b"scope%00=read", b"?" * 100])
def test_a_strange_query_string_is_ignored(server: RunningServer, client: NewClient, query: bytes) -> None:
    answer = server.send_form(GRANT_BYTES, authorization(client), target=b"/oauth/token?" + query)
    assert_answer(answer, Granted())


def test_raw_bytes_in_the_target_are_refused(server: RunningServer, client: NewClient) -> None:
    assert_refused(server.send_form(GRANT_BYTES, authorization(client), target=b"/oauth/token?\xff"), MALFORMED)


@pytest.mark.parametrize(
    ("client_id", "secret"),
    [
        ("percent%41id", "percent%41secret%20abc"),
        ("percent%zz", "lone percent % and %z abc"),
        ("plus+id", "plus+secret+0123456789"),
        ("blank id", "blank secret 0123456789"),
        ("slash/id", "slash/secret/0123456789"),
        ("a&b=c;d,e?f#g", "a&b=c;d,e?f#g 0123456789"),
        ("%E9-latin", "plain-0123456789"),
        ("quo\"te\\'", "quo\"te\\'-0123456789"),
        (" leading and trailing ", " leading and trailing "),
    ],
)
def test_every_reading_of_an_odd_id_and_secret_works(server: RunningServer, client_id: str, secret: str) -> None:
    server.create_client(client_id=client_id, secret=secret, scope=("read", "write"))
    whole = "".join(f"%{ord(character):02x}" for character in secret)
    encoded_id = "".join(f"%{ord(character):02X}" for character in client_id)
    assert_answer(server.post_token(GRANT, headers={"Authorization": basic(client_id, secret)}), Granted())
    assert_answer(server.post_token(GRANT, headers={"Authorization": basic(encoded_id, whole)}), Granted())
    body = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    assert_answer(server.post_token(body), Granted())
    assert_answer(server.post_token(f"{GRANT}&client_id={encoded_id}&client_secret={whole}"), Granted())
    if unquote_plus(client_id) != client_id and "%E9" not in client_id:
        mixed = server.post_token(GRANT, headers={"Authorization": basic(client_id, whole)})
        assert_refused(mixed, INVALID_CLIENT)


def test_a_body_id_beside_basic_may_be_any_reading_of_the_same_id_and_no_other(server: RunningServer) -> None:
    secret = "some secret that is long"
    server.create_client(client_id="two readings+", secret=secret, scope=("read", "write"))
    in_basic = {"Authorization": basic("two+readings%2B", "some+secret+that+is+long")}
    assert_answer(server.post_token(f"{GRANT}&client_id=two+readings%2B", headers=in_basic), Granted())
    as_sent = server.post_token(f"{GRANT}&client_id=two%2Breadings%252B", headers=in_basic)
    assert_refused(as_sent, OTHER_CLIENT_ID)


class Told(NamedTuple):
    """A request and all that its audit line says of the refusal."""

    reason: str
    body: str
    answer: Refusal
    names_the_client: bool = False
    detail: str | None = None
    authorization: str | None = "right"
    query: str = ""
    fields: dict[str, Any] = {}  # noqa: RUF012 - Read only.


SCOPES = {"scope": ("read",)}

TOLD = [
    Told("missing_parameter", "", missing("grant_type"), detail="The parameter grant_type is missing."),
    Told(
        "missing_parameter",
        f"{GRANT}&client_secret=x",
        missing("client_id"),
        detail="The parameter client_id is missing.",
        authorization=None,
    ),
    Told(
        "repeated_parameter",
        f"{GRANT}&scope=a&scope=b",
        repeated("scope"),
        detail="The parameter scope is repeated.",
    ),
    Told("repeated_parameter", f"{GRANT}&ths_x=a&ths_x=b", ANY_REPEATED, detail="A parameter is repeated."),
    Told(
        "query_parameter",
        GRANT,
        in_query("client_secret"),
        detail="The parameter client_secret must be in the body, not in the URL.",
        query="client_secret=x",
    ),
    Told("malformed_form", f"{GRANT}&x=%FF", MALFORMED_FORM, detail="The body must be a form in UTF-8."),
    Told(
        "several_authentications",
        f"{GRANT}&client_secret=x",
        SEVERAL_AUTHENTICATIONS,
        detail="The request must authenticate the client exactly once.",
    ),
    Told(
        "repeated_authorization",
        GRANT,
        SEVERAL_AUTHENTICATIONS,
        detail="The request must authenticate the client exactly once.",
        authorization="Basic YTpi, Basic YTpi",
    ),
    Told(
        "other_client_id",
        f"{GRANT}&client_id=other",
        OTHER_CLIENT_ID,
        detail="The client_id in the body is not the one that authenticates.",
    ),
    Told("no_authentication", GRANT, INVALID_CLIENT, authorization=None),
    Told("unsupported_scheme", GRANT, INVALID_CLIENT, authorization="Bearer x"),
    Told("malformed_credentials", GRANT, INVALID_CLIENT, authorization="Basic !"),
    Told("malformed_credentials", f"{GRANT}&client_id=%00&client_secret=x", INVALID_CLIENT, authorization=None),
    Told("unknown_client", GRANT, INVALID_CLIENT, authorization=basic("ths_pasted-into-the-wrong-field", "x")),
    Told("unknown_client", f"{GRANT}&client_id=ths_pasted&client_secret=x", INVALID_CLIENT, authorization=None),
    Told("wrong_secret", GRANT, INVALID_CLIENT, names_the_client=True, authorization="wrong"),
    Told(
        "expired_secret",
        GRANT,
        INVALID_CLIENT,
        names_the_client=True,
        fields={"secret_expires_after": timedelta(seconds=-1)},
    ),
    Told(
        "other_method_registered",
        GRANT,
        INVALID_CLIENT,
        names_the_client=True,
        fields={"token_endpoint_auth_method": "client_secret_post"},
    ),
    Told("unknown_grant_type", "grant_type=password", UNSUPPORTED_GRANT),
    Told("grant_not_allowed", GRANT, UNAUTHORIZED_CLIENT, names_the_client=True, fields={"grant_types": ()}),
    Told("malformed_scope", f"{GRANT}&scope=%22", MALFORMED_SCOPE, names_the_client=True),
    Told(
        "scope_not_granted",
        f"{GRANT}&scope=read+admin",
        scope_not_granted("admin"),
        names_the_client=True,
        detail="The client was not granted: admin",
        fields=SCOPES,
    ),
    Told(
        "resource_not_granted",
        f"{GRANT}&resource=https://ths_x.example",
        target_not_granted("https://ths_x.example"),
        names_the_client=True,
        detail="The client was not granted: https://ths_x.example",
    ),
]


@pytest.mark.parametrize("told", TOLD, ids=lambda told: f"{told.reason} {told.body.removeprefix(GRANT)}")
def test_the_audit_line_of_a_refusal_is_exactly_this(server: RunningServer, told: Told) -> None:
    client = server.create_client(**told.fields)
    named = {"right": client.basic, "wrong": basic(client.client_id, "a wrong secret")}
    value = named.get(told.authorization or "", told.authorization)
    response = server.post_token(told.body, headers={"Authorization": value} if value else None, params=told.query)
    assert_refused(response, told.answer)
    event = server.event_of(response)
    assert event.pop("time")
    assert event.pop("duration_ms") > 0
    status, body = told.answer
    assert event == {
        "server": server.settings.server_name,
        "event": "TokenRefused",
        "request_id": response.headers["X-Request-ID"],
        "source_address": "127.0.0.1",
        **({"client_id": client.client_id} if told.names_the_client else {}),
        "error": body["error"],
        "status": status,
        "reason": told.reason,
        **({"detail": told.detail} if told.detail else {}),
        **asked_for(told),
        "outcome": "refused",
    }


UNREAD = {"repeated_parameter", "query_parameter", "malformed_form", "repeated_authorization", "unknown_grant_type"}
"""What is wrong with a request that is not read so far, or asks for nothing of ours."""


def asked_for(told: Told) -> dict[str, str]:
    """What was known of the request: its grant, then how it authenticates."""
    if not told.body or told.reason in UNREAD:
        return {}
    grant = {"grant_type": "client_credentials"}
    if told.reason in {"no_authentication", "several_authentications"}:
        return grant
    return grant | {"auth_method": "client_secret_basic" if told.authorization else "client_secret_post"}


@pytest.mark.parametrize("state", ["disabled", "deleted"])
def test_the_audit_line_names_a_client_that_was_disabled_or_deleted(server: RunningServer, state: str) -> None:
    client = server.create_client()
    with server.context():
        getattr(server.services.clients.repository, state.removesuffix("d"))(client.client_id)
    event = server.event_of(server.post_token(headers={"Authorization": client.basic}))
    assert (event["client_id"], event["reason"]) == (client.client_id, f"{state}_client")


def test_what_an_unknown_caller_writes_is_in_no_audit_line(server: RunningServer) -> None:
    pasted = "ths_1-secret-that-somebody-pasted"
    payload = base64.b64encode(f"{pasted}:{pasted}".encode()).decode()
    server.post_token(f"{GRANT}&{pasted}={pasted}&{pasted}={pasted}")
    server.post_token(f"grant_type={pasted}", params={pasted: pasted, "scope": pasted})
    server.post_token(f"{GRANT}&client_id={pasted}&client_secret={pasted}&scope={pasted}&resource={pasted}")
    server.post_token(
        GRANT, headers={"Authorization": f"Basic {payload}", "User-Agent": pasted, "X-Request-ID": pasted}
    )
    server.post_token(GRANT, headers={"Authorization": pasted})
    assert pasted not in server.stdout_path.read_text()
    assert pasted not in server.stderr_path.read_text()
