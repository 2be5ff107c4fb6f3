"""RFC 6749 section 2.3: how a client proves who it is. Clause, request, exact answer."""

import base64
from typing import NamedTuple

import pytest
from conformance.expected import (
    GRANT,
    INVALID_CLIENT,
    MALFORMED,
    OTHER_CLIENT_ID,
    SEVERAL_AUTHENTICATIONS,
    Granted,
    Refusal,
    assert_answer,
    in_query,
    missing,
)
from support.server import RunningServer

ID, SECRET = "s6BhdRkqt3", "gX1fBat3bV7Fjfp0ZBr1KtDRbnfVdmIw"
ODD_ID, ODD_SECRET = "team a+b/c%20d&e=f", "p+q %2B/=&:~ \\'\"(secret)"
LATIN_ID, LATIN_SECRET = "caf%E9", "secret-of-caf%C3%A9 %41"
LATIN_SECRET_ID, SECRET_LATIN = "two words", "caf%E9 has no UTF-8"
COLON_ID, COLON_SECRET = "urn:service:a", "a:secret:with:colons"

FORM_ID, FORM_SECRET = "team+a%2Bb%2Fc%2520d%26e%3Df", "p%2Bq+%252B%2F%3D%26%3A%7E+%5C%27%22%28secret%29"
PERCENT_ID = "team%20a%2bb%2fc%2520d%26e%3df"
PERCENT_SECRET = "p%2bq%20%252B%2f%3d%26%3a~%20%5c%27%22%28secret%29"


class Case(NamedTuple):
    clause: str
    body: str
    basic: str | None
    answer: Granted | Refusal
    query: str = ""


def encode_all(text: str) -> str:
    """Percent-encode every character, as the strictest client may."""
    return "".join(f"%{ord(character):02X}" for character in text)


@pytest.fixture(scope="session")
def with_clients(server: RunningServer) -> RunningServer:
    for client_id, secret in (
        (ID, SECRET),
        (ODD_ID, ODD_SECRET),
        (COLON_ID, COLON_SECRET),
        (LATIN_ID, LATIN_SECRET),
        (LATIN_SECRET_ID, SECRET_LATIN),
    ):
        server.create_client(client_id=client_id, secret=secret, scope=("read", "write"))
    return server


CASES = [
    Case("2.3.1 Basic", GRANT, f"{ID}:{SECRET}", Granted()),
    Case("2.3.1 Basic, form-encoded as appendix B says", GRANT, f"{FORM_ID}:{FORM_SECRET}", Granted()),
    Case("2.3.1 Basic, blanks as %20, hex in lower case", GRANT, f"{PERCENT_ID}:{PERCENT_SECRET}", Granted()),
    Case("2.3.1 Basic, all percent-encoded", GRANT, f"{encode_all(ODD_ID)}:{encode_all(ODD_SECRET)}", Granted()),
    Case("2.3.1 Basic, plain id all percent-encoded", GRANT, f"{encode_all(ID)}:{encode_all(SECRET)}", Granted()),
    Case("2.3.1 Basic, raw as half of the field sends it", GRANT, f"{ODD_ID}:{ODD_SECRET}", Granted()),
    Case("2.3.1 Basic, never raw id with decoded secret", GRANT, f"{ODD_ID}:{FORM_SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, never decoded id with raw secret", GRANT, f"{FORM_ID}:{ODD_SECRET}", INVALID_CLIENT),
    Case(
        "2.3.1 Basic, never decoded twice",
        GRANT,
        f"{encode_all(FORM_ID)}:{encode_all(FORM_SECRET)}",
        INVALID_CLIENT,
    ),
    Case("2.3.1 Basic, raw where the id is not UTF-8 decoded", GRANT, f"{LATIN_ID}:{LATIN_SECRET}", Granted()),
    Case(
        "2.3.1 Basic, never raw id with decoded secret, the id not being UTF-8 decoded",
        GRANT,
        f"{LATIN_ID}:{encode_all(LATIN_SECRET)}",
        INVALID_CLIENT,
    ),
    Case(
        "2.3.1 Basic, both encoded where the id is not UTF-8 decoded twice",
        GRANT,
        f"{encode_all(LATIN_ID)}:{encode_all(LATIN_SECRET)}",
        Granted(),
    ),
    Case(
        "2.3.1 Basic, raw where the secret is not UTF-8 decoded", GRANT, f"{LATIN_SECRET_ID}:{SECRET_LATIN}", Granted()
    ),
    Case(
        "2.3.1 Basic, never decoded id with raw secret, the secret not being UTF-8 decoded",
        GRANT,
        f"two+words:{SECRET_LATIN}",
        INVALID_CLIENT,
    ),
    Case("2.3.1 Basic, an id with colons form-encoded", GRANT, f"urn%3Aservice%3Aa:{COLON_SECRET}", Granted()),
    Case(
        "2.3.1 Basic, an id with colons and its secret form-encoded",
        GRANT,
        "urn%3Aservice%3Aa:a%3Asecret%3Awith%3Acolons",
        Granted(),
    ),
    Case("2.3.1 Basic, an id with colons raw", GRANT, f"{COLON_ID}:{COLON_SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, wrong secret", GRANT, f"{ID}:{SECRET}x", INVALID_CLIENT),
    Case("2.3.1 Basic, secret in other case", GRANT, f"{ID}:{SECRET.lower()}", INVALID_CLIENT),
    Case("2.3.1 Basic, another client's secret", GRANT, f"{ID}:{COLON_SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, id in other case", GRANT, f"{ID.upper()}:{SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, blank after the id", GRANT, f"{ID} :{SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, blank before the secret", GRANT, f"{ID}: {SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, no secret", GRANT, f"{ID}:", INVALID_CLIENT),
    Case("2.3.1 Basic, no id", GRANT, f":{SECRET}", INVALID_CLIENT),
    Case("2.3.1 Basic, neither", GRANT, ":", INVALID_CLIENT),
    Case("2.3.1 body", f"{GRANT}&client_id={ID}&client_secret={SECRET}", None, Granted()),
    Case("2.3.1 body, form-encoded", f"{GRANT}&client_id={FORM_ID}&client_secret={FORM_SECRET}", None, Granted()),
    Case(
        "2.3.1 body, percent-encoded",
        f"{GRANT}&client_id={PERCENT_ID}&client_secret={PERCENT_SECRET}",
        None,
        Granted(),
    ),
    Case(
        "2.3.1 body, decoded once only",
        f"{GRANT}&client_id={encode_all(FORM_ID)}&client_secret={encode_all(FORM_SECRET)}",
        None,
        INVALID_CLIENT,
    ),
    Case(
        "2.3.1 body, an id with colons", f"{GRANT}&client_id={COLON_ID}&client_secret={COLON_SECRET}", None, Granted()
    ),
    Case("2.3.1 body, in any order", f"client_secret={SECRET}&client_id={ID}&{GRANT}", None, Granted()),
    Case("2.3.1 body, wrong secret", f"{GRANT}&client_id={ID}&client_secret={SECRET}x", None, INVALID_CLIENT),
    Case("2.3.1 body, secret without id", f"{GRANT}&client_secret={SECRET}", None, missing("client_id")),
    Case("2.3.1 body, id without secret", f"{GRANT}&client_id={ID}", None, INVALID_CLIENT),
    Case("2.3.1 body, empty secret", f"{GRANT}&client_id={ID}&client_secret=", None, INVALID_CLIENT),
    Case("2.3 no authentication", GRANT, None, INVALID_CLIENT),
    Case("2.3.1 never in the URI", GRANT, None, in_query("client_id"), f"client_id={ID}&client_secret={SECRET}"),
    Case(
        "2.3.1 no secret in the URI",
        f"{GRANT}&client_id={ID}",
        None,
        in_query("client_secret"),
        f"client_secret={SECRET}",
    ),
    Case("2.3.1 no id in the URI", f"{GRANT}&client_secret={SECRET}", None, in_query("client_id"), f"client_id={ID}"),
    Case("2.3.1 never in the URI beside Basic", GRANT, f"{ID}:{SECRET}", in_query("client_secret"), "client_secret=x"),
    Case("2.3.1 never in the URI, encoded", GRANT, f"{ID}:{SECRET}", in_query("client_secret"), "%63lient_secret=x"),
    Case("2.3.1 never in the URI, empty", GRANT, f"{ID}:{SECRET}", in_query("client_secret"), "client_secret="),
    Case(
        "2.3 one method only, both right",
        f"{GRANT}&client_id={ID}&client_secret={SECRET}",
        f"{ID}:{SECRET}",
        SEVERAL_AUTHENTICATIONS,
    ),
    Case(
        "2.3 one method only, Basic right",
        f"{GRANT}&client_id={ID}&client_secret=wrong",
        f"{ID}:{SECRET}",
        SEVERAL_AUTHENTICATIONS,
    ),
    Case(
        "2.3 one method only, body right",
        f"{GRANT}&client_id={ID}&client_secret={SECRET}",
        f"{ID}:wrong",
        SEVERAL_AUTHENTICATIONS,
    ),
    Case(
        "2.3 one method only, secret without id in the body",
        f"{GRANT}&client_secret={SECRET}",
        f"{ID}:{SECRET}",
        SEVERAL_AUTHENTICATIONS,
    ),
    Case("2.3 an empty secret is an absent one", f"{GRANT}&client_secret=", f"{ID}:{SECRET}", Granted()),
    Case("2.3 the same id beside Basic", f"{GRANT}&client_id={ID}", f"{ID}:{SECRET}", Granted()),
    Case(
        "2.3 the same id beside form-encoded Basic",
        f"{GRANT}&client_id={FORM_ID}",
        f"{FORM_ID}:{FORM_SECRET}",
        Granted(),
    ),
    Case("2.3 an empty id beside Basic", f"{GRANT}&client_id=", f"{ID}:{SECRET}", Granted()),
    Case("2.3 another client's id beside Basic", f"{GRANT}&client_id={COLON_ID}", f"{ID}:{SECRET}", OTHER_CLIENT_ID),
    Case("2.3 an unknown id beside Basic", f"{GRANT}&client_id=unknown", f"{ID}:{SECRET}", OTHER_CLIENT_ID),
    Case("2.3 another id beside a wrong Basic", f"{GRANT}&client_id=unknown", f"{ID}:wrong", OTHER_CLIENT_ID),
    Case("2.3 the same id beside a wrong Basic", f"{GRANT}&client_id={ID}", f"{ID}:wrong", INVALID_CLIENT),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_a_client_authenticates_as_section_2_3_says(with_clients: RunningServer, case: Case) -> None:
    headers = {"Authorization": f"Basic {base64.b64encode(case.basic.encode()).decode()}"} if case.basic else {}
    response = with_clients.post_token(case.body, headers=headers, params=case.query)
    assert_answer(response, case.answer)


@pytest.mark.parametrize(
    ("authorization", "answer"),
    [
        (f"Bearer {SECRET}", INVALID_CLIENT),
        ("Digest username=s6BhdRkqt3", INVALID_CLIENT),
        ("Negotiate YII=", INVALID_CLIENT),
        ("garbage", INVALID_CLIENT),
        ("", Granted()),
    ],
    ids=["Bearer", "Digest", "Negotiate", "no scheme", "empty"],
)
def test_another_authorization_scheme_is_an_attempt_to_authenticate(
    with_clients: RunningServer, authorization: str, answer: Granted | Refusal
) -> None:
    alone = with_clients.post_token(GRANT, headers={"Authorization": authorization})
    assert_answer(alone, INVALID_CLIENT)
    body = f"{GRANT}&client_id={ID}&client_secret={SECRET}"
    beside_the_body = with_clients.post_token(body, headers={"Authorization": authorization})
    assert_answer(beside_the_body, Granted() if answer == Granted() else SEVERAL_AUTHENTICATIONS)


RIGHT = b"Authorization: Basic " + base64.b64encode(f"{ID}:{SECRET}".encode())
WRONG = b"Authorization: Basic " + base64.b64encode(f"{ID}:wrong".encode())


@pytest.mark.parametrize(
    "lines",
    [
        (RIGHT, RIGHT),
        (RIGHT, WRONG),
        (WRONG, RIGHT),
        (RIGHT, b"Authorization: Bearer x"),
        (b"Authorization: Bearer x", RIGHT),
        (RIGHT, b"authorization: Basic"),
        (RIGHT, b"Authorization:"),
    ],
    ids=[
        "same twice",
        "right wrong",
        "wrong right",
        "with Bearer",
        "after Bearer",
        "with bare Basic",
        "with an empty one",
    ],
)
def test_two_authorization_headers_are_refused(with_clients: RunningServer, lines: tuple[bytes, ...]) -> None:
    assert_answer(with_clients.send_form(GRANT.encode(), *lines), MALFORMED)


def test_two_credentials_in_one_authorization_header_are_refused(with_clients: RunningServer) -> None:
    value = RIGHT + b", " + RIGHT.removeprefix(b"Authorization: ")
    assert_answer(with_clients.send_form(GRANT.encode(), value), SEVERAL_AUTHENTICATIONS)
