"""Client secrets by Basic and in the body: two readings of Basic, never mixed, and nothing odd reaches the database."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.harness import Harness, statements

from app.errors import InvalidClient, InvalidRequest, OAuthError
from app.oauth.client_auth import METHODS
from app.oauth.client_auth.client_secret import ClientSecretBasic, ClientSecretPost
from app.types import Authentication, Client, Credentials

SECRET = "an-imported-secret-of-some-length"
CLIENT = Client("c", "C", "client_secret", ("client_credentials",), (), (), None)


@dataclass
class Request:
    """What a method sees of a request."""

    authorization: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    resources: Sequence[str] = ()
    source_address: str | None = "192.0.2.1"
    allows_memory: bool = False
    presented_secrets: list[str] = field(default_factory=list)


def basic(text: str | bytes, scheme: str = "Basic") -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    return f"{scheme} {base64.b64encode(raw).decode()}"


def by_basic(harness: Harness, authorization: str, **parameters: str) -> Authentication:
    return ClientSecretBasic(dependencies(harness.verifier)).authenticate(Request(authorization, parameters))


def by_post(harness: Harness, **parameters: str) -> Authentication:
    return ClientSecretPost(dependencies(harness.verifier)).authenticate(Request(None, parameters))


def reason_of(error: type[OAuthError], method: Any, *arguments: Any, **parameters: str) -> str:
    with pytest.raises(error) as caught:
        method(*arguments, **parameters)
    return str(caught.value.reason)


def dependencies(store: Any) -> Any:
    """The one that these methods ask."""
    return SimpleNamespace(clients=store)


class RecordingStore:
    """Notes what would be looked up, and finds the client of the first."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, str], ...]] = []

    def verify_secret(
        self, candidates: Sequence[Credentials], method: str, _source_address: str | None, *, allows_memory: bool
    ) -> Authentication:
        assert not allows_memory
        self.asked.append(tuple((candidate.client_id, candidate.secret) for candidate in candidates))
        return Authentication(CLIENT, method, "s-1")


def readings(authorization: str) -> tuple[tuple[str, str], ...]:
    store = RecordingStore()
    ClientSecretBasic(dependencies(store)).authenticate(Request(authorization))  # type: ignore[arg-type]
    return store.asked[0]


def test_the_registry_lists_the_methods_in_order() -> None:
    assert [(method.name, method.has_secrets, set(method.parameters)) for method in METHODS] == [
        ("client_secret_basic", True, {"client_id"}),
        ("client_secret_post", True, {"client_id", "client_secret"}),
        ("client_secret_jwt", True, {"client_id", "client_assertion", "client_assertion_type"}),
        ("private_key_jwt", False, {"client_id", "client_assertion", "client_assertion_type"}),
        ("federated_jwt", False, {"client_id", "client_assertion", "client_assertion_type"}),
        ("tls_client_auth", False, {"client_id"}),
        ("self_signed_tls_client_auth", False, {"client_id"}),
    ]


def test_what_presents_which_method(harness: Harness) -> None:
    basic_method, post = (
        ClientSecretBasic(dependencies(harness.verifier)),
        ClientSecretPost(dependencies(harness.verifier)),
    )
    for request, presented in [
        (Request(), (False, False)),
        (Request("Basic x"), (True, False)),
        (Request("Bearer x"), (True, False)),
        (Request(None, {"client_id": "c"}), (False, False)),
        (Request(None, {"client_secret": "s"}), (False, True)),
        (Request("Basic x", {"client_secret": "s"}), (True, True)),
    ]:
        assert (basic_method.is_presented(request), post.is_presented(request)) == presented


@pytest.mark.parametrize(
    ("client_id", "secret"),
    [
        ("plain", SECRET),
        ("a b", "secret with blanks"),
        ("a+b", "secret+with+plusses"),
        ("a:b", "secret:with:colons"),
        ("a%2Bb", "secret%2Bwith%25escapes"),
        ("%", "100%-is-a-fine-secret"),
        ("a&b=c", "&=?#/\\\"'<>~^`{|}"),
    ],
)
def test_basic_is_read_raw_and_form_encoded(harness: Harness, client_id: str, secret: str) -> None:
    secret = secret.ljust(20, ".")
    harness.register(client_id, secret=secret)
    if ":" not in client_id:
        assert by_basic(harness, basic(f"{client_id}:{secret}")).client.client_id == client_id
    for encode in (quote_plus, lambda text: quote(text, safe=""), lambda text: "".join(f"%{ord(c):02x}" for c in text)):
        found = by_basic(harness, basic(f"{encode(client_id)}:{encode(secret)}"))
        assert (found.client.client_id, found.method) == (client_id, "client_secret_basic")


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic  "])
def test_the_scheme_is_read_in_any_case(harness: Harness, scheme: str) -> None:
    harness.register("c", secret=SECRET)
    assert by_basic(harness, basic(f"c:{SECRET}", scheme)).client.client_id == "c"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("a+b:c+d", (("a+b", "c+d"), ("a b", "c d"))),
        ("a%2Bb:c", (("a%2Bb", "c"), ("a+b", "c"))),
        # Equal readings are one.
        ("a:b:c", (("a", "b:c"),)),
        ("a%3Ab:c", (("a%3Ab", "c"), ("a:b", "c"))),
        ("a:%ZZ", (("a", "%ZZ"),)),
        # Where the decoded reading cannot be anybody's, the raw one stands in for it, whole.
        ("a+b:c%00d", (("a+b", "c%00d"),)),
        ("a%0A:c+d", (("a%0A", "c+d"),)),
        ("a%C3%A9:c+d", (("a%C3%A9", "c+d"),)),
        ("a%FF:c+d", (("a%FF", "c+d"),)),
        ("a+b:c%FF", (("a+b", "c%FF"),)),
    ],
)
def test_there_are_two_readings_and_never_a_mixture(sent: str, read: tuple[tuple[str, str], ...]) -> None:
    assert readings(basic(sent)) == read


def test_a_raw_id_with_a_decoded_secret_fails(harness: Harness) -> None:
    harness.register("a+c", secret="a secret with blanks")
    harness.register("a%FF", secret="another one with blanks")
    assert reason_of(InvalidClient, by_basic, harness, basic("a+c:a+secret+with+blanks")) == "wrong_secret"
    assert reason_of(InvalidClient, by_basic, harness, basic("a%FF:another+one+with+blanks")) == "wrong_secret"


def test_a_decoded_id_with_a_raw_secret_fails(harness: Harness) -> None:
    harness.register("a d", secret="a+secret+with+plusses")
    harness.register("a e", secret="a-secret-with-%FF-in-it")
    assert reason_of(InvalidClient, by_basic, harness, basic("a+d:a+secret+with+plusses")) == "wrong_secret"
    assert reason_of(InvalidClient, by_basic, harness, basic("a+e:a-secret-with-%FF-in-it")) == "unknown_client"


@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters=":"), min_size=1),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1),
)
def test_each_credential_is_among_the_readings_of_both_forms(client_id: str, secret: str) -> None:
    assert readings(basic(f"{client_id}:{secret}"))[0] == (client_id, secret)
    assert readings(basic(f"{quote_plus(client_id)}:{quote_plus(secret)}"))[-1] == (client_id, secret)


@pytest.mark.parametrize(
    "authorization",
    ["Bearer abc", "Basi", "Basicx eA==", "Negotiate abc", "basic\teDp5", "Digest username=x", "é", "Bäsic x", "\x00"],
)
def test_another_scheme_is_refused(harness: Harness, authorization: str) -> None:
    assert reason_of(InvalidClient, by_basic, harness, authorization) == "unsupported_scheme"


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic ",
        "Basic !",
        "Basic eDp5 eDp5",
        "Basic eDp",
        "Basic é",
        "Basic ☃",
        "Basic _-==",
        basic(""),
        basic(":"),
        basic("c"),
        basic("c:"),
        basic(f":{SECRET}"),
        basic(b"\xff\xfe:secret"),
        basic(b"c:secret\xff"),
        basic("é:secret"),
        basic("c:sec\x00ret"),
        basic("c\x00:secret"),
        basic("c:secret\n"),
        basic("c:\x7f"),
    ],
)
def test_malformed_basic_is_refused_before_the_database(harness: Harness, authorization: str) -> None:
    with statements(harness) as seen:
        assert reason_of(InvalidClient, by_basic, harness, authorization) == "malformed_credentials"
    assert seen == []


@given(st.text() | st.binary().map(basic) | st.text().map(lambda text: f"Basic {text}"))
def test_whatever_stands_in_the_header_is_read_or_refused(authorization: str) -> None:
    store = RecordingStore()
    try:
        ClientSecretBasic(dependencies(store)).authenticate(Request(authorization))  # type: ignore[arg-type]
    except InvalidClient as error:
        assert error.reason in {"unsupported_scheme", "malformed_credentials"}  # noqa: PT017 - Either is right.
        assert store.asked == []
    else:
        for text in chain.from_iterable(store.asked[0]):
            assert text
            assert all(" " <= character <= "~" for character in text)


def test_a_body_id_beside_basic_must_be_the_same(harness: Harness) -> None:
    harness.register("a b", secret=SECRET)
    for sent in ("a b", "a+b"):
        assert by_basic(harness, basic(f"{sent}:{SECRET}"), client_id="a b").client.client_id == "a b"
    assert reason_of(InvalidRequest, by_basic, harness, basic(f"a+b:{SECRET}"), client_id="a+b") == "other_client_id"
    assert reason_of(InvalidRequest, by_basic, harness, basic(f"a b:{SECRET}"), client_id="other") == "other_client_id"
    assert reason_of(InvalidRequest, by_basic, harness, basic("a b:wrong"), client_id="other") == "other_client_id"
    assert reason_of(InvalidClient, by_basic, harness, basic("a b:wrong"), client_id="a b") == "wrong_secret"


def test_a_secret_in_the_body_has_one_reading(harness: Harness) -> None:
    harness.register("a b", secret=SECRET)
    found = by_post(harness, client_id="a b", client_secret=SECRET)
    assert (found.client.client_id, found.method) == ("a b", "client_secret_post")
    assert reason_of(InvalidClient, by_post, harness, client_id="a+b", client_secret=SECRET) == "unknown_client"
    assert reason_of(InvalidClient, by_post, harness, client_id="a b", client_secret="wrong") == "wrong_secret"


def test_a_secret_in_the_body_needs_an_id(harness: Harness) -> None:
    with pytest.raises(InvalidRequest) as caught:
        by_post(harness, client_secret=SECRET)
    assert (caught.value.reason, caught.value.description) == (
        "missing_parameter",
        "The parameter client_id is missing.",
    )


@pytest.mark.parametrize("bad", ["a\x00b", "é", "a\n", "\x7f", "\ufffd", "😀"])
def test_malformed_credentials_in_the_body_are_refused_before_the_database(harness: Harness, bad: str) -> None:
    with statements(harness) as seen:
        assert (
            reason_of(InvalidClient, by_post, harness, client_id=bad, client_secret=SECRET) == "malformed_credentials"
        )
        assert reason_of(InvalidClient, by_post, harness, client_id="c", client_secret=bad) == "malformed_credentials"
    assert seen == []
