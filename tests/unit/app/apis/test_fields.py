"""What an API may consist of."""

from typing import Any

import pytest

from app.apis.fields import ApiFields, can_have_document
from app.errors import ManagementError

ISSUER = "https://tokens.example.com"
NAME_RULE = "the name of an API must be 1 to 100 printable characters without / \\ ? # and %"


def refusal(**fields: Any) -> str:
    with pytest.raises(ManagementError) as caught:
        ApiFields(**{"name": "orders", "identifier": "urn:orders", **fields})
    return str(caught.value)


@pytest.mark.parametrize("name", ["orders", "Orders API", "a.b-c_d", "Größe", "x" * 100])
def test_a_name_is_printable(name: str) -> None:
    ApiFields(name, "urn:orders")


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a ", "a/b", "a?b", "a#b", "a%b", "a\\b", "a\nb", ".", "..", "x" * 101]
)
def test_other_names_are_refused(name: str) -> None:
    assert refusal(name=name) == NAME_RULE


@pytest.mark.parametrize("identifier", ["https://api.example.com", "urn:a:b", "orders", "api://orders"])
def test_an_identifier_is_a_uri_or_a_name(identifier: str) -> None:
    ApiFields("orders", identifier)


@pytest.mark.parametrize("identifier", ["", "an api", "https://a#b", "*"])
def test_other_identifiers_are_refused(identifier: str) -> None:
    assert refusal(identifier=identifier).startswith(f"identifier {identifier!r} must be an absolute URI")


def test_an_identifier_has_2000_characters_at_most() -> None:
    ApiFields("orders", "x" * 2000)
    assert refusal(identifier="x" * 2001) == "identifier has more than 2000 characters"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scope": ("a b",)}, "scope 'a b' must be one scope token"),
        ({"scope": ("tokenhouse:admin",)}, "scope 'tokenhouse:admin': scopes that begin with 'tokenhouse:' are this "),
        ({"scope": ("x" * 201,)}, "a scope of an API has at most 200 characters"),
        ({"scope": tuple(f"s{n}" for n in range(201))}, "an API has at most 200 scopes, with at most 4096 characters"),
        ({"access_token_lifetime": 0}, "lifetime must be from 1s to 1d"),
        ({"access_token_lifetime": 86401}, "lifetime must be from 1s to 1d"),
        ({"signing_alg": "HS256"}, "signing algorithm must be one of RS256, PS256, ES256, EdDSA"),
        ({"owner": "a\nb"}, "owner must be 0 to 1000 printable characters in one line"),
        ({"claims": {"aud": "x"}}, "'aud' is a registered claim name: choose another name"),
        ({"publishes_document": True}, "identifier 'urn:orders' must be an https URL without a query for a document"),
    ],
)
def test_a_wrong_field_is_refused(fields: dict[str, Any], told: str) -> None:
    assert refusal(**fields).startswith(told)


@pytest.mark.parametrize("path", ["/admin/v1", "/admin", "/oauth/introspect", "/oauth", "/x/../admin/v1"])
def test_the_servers_resources_are_refused(path: str) -> None:
    with pytest.raises(ManagementError, match="is one of this server's own resources"):
        ApiFields("a", f"HTTPS://tokens.example.com:443{path}").check_not_ours(ISSUER)


@pytest.mark.parametrize("identifier", [ISSUER, f"{ISSUER}/orders", f"{ISSUER}/administration", "urn:a", "orders"])
def test_identifiers_that_only_look_like_the_servers_are_allowed(identifier: str) -> None:
    ApiFields("a", identifier).check_not_ours(ISSUER)


@pytest.mark.parametrize(
    ("identifier", "can"),
    [
        ("https://api.example.com", True),
        ("https://api.example.com/v1", True),
        ("http://localhost:8080/mcp", True),
        ("http://127.0.0.1/", True),
        ("http://api.example.com", False),
        ("https://api.example.com/?a", False),
        ("https:api", False),
        ("https://:443", False),
        ("urn:a", False),
        ("orders", False),
    ],
)
def test_a_document_needs_an_https_url(identifier: str, can: bool) -> None:  # noqa: FBT001
    assert can_have_document(identifier) is can
