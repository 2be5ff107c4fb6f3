r"""RFC 6749 section 3.3: ``scope = scope-token *( SP scope-token )``, tokens of %x21 / %x23-5B / %x5D-7E."""

from typing import NamedTuple
from urllib.parse import quote_from_bytes

import pytest
from conformance.expected import MALFORMED_SCOPE, Granted, Refusal, assert_answer, scope_not_granted
from support.server import NewClient, RunningServer

ALL_CHARACTERS = "".join(map(chr, (0x21, *range(0x23, 0x5C), *range(0x5D, 0x7F))))
REGISTERED = ("read", "write", "urn:x:a+b", ALL_CHARACTERS)
LONG = "x" * 150


class Case(NamedTuple):
    clause: str
    scope: bytes
    answer: Granted | Refusal


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(scope=REGISTERED)


CASES = [
    Case("one token", b"read", Granted("read")),
    Case("two tokens", b"read write", Granted("read write")),
    Case("the caller's order", b"write read", Granted("write read")),
    Case("a repeated token once", b"read write read", Granted("read write")),
    Case("every allowed character", ALL_CHARACTERS.encode(), Granted(ALL_CHARACTERS)),
    Case("a plus sign", b"urn:x:a+b", Granted("urn:x:a+b")),
    Case("none asked, all of the client's", b"", Granted(" ".join(REGISTERED))),
    Case("two blanks", b"read  write", MALFORMED_SCOPE),
    Case("blank before", b" read", MALFORMED_SCOPE),
    Case("blank after", b"read ", MALFORMED_SCOPE),
    Case("only a blank", b" ", MALFORMED_SCOPE),
    Case("tab", b"read\twrite", MALFORMED_SCOPE),
    Case("newline", b"read\nwrite", MALFORMED_SCOPE),
    Case("newline after", b"read\n", MALFORMED_SCOPE),
    Case("carriage return", b"read\rwrite", MALFORMED_SCOPE),
    Case("quote %x22", b'read"', MALFORMED_SCOPE),
    Case("backslash %x5C", b"read\\", MALFORMED_SCOPE),
    Case("NUL", b"read\0", MALFORMED_SCOPE),
    Case("DEL %x7F", b"read\x7f", MALFORMED_SCOPE),
    Case("control character %x1F", b"\x1fread", MALFORMED_SCOPE),
    Case("letter beyond ASCII", "réad".encode(), MALFORMED_SCOPE),
    Case("no-break space", "read\u00a0write".encode(), MALFORMED_SCOPE),
    Case("full-width letter", "\uff52ead".encode(), MALFORMED_SCOPE),
    Case("grammar before grant", b"admin  read", MALFORMED_SCOPE),
    Case("case-sensitive", b"Read", scope_not_granted("Read")),
    Case("not granted", b"admin", scope_not_granted("admin")),
    Case("one of two not granted", b"read admin", scope_not_granted("admin")),
    Case("several not granted, in order", b"z read a", scope_not_granted("z a")),
    Case("comma is no separator", b"read,write", scope_not_granted("read,write")),
    Case("part of a token", b"rea", scope_not_granted("rea")),
    Case(
        "ten are named, an answer stays small", b"a b c d e f g h i j k l", scope_not_granted("a b c d e f g h i j ...")
    ),
    Case("a long one is cut", LONG.encode(), scope_not_granted(f"{'x' * 100}...")),
    Case("the server's own", b"tokenhouse:admin", scope_not_granted("tokenhouse:admin")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_scope_keeps_to_section_3_3(server: RunningServer, client: NewClient, case: Case) -> None:
    body = f"grant_type=client_credentials&scope={quote_from_bytes(case.scope)}"
    response = server.post_token(body, headers={"Authorization": client.basic})
    assert_answer(response, case.answer)
    if isinstance(case.answer, Granted):
        assert server.verify(response.json()["access_token"])["scope"] == case.answer.scope


def test_a_client_without_scopes_gets_a_token_without(server: RunningServer) -> None:
    client = server.create_client()
    answer = server.get_token(client)
    assert list(answer) == ["access_token", "token_type", "expires_in"]
    assert "scope" not in server.verify(answer["access_token"])


def test_a_client_without_scopes_may_ask_for_none(server: RunningServer) -> None:
    client = server.create_client()
    response = server.post_token("grant_type=client_credentials&scope=read", headers={"Authorization": client.basic})
    assert_answer(response, scope_not_granted("read"))
