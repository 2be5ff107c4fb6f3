"""What a client may be made of: what is good, and each refusal in its exact words."""

from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audiences import AUDIENCE_RULE
from app.clients.fields import (
    ClientFields,
    check_client_id,
    check_imported_secret,
    form_decode,
    split_scopes,
)
from app.errors import ManagementError


def refusal(**fields: Any) -> str:
    with pytest.raises(ManagementError) as caught:
        ClientFields(**{"client_name": "A service", **fields})
    return str(caught.value)


def test_a_name_is_enough() -> None:
    fields = ClientFields("A service")
    assert fields == ClientFields(
        client_name="A service",
        scope=(),
        audiences=(),
        access_token_lifetime=None,
        token_endpoint_auth_method="client_secret",
        grant_types=("client_credentials",),
        contacts=(),
        description="",
        labels={},
    )


@pytest.mark.parametrize("text", ["a", "Größe: 10 €", "名前", "x" * 1000, "a b", "😀"])
def test_texts_are_anything_printable(text: str) -> None:
    ClientFields(text, description=text, contacts=(text,), labels={text: text})


@pytest.mark.parametrize(
    "text", ["x" * 1001, "a\nb", "a\tb", "\x00", "a\x7f", "\x1b[31m", "\udcff", "a\u2028b", "\u202e"]
)
def test_a_text_that_does_not_print_or_is_too_long_is_refused(text: str) -> None:
    rule = "to 1000 printable characters in one line"
    assert refusal(client_name=text) == f"name must be 1 {rule}"
    assert refusal(description=text) == f"description must be 0 {rule}"
    assert refusal(contacts=("good", text)) == f"contact must be 1 {rule}"
    assert refusal(labels={text: ""}) == f"label must be 1 {rule}"
    assert refusal(labels={"team": text}) == f"label team must be 0 {rule}"


@pytest.mark.parametrize("blank", ["", " ", "   "])
def test_a_name_a_contact_and_a_labels_key_are_required(blank: str) -> None:
    assert refusal(client_name=blank).startswith("name must be 1 to")
    assert refusal(contacts=(blank,)).startswith("contact must be 1 to")
    assert refusal(labels={blank: "x"}).startswith("label must be 1 to")


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": tuple(f"{n:x}" for n in range(1001))},
        {"audiences": tuple(f"urn:{n}" for n in range(1001))},
        {"contacts": tuple(f"c{n}" for n in range(1001))},
        {"labels": {f"k{n}": "" for n in range(1001)}},
    ],
)
def test_lists_end_at_a_thousand_entries(fields: dict[str, Any]) -> None:
    assert (
        refusal(**fields) == "a client has at most 1000 scopes, audiences, resources to introspect, contacts or labels"
    )
    name, entries = next(iter(fields.items()))
    shorter = dict(list(entries.items())[1:]) if isinstance(entries, dict) else entries[1:]
    ClientFields("A service", **{name: shorter})


@pytest.mark.parametrize("lifetime", [1, 60, 86400, None])
def test_a_lifetime_is_a_second_to_a_day(lifetime: int | None) -> None:
    assert ClientFields("A service", access_token_lifetime=lifetime).access_token_lifetime == lifetime


@pytest.mark.parametrize("lifetime", [0, -1, 86401, 10**12])
def test_another_lifetime_is_refused(lifetime: int) -> None:
    assert refusal(access_token_lifetime=lifetime) == "lifetime must be from 1s to 1d"


@pytest.mark.parametrize("token", ["", "a b", " a", 'a"', "a\\b", "é", "a\n", "\x00", "\udcff"])
def test_a_scope_token_keeps_to_the_grammar(token: str) -> None:
    assert refusal(scope=("good", token)).startswith("scope ")


def test_the_servers_own_scopes_are_nobodys() -> None:
    assert refusal(scope=("tokenhouse:admin",)) == (
        "scope 'tokenhouse:admin': scopes that begin with 'tokenhouse:' are this server's own"
    )
    ClientFields("A service", scope=("tokenhouse", "TOKENHOUSE:x", "x:tokenhouse:admin"))


@pytest.mark.parametrize("audience", ["", "an api", "/api", "https://a#b", "https://ä", "a: b", "urn:a\n", "\udcff:a"])
def test_an_audience_is_an_absolute_uri_or_a_name(audience: str) -> None:
    assert refusal(audiences=("urn:a", audience)) == f"audience {audience!r} {AUDIENCE_RULE}"


@pytest.mark.parametrize(
    ("given_scopes", "tokens"),
    [
        ([], ()),
        (["a b", "c"], ("a", "b", "c")),
        (["b a", "a c", "b"], ("b", "a", "c")),
        ([""], ()),
        (["", "a", ""], ("a",)),
    ],
)
def test_scopes_of_several_places_are_joined_each_once(given_scopes: list[str], tokens: tuple[str, ...]) -> None:
    assert split_scopes(given_scopes) == tokens


@pytest.mark.parametrize("scope", [" ", "a  b", " a", "a ", "a\tb", 'a"b', "é"])
def test_scopes_have_one_space_between_them(scope: str) -> None:
    with pytest.raises(ManagementError) as caught:
        split_scopes(["good", scope])
    assert str(caught.value) == (
        f"scope {scope!r} must be tokens of printable ASCII without quote and backslash, one space between them"
    )


@pytest.mark.parametrize("client_id", ["a", "x" * 255, " ", "a b", "a:b", "a%2Bb", "~!@#$^&*()", "-", '"\\'])
def test_an_id_from_elsewhere_is_printable_ascii(client_id: str) -> None:
    check_client_id(client_id)


@pytest.mark.parametrize("client_id", ["", "x" * 256, "é", "a\n", "a\x00", "a\x7f", "\udcff", "a\tb"])
def test_another_id_is_refused_and_not_quoted(client_id: str) -> None:
    with pytest.raises(ManagementError) as caught:
        check_client_id(client_id)
    assert str(caught.value) == "client id must be 1 to 255 characters of printable ASCII"


@pytest.mark.parametrize("secret", ["x" * 16, "x" * 4096, " " * 16, "".join(map(chr, range(0x20, 0x7F)))])
def test_a_secret_from_elsewhere_is_printable_ascii(secret: str) -> None:
    check_imported_secret(secret)


@pytest.mark.parametrize(
    "secret", ["", "x" * 15, "x" * 4097, "x" * 16 + "\n", "x" * 16 + "é", "\x00" * 16, "\udcff" * 16]
)
def test_another_secret_is_refused_and_never_quoted(secret: str) -> None:
    with pytest.raises(ManagementError) as caught:
        check_imported_secret(secret)
    assert str(caught.value) == "the secret must be 16 to 4096 characters of printable ASCII"


@given(st.text())
def test_what_was_form_encoded_is_decoded(text: str) -> None:
    assert form_decode(quote_plus(text)) == text


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [
        ("a+b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%2bb", "a+b"),
        ("a%zzb", "a%zzb"),
        ("%", "%"),
        ("a%3Ab", "a:b"),
        ("%C3%A9", "é"),
    ],
)
def test_a_reading_is_decoded_as_a_form_is(encoded: str, decoded: str) -> None:
    assert form_decode(encoded) == decoded


@pytest.mark.parametrize("text", ["a%FF", "%C3", "a+%FF", "%80%80"])
def test_what_does_not_decode_to_utf_8_was_not_encoded(text: str) -> None:
    with pytest.raises(UnicodeDecodeError):
        form_decode(text)


def test_scopes_and_audiences_stay_small_enough_for_a_header() -> None:
    ClientFields("A service", scope=("a" * 2047, "b" * 2048), audiences=("urn:" + "a" * 1996,))
    assert refusal(scope=("a" * 2048, "b" * 2048)) == "all scopes of a client together have at most 4096 characters"
    assert refusal(audiences=("urn:" + "a" * 1997,)) == "audience has more than 2000 characters"
