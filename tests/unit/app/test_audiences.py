"""Which URIs are the same: the examples of RFC 3986, and rules over all URIs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audiences import is_absolute_uri, is_audience, normalize

SAME = [
    # RFC 3986 section 6.2.2.
    ("example://a/b/c/%7Bfoo%7D", "eXAMPLE://a/./b/../b/%63/%7bfoo%7d"),
    # Section 6.2.2.1: case.
    ("https://api.example.com/v1", "HTTPS://API.Example.COM/v1"),
    ("https://api.example.com/%3F", "https://api.example.com/%3f"),
    # Section 6.2.2.2: escapes.
    ("https://api.example.com/~a", "https://api.example.com/%7Ea"),
    ("https://api.example.com/", "https://%61pi.example.com/"),
    # Section 6.2.2.3: dot segments.
    ("https://api.example.com/b", "https://api.example.com/a/../b"),
    ("https://api.example.com/a/", "https://api.example.com/a/b/.."),
    ("https://api.example.com/a", "https://api.example.com/../../a"),
    ("https://api.example.com/a/g", "https://api.example.com/a/./././g"),
    # Section 6.2.3: an empty path, and ports.
    ("https://api.example.com", "https://api.example.com/"),
    ("https://api.example.com", "https://api.example.com:/"),
    ("https://api.example.com", "https://api.example.com:443"),
    ("http://api.example.com/", "http://api.example.com:80"),
    ("https://api.example.com?q", "https://api.example.com:443/?q"),
    ("https://[2001:db8::1]/", "https://[2001:DB8::1]:443"),
    ("https://user@api.example.com/", "https://user@API.example.com"),
    ("urn:example:a", "URN:example:a"),
    ("file:/a/b", "file:/a/./b"),
]
DIFFERENT = [
    ("https://api.example.com/v1", "https://api.example.com/V1"),
    ("https://api.example.com/v1", "https://api.example.com/v1/"),
    ("https://api.example.com", "http://api.example.com"),
    ("https://api.example.com", "https://api.example.com:8443"),
    ("http://api.example.com", "http://api.example.com:443"),
    ("https://api.example.com/a%2Fb", "https://api.example.com/a/b"),
    ("https://api.example.com/?a", "https://api.example.com/?A"),
    ("https://User@api.example.com", "https://user@api.example.com"),
    ("example://a", "example://a/"),
    ("urn:example:A", "urn:example:a"),
    ("orders", "Orders"),
    ("https://api.example.com//", "https://api.example.com/"),
]

characters = st.sampled_from("aA1.-_~:/?@!$&'()*+,;=%[]")
uris = st.builds("{}:{}".format, st.sampled_from(["http", "HTTPS", "urn", "x+y"]), st.text(characters, min_size=1))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equivalent_uris_have_one_form(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_uris_differ(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


@given(uris | uris.map(lambda uri: uri.replace(":", "://", 1)))
def test_a_normalized_uri_is_a_uri_and_its_own_form(uri: str) -> None:
    assert is_absolute_uri(uri)
    form = normalize(uri)
    assert normalize(form) == form
    assert is_absolute_uri(form)


@given(st.text(max_size=30))
def test_an_audience_is_a_uri_if_it_contains_a_colon(text: str) -> None:
    if is_audience(text):
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(' #"\\*') or ":" in text
        assert is_absolute_uri(text) is (":" in text)


@pytest.mark.parametrize("name", ["orders", "payments-api", "Team/orders", "svc@example.com", "a+b", "7", "a~b"])
def test_a_name_is_an_audience(name: str) -> None:
    assert is_audience(name)
    assert not is_absolute_uri(name)


@pytest.mark.parametrize("text", ["", "*", "/api", "-a", "a b", "a,b", 'a"', "a#b", "é", "a\n", "https://a#b", ":a"])
def test_other_text_is_not(text: str) -> None:
    assert not is_audience(text)
