"""The certificate of a caller in a proxy's header: each format, strictly, and from a trusted proxy alone."""

import base64
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import Certified, certify, client_certificate, nginx, rfc9440, subject, xfcc

from app.config.settings import Settings
from app.errors import InvalidRequest
from app.oauth.client_certificates import MOST_IN_A_CHAIN, ClientCertificates

PROXY = "192.0.2.7"
FORMATS = {"rfc9440": rfc9440, "nginx": nginx, "xfcc": xfcc}


@cache
def own() -> Certified:
    return client_certificate("a client")


@cache
def other() -> Certified:
    return client_certificate("another")


def source(kind: str = "rfc9440", **settings: Any) -> ClientCertificates:
    values = {"issuer": "https://tokens.example.com", "secret_peppers": f"p1:{'p' * 40}", "trusted_proxies": PROXY}
    return ClientCertificates(Settings(**{**values, "mtls_format": kind, **settings}))


def environ(headers: dict[str, str], peer: str = PROXY) -> dict[str, Any]:
    return {"REMOTE_ADDR": peer} | {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}


def thumbprints(kind: str, headers: dict[str, str]) -> list[str]:
    found = source(kind).read(environ(headers))
    assert found is not None
    return [found.thumbprint, *(source_of(one) for one in found.intermediates)]


def source_of(certificate: Any) -> str:
    return Certified(certificate, own().key).thumbprint


def assert_malformed(kind: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        source(kind).read(environ({"Client-Cert": value}))
    assert (caught.value.reason, caught.value.description) == ("certificate_malformed", InvalidRequest.description)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str) -> None:
    assert thumbprints(kind, FORMATS[kind](own())) == [own().thumbprint]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_header_and_an_empty_one_are_no_certificate(kind: str) -> None:
    assert source(kind).read(environ({})) is None
    assert source(kind).read(environ({"Client-Cert": ""})) is None


@pytest.mark.parametrize("kind", ["rfc9440", "xfcc"])
def test_a_chain_comes_along(kind: str) -> None:
    chain = [certify(f"CA {number}", is_authority=True) for number in range(2)]
    headers = {"rfc9440": rfc9440, "xfcc": xfcc}[kind](own(), *chain)
    assert thumbprints(kind, headers) == [own().thumbprint, *(one.thumbprint for one in chain)]


def test_a_chain_is_not_endless() -> None:
    headers = rfc9440(own(), *[other()] * (MOST_IN_A_CHAIN + 5))
    assert len(thumbprints("rfc9440", headers)) == 1 + MOST_IN_A_CHAIN


def test_a_certificate_is_parsed_once() -> None:
    certificates, request = source(), environ(rfc9440(own()))
    first = certificates.read(request)
    assert certificates.read(request) is first


def test_the_header_has_the_name_of_the_settings() -> None:
    certificates = source(mtls_header="X-Client-Cert")
    assert certificates.read(environ(rfc9440(own()))) is None
    value = rfc9440(own())["Client-Cert"]
    found = certificates.read(environ({"X-Client-Cert": value, "X-Client-Cert-Chain": value}))
    assert found is not None
    assert (found.thumbprint, len(found.intermediates)) == (own().thumbprint, 1)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("written", FORMATS)
def test_no_format_passes_for_another(kind: str, written: str) -> None:
    if kind != written:
        assert_malformed(kind, FORMATS[written](own())["Client-Cert"])


def wrong_values() -> Iterator[tuple[str, str]]:
    encoded = base64.b64encode(own().der).decode()
    good = {kind: FORMATS[kind](own())["Client-Cert"] for kind in FORMATS}
    yield "rfc9440", encoded
    yield "rfc9440", f":{encoded}"
    yield "rfc9440", f":{encoded}:;a=1"
    yield "rfc9440", f":{encoded[:-9]}:"
    yield "rfc9440", "::"
    yield "rfc9440", f"{good['rfc9440']},{good['rfc9440']}"
    yield "rfc9440", f":{base64.b64encode(own().der + b'x').decode()}:"
    yield "nginx", "x"
    yield "nginx", "(null)"
    yield "nginx", quote(own().key_pem)
    yield "nginx", good["nginx"][:200]
    yield "xfcc", "By=a;Hash=b"
    yield "xfcc", 'Cert=""'
    yield "xfcc", f"{good['xfcc']},"
    yield "xfcc", f"{good['xfcc']},By=a"
    yield "xfcc", good["xfcc"].replace("Subject=", 'Subject="')
    yield "xfcc", f"{good['xfcc']};{good['xfcc']}"
    yield "nginx", f"x{good['nginx']}"


def test_anything_else_is_malformed() -> None:
    for kind, value in wrong_values():
        assert_malformed(kind, value)


def test_of_several_proxies_the_nearest_one_counts() -> None:
    forged, added = xfcc(other())["Client-Cert"], xfcc(own())["Client-Cert"]
    assert thumbprints("xfcc", {"Client-Cert": f"{forged},{added}"}) == [own().thumbprint]


@pytest.mark.parametrize(
    "name",
    [
        'a",Hash=x;Cert="{other}',
        'a\\",Hash=x;Cert="{other}";Subject="b',
        'a";Cert="{other}',
        'a\\\\",By=x;Cert="{other}";DNS="',
        "a,Cert={other}",
    ],
)
def test_a_subject_cannot_bring_another_certificate(name: str) -> None:
    """The issuer of a self-signed certificate chooses its subject, which Envoy puts into the header too."""
    crafted = client_certificate(subject((NameOID.ORGANIZATIONAL_UNIT_NAME, name.replace("{other}", "x"))))
    assert thumbprints("xfcc", xfcc(crafted)) == [crafted.thumbprint]
    # The same with a whole certificate in it, which is too long for a real subject.
    text = name.replace("{other}", quote(other().pem, safe="")).replace("\\", "\\\\").replace('"', '\\"')
    long = f'Hash=h;Cert="{quote(own().pem, safe="")}";Subject="{text}"'
    assert thumbprints("xfcc", {"Client-Cert": long}) == [own().thumbprint]


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_whatever_the_subject_the_certificate_is_the_one_that_envoy_saw(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    value = f'Hash=h;Cert="{quote(own().pem, safe="")}";Subject="{escaped}";URI=spiffe://a/b'
    assert thumbprints("xfcc", {"Client-Cert": value}) == [own().thumbprint]


@pytest.mark.parametrize(("trusted", "peer"), [(PROXY, "192.0.2.8"), ("", PROXY), ("unix", PROXY)])
def test_the_header_of_an_untrusted_peer_is_refused(trusted: str, peer: str) -> None:
    certificates = source(trusted_proxies=trusted)
    for headers in (rfc9440(own()), {"Client-Cert": ""}, {"Client-Cert": "x"}):
        with pytest.raises(InvalidRequest) as caught:
            certificates.require_trusted(environ(headers, peer))
        assert caught.value.reason == "certificate_from_untrusted_peer"
    certificates.require_trusted(environ({}, peer))


def test_a_trusted_proxy_may_be_at_a_unix_socket() -> None:
    source(trusted_proxies="unix").require_trusted({**environ(rfc9440(own())), "REMOTE_ADDR": ""})
    source().require_trusted(environ(rfc9440(own()), f"::ffff:{PROXY}"))
