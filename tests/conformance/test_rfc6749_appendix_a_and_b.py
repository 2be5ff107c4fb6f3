"""RFC 6749 appendix A (characters of ids and secrets) and appendix B (the form encoding)."""

import base64
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from conformance.expected import (
    GRANT,
    INVALID_CLIENT,
    MALFORMED_FORM,
    MALFORMED_SCOPE,
    Granted,
    Refusal,
    assert_answer,
    scope_not_granted,
)
from support.server import NewClient, RunningServer

VSCHAR = "".join(map(chr, range(0x20, 0x7F)))


@pytest.fixture(scope="session")
def widest(server: RunningServer) -> NewClient:
    """An id and a secret of every character that appendix A.1 and A.2 allow."""
    return server.create_client(client_id=VSCHAR, secret=VSCHAR[::-1], scope=("read", "write"))


def test_a_1_and_a_2_every_allowed_character_works_in_the_body(server: RunningServer, widest: NewClient) -> None:
    body = f"{GRANT}&client_id={quote_plus(widest.client_id)}&client_secret={quote_plus(widest.secret)}"
    assert_answer(server.post_token(body), Granted())


@pytest.mark.parametrize(
    "encode", [quote_plus, lambda text: quote(text, safe="")], ids=["blank as plus", "blank as %20"]
)
def test_a_1_and_a_2_every_allowed_character_works_in_basic_form_encoded(
    server: RunningServer, widest: NewClient, encode: Callable[[str], str]
) -> None:
    payload = f"{encode(widest.client_id)}:{encode(widest.secret)}".encode()
    response = server.post_token(GRANT, headers={"Authorization": "Basic " + base64.b64encode(payload).decode()})
    assert_answer(response, Granted())


@pytest.mark.parametrize(
    "character",
    ["%00", "%01", "%09", "%0A", "%0D", "%1F", "%7F", "%C2%80", "%C3%A9", "%E2%82%AC", "%F0%9F%94%91"],
)
def test_a_1_and_a_2_other_characters_are_in_no_id_and_no_secret(server: RunningServer, character: str) -> None:
    client = server.create_client()
    in_id = f"{GRANT}&client_id={client.client_id}{character}&client_secret={client.secret}"
    assert_answer(server.post_token(in_id), INVALID_CLIENT)
    in_secret = f"{GRANT}&client_id={client.client_id}&client_secret={client.secret}{character}"
    assert_answer(server.post_token(in_secret), INVALID_CLIENT)
    payload = f"{client.client_id}:{client.secret}{character}".encode()
    response = server.post_token(GRANT, headers={"Authorization": "Basic " + base64.b64encode(payload).decode()})
    assert_answer(response, INVALID_CLIENT)


@pytest.mark.parametrize(
    ("parameter", "answer"),
    [
        ("scope=+%25%26%2B%C2%A3%E2%82%AC", MALFORMED_SCOPE),
        ("x=+%25%26%2B%C2%A3%E2%82%AC", Granted()),
        ("scope=read+write", Granted()),
        ("scope=read%20write", Granted()),
        ("scope=read write", Granted()),
        ("scope=%72%65%61%64", Granted("read")),
        ("scope=r%65ad", Granted("read")),
        ("scope=%2", scope_not_granted("%2")),
        ("scope=%zz", scope_not_granted("%zz")),
        ("x=%FF", MALFORMED_FORM),
        ("x=%C3%28", MALFORMED_FORM),
        ("x=%ED%A0%80", MALFORMED_FORM),
        ("x=%C0%80", MALFORMED_FORM),
        ("%FF=x", MALFORMED_FORM),
    ],
)
def test_b_values_are_form_encoded_utf_8(server: RunningServer, parameter: str, answer: Granted | Refusal) -> None:
    client = server.create_client(scope=("read", "write"))
    response = server.post_token(f"{GRANT}&{parameter}", headers={"Authorization": client.basic})
    assert_answer(response, answer)
