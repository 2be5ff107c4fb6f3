"""RFC 7617: the Basic scheme, to the byte. The characters of ids and secrets are RFC 6749's."""

import base64

import pytest
from conformance.expected import CHALLENGE, GRANT, INVALID_CLIENT, MALFORMED, Granted, Refusal, assert_answer
from support.server import RunningServer

ID, SECRET = "Aladdin", "open sesame said 40 thieves"
PADDED = base64.b64encode(f"{ID}:{SECRET}".encode())
URLSAFE_ID, URLSAFE_SECRET = "sub>>?", "????>>>>~~~~????"


@pytest.fixture(scope="session")
def with_aladdin(server: RunningServer) -> RunningServer:
    server.create_client(client_id=ID, secret=SECRET, scope=("read", "write"))
    server.create_client(client_id=URLSAFE_ID, secret=URLSAFE_SECRET, scope=("read", "write"))
    return server


def encoded(payload: bytes) -> bytes:
    return b"Basic " + base64.b64encode(payload)


CREDENTIALS = f"{ID}:{SECRET}".encode()

CASES: list[tuple[str, bytes, Granted | Refusal]] = [
    ("as in section 2", b"Basic " + PADDED, Granted()),
    ("scheme in lower case", b"basic " + PADDED, Granted()),
    ("scheme in upper case", b"BASIC " + PADDED, Granted()),
    ("several blanks after the scheme", b"Basic   " + PADDED, Granted()),
    ("blanks around the value", b"  Basic " + PADDED + b" \t", Granted()),
    ("base64 with + and /", encoded(f"{URLSAFE_ID}:{URLSAFE_SECRET}".encode()), Granted()),
    (
        "base64url is another encoding",
        b"Basic " + base64.urlsafe_b64encode(f"{URLSAFE_ID}:{URLSAFE_SECRET}".encode()),
        INVALID_CLIENT,
    ),
    ("a tab is no blank", b"Basic\t" + PADDED, INVALID_CLIENT),
    ("no blank", b"Basic" + PADDED, INVALID_CLIENT),
    ("scheme alone", b"Basic", INVALID_CLIENT),
    ("scheme and blank alone", b"Basic ", INVALID_CLIENT),
    ("no scheme", PADDED, INVALID_CLIENT),
    ("another scheme that begins alike", b"Basically " + PADDED, INVALID_CLIENT),
    ("credentials not encoded", b"Basic " + CREDENTIALS, INVALID_CLIENT),
    ("padding missing", b"Basic " + PADDED.rstrip(b"="), INVALID_CLIENT),
    ("a blank within", b"Basic " + PADDED[:8] + b" " + PADDED[8:], INVALID_CLIENT),
    ("a parameter after it", b"Basic " + PADDED + b" realm=x", INVALID_CLIENT),
    ("garbage after it", b"Basic " + PADDED + b"!", INVALID_CLIENT),
    ("a second payload after the padding", b"Basic " + PADDED + PADDED, INVALID_CLIENT),
    ("a no-break space after it", b"Basic " + PADDED + b"\xa0", INVALID_CLIENT),
    ("a vertical tab before it", b"\x0bBasic " + PADDED, MALFORMED),
    ("bytes beyond ASCII", b"Basic \xff\xfe" + PADDED, INVALID_CLIENT),
    ("letters beyond ASCII in UTF-8", b"Basic \xc3\xa9" + PADDED, INVALID_CLIENT),
    ("no colon", encoded(ID.encode()), INVALID_CLIENT),
    ("colon first", encoded(b":" + CREDENTIALS), INVALID_CLIENT),
    ("NUL in the secret", encoded(CREDENTIALS + b"\0"), INVALID_CLIENT),
    ("NUL in the id", encoded(b"\0" + CREDENTIALS), INVALID_CLIENT),
    ("newline after the secret", encoded(CREDENTIALS + b"\n"), INVALID_CLIENT),
    ("control character", encoded(CREDENTIALS + b"\x1b"), INVALID_CLIENT),
    ("DEL", encoded(CREDENTIALS + b"\x7f"), INVALID_CLIENT),
    ("not UTF-8", encoded(b"\xff\xfe:\xc3\x28"), INVALID_CLIENT),
    ("UTF-8 beyond ASCII", encoded("Aladdín:öffne dich, Sesam öffne dich".encode()), INVALID_CLIENT),
    ("percent-encoded bytes that are not UTF-8", encoded(b"%FF%FE:%C3%28"), INVALID_CLIENT),
    ("percent-encoded NUL", encoded(CREDENTIALS + b"%00"), INVALID_CLIENT),
    ("a percent sign alone", encoded(CREDENTIALS + b"%"), INVALID_CLIENT),
    ("an octet of no hex", encoded(CREDENTIALS + b"%zz"), INVALID_CLIENT),
    ("empty payload of padding", b"Basic ====", INVALID_CLIENT),
]


@pytest.mark.parametrize(("value", "answer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_basic_credentials_are_read_to_the_byte(
    with_aladdin: RunningServer, value: bytes, answer: Granted | Refusal
) -> None:
    assert_answer(with_aladdin.send_form(GRANT.encode(), b"Authorization: " + value), answer)


def test_the_challenge_is_one_basic_challenge_with_a_realm(server: RunningServer) -> None:
    answer = server.send_form(GRANT.encode())
    assert answer.headers.get_all("WWW-Authenticate") == [CHALLENGE]
    assert CHALLENGE.startswith('Basic realm="tokenhouse"')
